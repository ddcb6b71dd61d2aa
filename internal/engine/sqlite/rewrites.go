package sqlite

import (
	"errors"
	"io"
	"maps"
	"sync"

	"github.com/ncruces/go-sqlite3/vfs"
)

// rewrites makes an fsync that follows a failed one reliable. After an error the kernel
// marks pages as clean: the next fsync succeeds without writing them, and reads return
// them until they are evicted. SQLite continues with the data that it reads. After an
// error, the file therefore writes everything again that was written since the last
// successful fsync.
type rewrites struct {
	syncing sync.Mutex // held by an fsync

	mu      sync.Mutex     // held while the file is written
	blocks  map[int64]bool // written since the last successful fsync, by offset/rewriteBlock
	suspect bool           // an fsync failed
}

// rewriteBlock is the unit in which data is written again.
const rewriteBlock = 64 << 10

// written records a write. r.mu is held.
func (r *rewrites) written(off, n int64) {
	for b := off / rewriteBlock; b <= (off+n-1)/rewriteBlock; b++ {
		if r.blocks == nil {
			r.blocks = map[int64]bool{}
		}
		r.blocks[b] = true
	}
}

// distrust records that an fsync of the first size bytes may have failed.
func (r *rewrites) distrust(size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if size > 0 {
		r.written(0, size)
		r.suspect = true
	}
}

// sync makes all writes durable. It does nothing if there were none since the last call
// that succeeded: an fsync makes the disk empty its cache even then.
func (r *rewrites) sync(f vfs.File, flags vfs.SyncFlag) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	blocks, err := r.blocks, error(nil)
	if len(blocks) == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.suspect {
		err = again(f, blocks)
	}
	r.blocks = map[int64]bool{}
	r.mu.Unlock()
	if err == nil {
		err = f.Sync(flags)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspect = err != nil
	if err != nil {
		maps.Copy(r.blocks, blocks)
	}
	return err
}

// again rewrites blocks of a file.
func again(f vfs.File, blocks map[int64]bool) error {
	buffer := make([]byte, rewriteBlock)
	for b := range blocks {
		n, err := f.ReadAt(buffer, b*rewriteBlock)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := f.WriteAt(buffer[:n], b*rewriteBlock); n > 0 && err != nil {
			return err
		}
	}
	return nil
}
