package engine

import (
	"errors"
	"testing"

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
