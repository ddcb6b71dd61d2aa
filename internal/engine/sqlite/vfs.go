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

// fileSystem is the VFS of one opened store. It reports a full disk as FULL, which
// the library loses, and gives access to the log for syncs of our own.
type fileSystem struct {
	vfs.VFS
	name string

	mu  sync.Mutex
	log *file // the write-ahead log; nil before the first connection has it open
}

var fileSystems atomic.Int64

// registerFileSystem makes inner, or the system's files if that is nil, known to
// SQLite under a name of its own. It must be unregistered.
func registerFileSystem(inner vfs.VFS) *fileSystem {
	if inner == nil {
		inner = vfs.Find("os")
	}
	fs := &fileSystem{VFS: inner, name: fmt.Sprintf("callback-%d", fileSystems.Add(1))}
	vfs.Register(fs.name, fs)
	return fs
}

func (fs *fileSystem) unregister() { vfs.Unregister(fs.name) }

// OpenFilename implements [vfs.VFSFilename].
func (fs *fileSystem) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	var (
		inner vfs.File
		err   error
	)
	if named, ok := fs.VFS.(vfs.VFSFilename); ok {
		inner, flags, err = named.OpenFilename(name, flags)
	} else {
		inner, flags, err = fs.VFS.Open(name.String(), flags)
	}
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
	}
	return f, flags, nil
}

// syncLog makes what is in the log durable.
func (fs *fileSystem) syncLog() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.log == nil {
		return nil
	}
	return fs.log.File.Sync(vfs.SYNC_NORMAL)
}

// file is a file of a store's database.
type file struct {
	vfs.File
	fs *fileSystem
}

// full restores the code of an error that says that the disk or a quota is full.
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
	return f.File.Close()
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return n, full(err)
}

func (f *file) Truncate(size int64) error { return full(f.File.Truncate(size)) }

// Sync reports a full disk as any other failed fsync: pages may be lost.
func (f *file) Sync(flags vfs.SyncFlag) error { return f.File.Sync(flags) }

// SharedMemory implements [vfs.FileSharedMemory].
func (f *file) SharedMemory() vfs.SharedMemory {
	if shared, ok := f.File.(vfs.FileSharedMemory); ok {
		return shared.SharedMemory()
	}
	return nil
}

// LockState implements [vfs.FileLockState].
func (f *file) LockState() vfs.LockLevel {
	if s, ok := f.File.(vfs.FileLockState); ok {
		return s.LockState()
	}
	return vfs.LOCK_EXCLUSIVE + 1 // unknown
}

// SizeHint implements [vfs.FileSizeHint].
func (f *file) SizeHint(size int64) error {
	if h, ok := f.File.(vfs.FileSizeHint); ok {
		return full(h.SizeHint(size))
	}
	return sqlite3.NOTFOUND
}

// HasMoved implements [vfs.FileHasMoved].
func (f *file) HasMoved() (bool, error) {
	if m, ok := f.File.(vfs.FileHasMoved); ok {
		return m.HasMoved()
	}
	return false, sqlite3.NOTFOUND
}

// Unwrap implements [vfs.FileUnwrap].
func (f *file) Unwrap() vfs.File { return f.File }
