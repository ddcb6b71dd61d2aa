package sqlite

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

const errQuota = windows.ERROR_DISK_FULL

// lockFile locks a file until the process ends. held is true if another process has the
// lock. The locked byte is far behind the text in the file, because other processes
// cannot read locked bytes.
func lockFile(f *os.File) (held bool, err error) {
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{Offset: 1 << 30})
	return errors.Is(err, windows.ERROR_LOCK_VIOLATION), err
}

// freeSpace returns how many bytes can still be written in a folder.
func freeSpace(folder string) (int64, error) {
	name, err := windows.UTF16PtrFromString(folder)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, err
	}
	return int64(min(free, 1<<62)), nil
}

// syncFolder does nothing: this system cannot sync folders.
func syncFolder(string) error { return nil }
