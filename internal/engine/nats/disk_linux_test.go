package engine

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// unmeasured is a disk whose free space cannot be measured: a quota's, say.
func unmeasured(string) (free, total uint64, err error) { return 0, 0, errors.ErrUnsupported }

func TestADiskThatOverflowsIsSurvivedWithoutARestart(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store(), space: unmeasured})
		due, err := e.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		owed := make(map[string]bool)
		for range 50 {
			rec := record("c.example:443")
			settle(t, claim(t, e, rec), rec, make([]byte, 4<<10))
			owed[rec.ID] = true
		}
		inHand := fetchFrom(t, due)
		rec := record("c.example:443")
		running := claim(t, e, rec)
		owed[rec.ID] = true

		disk.fill(t, 0)
		eventually(t, "the full disk is noticed", func() bool {
			rec := record("c.example:443")
			if l, err := e.Claim(t.Context(), rec, func() {}); err == nil {
				if err := l.Drop(t.Context()); err != nil {
					t.Log(err)
				}
			}
			return e.Ready() != nil
		})
		disk.free(t)
		eventually(t, "the engine stores again", func() bool { return e.Ready() == nil })

		settle(t, running, rec, nil)
		if err := inHand.Done(t.Context()); err != nil {
			t.Error(err)
		}
		delete(owed, inHand.Record.ID)
		for len(owed) > 0 {
			d := fetchFrom(t, due)
			if !owed[d.Record.ID] || d.Record.Status != task.Complete {
				t.Errorf("due is %+v", d.Record)
			}
			delete(owed, d.Record.ID)
			if err := d.Done(t.Context()); err != nil {
				t.Error(err)
			}
		}
		gone(t, e, liveStream, "callback.due.>")
	})
}

// limitInodes leaves a disk room for n more files and folders, or no such limit.
func (d smallDisk) limitInodes(t *testing.T, n int) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.folder, &fs); err != nil {
		t.Fatal(err)
	}
	limit := uint64(0)
	if n >= 0 {
		limit = fs.Files - fs.Ffree + uint64(n)
	}
	if err := syscall.Mount("tmpfs", d.folder, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("nr_inodes=%d", limit)); err != nil {
		t.Fatal(err)
	}
}

// A server that is opened with room for some of its files is no better off.
func TestADiskThatRunsOutOfInodesIsSurvivedWithoutARestart(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 128<<20, func(t *testing.T, disk smallDisk) {
		core, logs := observer.New(zap.ErrorLevel)
		e := openOn(t, Config{Store: disk.store(), Logger: zap.New(core)})
		disk.limitInodes(t, 0)
		owed := make(map[string]bool)
		for e.Stores() == nil { // until there is no room for another file
			rec := record("c.example:443")
			l, err := e.Claim(t.Context(), rec, func() {})
			if err != nil {
				break
			}
			owed[rec.ID] = true
			rec.Status = task.Complete
			if err := l.Settle(t.Context(), &rec, make([]byte, 100<<10), false); err != nil {
				l.timer.Stop() // its holder died
			}
		}
		tries := logs.FilterMessageSnippet("cannot be opened anew yet")
		for n := range 3 {
			disk.limitInodes(t, n)
			before := tries.Len()
			eventually(t, "the engine is not opened", func() bool {
				tries = logs.FilterMessageSnippet("cannot be opened anew yet")
				return tries.Len() > before
			})
		}
		disk.limitInodes(t, -1)
		eventually(t, "the engine stores again", func() bool { return e.Ready() == nil })
		due, err := e.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for len(owed) > 1 { // the lease of the last lapses in a minute
			d := fetchFrom(t, due)
			delete(owed, d.Record.ID)
			if err := d.Done(t.Context()); err != nil {
				t.Error(err)
			}
		}
		for _, entry := range logs.FilterMessageSnippet("damaged").All() {
			t.Errorf("logged without need: %s %v", entry.Message, entry.ContextMap())
		}
	})
}
