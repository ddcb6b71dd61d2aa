package sqlite

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/enginetest"
)

// TestConformance runs the conformance suite of all engines.
func TestConformance(t *testing.T) {
	t.Parallel()
	var disks sync.Map // by engine
	disk := func(e engine.Engine) *faultyDisk {
		d, _ := disks.Load(e)
		return d.(*faultyDisk)
	}
	enginetest.Run(t, enginetest.Opener{
		Open: func(t testing.TB, s *enginetest.Store) engine.Engine {
			t.Helper()
			d := &faultyDisk{VFS: vfs.Find("os")}
			e, err := Open(t.Context(), Config{
				Folder: s.Dir, Settings: s.Settings, vfs: d, holder: 1 + rand.Int64N(1<<62), free: d.free,
			})
			if err != nil {
				t.Fatal(err)
			}
			disks.Store(e, d)
			return e
		},
		// From here on nothing is written to the disk, as after kill -9.
		Kill: func(t testing.TB, e engine.Engine) {
			t.Helper()
			disk(e).fails.Store(true)
			if err := e.Close(context.Background()); err != nil {
				t.Errorf("ending a dead engine: %v", err)
			}
		},
		Full: func(_ testing.TB, _ *enginetest.Store, e engine.Engine) (undo func()) {
			disk(e).isFull.Store(true)
			return func() { disk(e).isFull.Store(false) }
		},
		Unavailable: func(_ testing.TB, _ *enginetest.Store, e engine.Engine) (undo func()) {
			disk(e).fails.Store(true)
			return func() { disk(e).fails.Store(false) }
		},
	})
}

// faultyDisk is a disk whose writes or fsyncs fail, or that reports that it is full.
type faultyDisk struct {
	vfs.VFS
	fails, isFull atomic.Bool
	syncFails     atomic.Bool            // only fsync fails
	noSpace       atomic.Bool            // writes fail, as on a full disk
	atSync        atomic.Pointer[func()] // called once, by the next fsync
}

var errWrite = errors.New("input/output error")

func (d *faultyDisk) free(folder string) (int64, error) {
	if d.isFull.Load() {
		return 0, nil
	}
	return freeSpace(folder)
}

// OpenFilename implements [vfs.VFSFilename].
func (d *faultyDisk) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	inner, flags, err := d.VFS.(vfs.VFSFilename).OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	return &faultyFile{file: &file{File: inner, fs: new(fileSystem)}, disk: d}, flags, nil
}

// faultyFile is a file on a faultyDisk.
type faultyFile struct {
	*file
	disk *faultyDisk
}

func (f *faultyFile) fail(code sqlite3.ExtendedErrorCode) error {
	if f.disk.fails.Load() {
		return vfs.SystemError(errWrite, code)
	}
	return nil
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fail(sqlite3.IOERR_WRITE); err != nil {
		return 0, err
	}
	if f.disk.noSpace.Load() {
		return 0, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	return f.file.WriteAt(p, off)
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.fail(sqlite3.IOERR_TRUNCATE); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func (f *faultyFile) Sync(flags vfs.SyncFlag) error {
	if err := f.fail(sqlite3.IOERR_FSYNC); err != nil {
		return err
	}
	if call := f.disk.atSync.Swap(nil); call != nil {
		(*call)()
	}
	if f.disk.syncFails.Load() {
		return vfs.SystemError(errWrite, sqlite3.IOERR_FSYNC)
	}
	return f.file.Sync(flags)
}
