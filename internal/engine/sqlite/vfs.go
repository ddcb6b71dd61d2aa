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
// the library loses, gives access to the log for syncs of our own, and writes the
// log a commit at a time.
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
		// Without this the end of a commit is padded, and cannot be recognized.
		f.gathers = f.DeviceCharacteristics()&vfs.IOCAP_POWERSAFE_OVERWRITE != 0
	}
	return f, flags, nil
}

// syncLog makes what is in the log durable, while the writer may gather a commit.
func (fs *fileSystem) syncLog() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.log == nil {
		return nil
	}
	return fs.log.rewrites.sync(fs.log.File, vfs.SYNC_NORMAL)
}

// rewriteLog makes the log durable even if another process's fsync of it failed.
// Nothing may be written to it meanwhile.
func (fs *fileSystem) rewriteLog() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.log == nil {
		return nil
	}
	size, err := fs.log.File.Size()
	if err != nil {
		return err
	}
	fs.log.rewrites.distrust(size)
	return fs.log.rewrites.sync(fs.log.File, vfs.SYNC_NORMAL)
}

// file is a file of a store's database.
type file struct {
	vfs.File
	fs *fileSystem

	// Of the log: SQLite writes each page, and a header before it, by itself. A
	// commit's are gathered and written at once, which is half of its cost.
	gathers  bool
	gathered []byte
	at       int64 // where they are to be written
	last     bool  // they end a commit

	rewrites rewrites
}

const (
	frameHeader = 24      // bytes before a page in the log
	maxGathered = 1 << 20 // bytes
)

// flush writes what was gathered. Nobody reads it before its commit is written.
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
		// The header of a commit's last page has the size of the database.
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
	return full(f.File.Truncate(size))
}

// Sync reports a full disk as any other failed fsync: pages may be lost. After an
// error it writes again what may be.
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
