package sqlite

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// fileSystem is the VFS of one open store. It reports a full disk as SQLITE_FULL, an
// error code that the library loses. It gives the store access to the log for its own
// syncs, and writes the log one commit at a time.
type fileSystem struct {
	vfs.VFSFilename
	name string

	mu  sync.Mutex
	log *file // the write-ahead log; nil until the first connection opens it
}

var fileSystems atomic.Int64

// registerFileSystem registers inner, or the system's files if inner is nil, with
// SQLite under a unique name. It must be unregistered.
func registerFileSystem(inner vfs.VFSFilename) *fileSystem {
	if inner == nil {
		inner = vfs.Find("os").(vfs.VFSFilename)
	}
	fs := &fileSystem{VFSFilename: inner, name: fmt.Sprintf("callback-%d", fileSystems.Add(1))}
	vfs.Register(fs.name, fs)
	return fs
}

func (fs *fileSystem) unregister() { vfs.Unregister(fs.name) }

// OpenFilename implements [vfs.VFSFilename].
func (fs *fileSystem) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	inner, flags, err := fs.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	f := &file{File: inner, fs: fs}
	if flags&vfs.OPEN_WAL != 0 {
		fs.mu.Lock()
		if fs.log == nil {
			fs.log = f
		}
		fs.mu.Unlock()
		// Without this property, SQLite pads the end of a commit, and the end cannot be
		// recognized.
		f.gathers = f.DeviceCharacteristics()&vfs.IOCAP_POWERSAFE_OVERWRITE != 0
	}
	return f, flags, nil
}

// syncLog makes the contents of the log durable. The writer may gather a commit at the
// same time. If rewrite is set, syncLog writes the contents again first, because an fsync
// of another process may have failed. The log must not be written at the same time then.
func (fs *fileSystem) syncLog(rewrite bool) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.log == nil {
		return nil
	}
	if rewrite {
		size, err := fs.log.File.Size()
		if err != nil {
			return err
		}
		fs.log.rewrites.distrust(size)
	}
	return fs.log.rewrites.sync(fs.log.File, vfs.SYNC_NORMAL)
}

// file is a file of a store's database.
type file struct {
	vfs.File
	fs *fileSystem

	// The fields below are for the log. SQLite writes each page and its header
	// separately. Gathering the pages of a commit and writing them at once halves its
	// cost.
	gathers  bool
	gathered []byte
	at       int64 // offset to write them at
	last     bool  // they end a commit

	rewrites rewrites
}

const (
	frameHeader = 24      // bytes before a page in the log
	maxGathered = 1 << 20 // bytes
)

// flush writes the gathered pages. No reader reads them before their commit is written.
func (f *file) flush() error {
	if len(f.gathered) == 0 {
		return nil
	}
	_, err := f.write(f.gathered, f.at)
	f.gathered = f.gathered[:0]
	return err
}

func (f *file) write(p []byte, off int64) (int, error) {
	f.rewrites.mu.Lock()
	defer f.rewrites.mu.Unlock()
	f.rewrites.written(off, int64(len(p)))
	n, err := f.File.WriteAt(p, off)
	return n, full(err)
}

// full restores the code of an error that means that the disk or a quota is full.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, errQuota) {
		return vfs.SystemError(err, sqlite3.FULL)
	}
	return err
}

func (f *file) Close() error {
	f.fs.mu.Lock()
	if f.fs.log == f {
		f.fs.log = nil
	}
	f.fs.mu.Unlock()
	return errors.Join(f.flush(), f.File.Close())
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if !f.gathers {
		return f.write(p, off)
	}
	if off != f.at+int64(len(f.gathered)) || len(f.gathered) > maxGathered {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if len(f.gathered) == 0 {
		f.at = off
	}
	f.gathered = append(f.gathered, p...)
	if len(p) == frameHeader {
		// The frame header of a commit's last page has the size of the database.
		f.last = [4]byte(p[4:8]) != [4]byte{}
	} else if f.last {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *file) Size() (int64, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f *file) Truncate(size int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	f.rewrites.mu.Lock()
	defer f.rewrites.mu.Unlock()
	f.rewrites.written(size, 1)
	return full(f.File.Truncate(size))
}

// Sync reports a full disk like any other failed fsync: pages may be lost. After an
// error it writes them again.
func (f *file) Sync(flags vfs.SyncFlag) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.rewrites.sync(f.File, flags)
}

// SharedMemory implements [vfs.FileSharedMemory].
func (f *file) SharedMemory() vfs.SharedMemory {
	if shared, ok := f.File.(vfs.FileSharedMemory); ok {
		return shared.SharedMemory()
	}
	return nil
}

// SizeHint implements [vfs.FileSizeHint].
func (f *file) SizeHint(size int64) error {
	if h, ok := f.File.(vfs.FileSizeHint); ok {
		return full(h.SizeHint(size))
	}
	return sqlite3.NOTFOUND
}
