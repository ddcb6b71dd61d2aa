//go:build unix

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// folderLock keeps a second process from opening the same store: two servers
// on the same files would corrupt them. The kernel drops it with the process.
type folderLock struct{ file *os.File }

func lockFolder(folder string) (*folderLock, error) {
	file, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the store's lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the store %s is in use by another process", folder)
		}
		return nil, fmt.Errorf("locking the store: %w", err)
	}
	return &folderLock{file}, nil
}

func (l *folderLock) release() { l.file.Close() }

// stands says whether the lock is still where it was taken, and the streams are there.
func (l *folderLock) stands(folder, streams string) bool {
	held, err := l.file.Stat()
	if err != nil {
		return true // it is being released
	}
	there, err := os.Stat(filepath.Join(folder, "lock"))
	if err == nil && os.SameFile(held, there) {
		_, err = os.Stat(streams)
		return !errors.Is(err, fs.ErrNotExist)
	}
	return err != nil && !errors.Is(err, fs.ErrNotExist) // a disk that returns errors is found out by writing
}
