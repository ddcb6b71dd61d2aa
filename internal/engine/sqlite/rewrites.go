package sqlite

import (
	"errors"
	"io"
	"maps"
	"sync"

	"github.com/ncruces/go-sqlite3/vfs"
)

// rewrites makes an fsync after one that failed mean what it says. The kernel takes
// pages for written after an error: the next fsync succeeds and does not write them,
// while reads return them until they are evicted. SQLite goes on from what it reads.
// Thus what was written since the last fsync that succeeded is written again.
type rewrites struct {
	syncing sync.Mutex // held by an fsync

	mu      sync.Mutex     // held while the file is written
	blocks  map[int64]bool // written since the last fsync that succeeded, by offset/rewriteBlock
	last    int64          // of blocks, plus one: most writes go to the same
	suspect bool           // an fsync failed
}

// rewriteBlock is the granularity of what is written again.
const rewriteBlock = 64 << 10

// note notes a write. r.mu is held.
func (r *rewrites) note(off, n int64) {
	for b := off / rewriteBlock; b <= (off+n-1)/rewriteBlock; b++ {
		if r.last == b+1 {
			continue
		}
		if r.blocks == nil {
			r.blocks = map[int64]bool{}
		}
		r.blocks[b], r.last = true, b+1
	}
}

// distrust notes that an fsync of the first size bytes may have failed.
func (r *rewrites) distrust(size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if size > 0 {
		r.note(0, size)
		r.suspect = true
	}
}

func (r *rewrites) sync(f vfs.File, flags vfs.SyncFlag) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	blocks, err := r.blocks, error(nil)
	if r.suspect {
		err = again(f, blocks)
	}
	r.blocks, r.last = nil, 0
	r.mu.Unlock()
	if err == nil {
		err = f.Sync(flags)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspect = err != nil
	if err != nil {
		if r.blocks == nil {
			r.blocks = map[int64]bool{}
		}
		maps.Copy(r.blocks, blocks)
	}
	return err
}

// again writes blocks of a file once more.
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
