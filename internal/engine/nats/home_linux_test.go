package engine

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// tombstone is how long the record is that says that another is deleted.
const tombstone = recordHeader + recordChecksum

// page is what a tmpfs gives to a file at once.
var page = os.Getpagesize()

// liveFiles is how long the files are of the stream of what is under way.
func liveFiles(e *Engine) int {
	return int(filesOf(filepath.Join(e.home.streams(), liveStream, "msgs")))
}

// pad stores something, so that a number of bytes is left in the last page of the
// file that the server writes to.
func pad(t *testing.T, e *Engine, rest int) {
	t.Helper()
	overhead := 0
	for range 5 {
		before := liveFiles(e)
		left := page - before%page
		if left == rest {
			return
		}
		size := (left - rest - overhead + 2*page) % page
		if _, err := e.link().js.Publish(t.Context(), probeSubject, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		overhead = liveFiles(e) - before - size
	}
	t.Fatalf("of the last page %d bytes are left, not %d", page-liveFiles(e)%page, rest)
}

// A lease that lapses on a disk that is full to the last byte may find just the room
// that its task needs. Then the server holds a lock while it notes that the lease is
// gone, fails, and waits for the same lock (nats-server 2.15.2, fileStore.PurgeEx).
func TestAServerThatHangsOnAFullDiskIsLeftBehind(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		const lease = 4 * time.Second
		core, logs := observer.New(zap.InfoLevel)
		e := openOn(t, Config{
			Store: disk.store(), space: unmeasured, LeaseTime: lease, patience: time.Second, Logger: zap.New(core),
		})
		owed := make(map[string]bool)
		die := func() {
			rec := record("c.example:443")
			l := claim(t, e, rec)
			l.timer.Stop() // its holder died
			owed[rec.ID] = true
		}
		lapsed := func() bool {
			info, err := e.link().live.Info(t.Context(), jetstream.WithSubjectFilter(dueSubject+">"))
			return err == nil && len(info.State.Subjects) == len(owed)
		}
		die()
		before := liveFiles(e)
		eventually(t, "the lease lapses", lapsed)
		need := liveFiles(e) - before - tombstone

		// As clients ask what became of their tasks. The server looks that up where it
		// reads what the engine sends.
		asking, stop := context.WithCancel(t.Context())
		defer stop()
		for range 20 {
			go func() {
				for id := record("c.example:443").ID; asking.Err() == nil; {
					_, _ = e.Find(asking, id) // nobody has it
					<-time.After(100 * time.Millisecond)
				}
			}()
		}

		left := logs.FilterMessageSnippet("a server that failed does not end")
		for round := 1; left.Len() == 0; round++ {
			if round > 10 {
				t.Fatal("the server does not hang")
			}
			die()
			pad(t, e, need+tombstone/2) // the times in a record are not of one length
			disk.fill(t, 0)
			<-time.After(lease)
			disk.free(t)
			// Nobody stores, and nobody is told of a delivery that does not come.
			eventually(t, "the lease has lapsed", func() bool { return e.Ready() == nil && lapsed() })
			left = logs.FilterMessageSnippet("a server that failed does not end")
		}
		due, err := e.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for len(owed) > 0 {
			d := fetchFrom(t, due)
			if d.Record.Status != task.Failed {
				t.Errorf("due is %+v", d.Record)
			}
			delete(owed, d.Record.ID)
			if err := d.Done(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}
