package engine

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// endQueued has a queue's task run, settled with a result, and delivered.
func endQueued(t *testing.T, e *Engine, rec task.Record, result []byte) {
	t.Helper()
	rec.StartedAt, rec.Status, rec.Error = time.Now().UTC(), task.Failed, "died"
	settle(t, claim(t, e, rec), rec, result)
	if err := fetch(t, e).Done(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// result reads the result of a task.
func result(t *testing.T, e *Engine, id string) ([]byte, error) {
	t.Helper()
	f, err := e.Find(t.Context(), id)
	if err != nil {
		return nil, err
	}
	body, err := f.OpenBody(t.Context())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestEndedTasksMakeRoomForNewOnesBeforeTheirTime(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		core, logs := observer.New(zap.InfoLevel)
		e := openOn(t, Config{Store: disk.store(), Logger: zap.New(core)})
		dead := record("c.example:443")
		settle(t, claim(t, e, dead), dead, []byte("kept"))
		if err := fetch(t, e).Dead(t.Context()); err != nil {
			t.Fatal(err)
		}
		live := record("c.example:443")
		settle(t, claim(t, e, live), live, []byte("owed"))
		owed := fetch(t, e)
		// Twice as much as the disk holds: whoever waits for a place gets one.
		first := ""
		for n := range 64 {
			eventually(t, "a task is accepted", func() bool { return e.Ready() == nil })
			rec := queued("c.example:443")
			endQueued(t, e, rec, make([]byte, 900<<10))
			if n == 0 {
				first = rec.ID
			}
		}
		if _, err := e.Find(t.Context(), first); !errors.Is(err, ErrNotFound) {
			t.Errorf("the oldest task was not dropped: %v", err)
		}
		if body, err := result(t, e, dead.ID); err != nil || string(body) != "kept" {
			t.Errorf("the dead task has %q, %v", body, err)
		}
		if body, err := result(t, e, live.ID); err != nil || string(body) != "owed" {
			t.Errorf("the task under way has %q, %v", body, err)
		}
		if err := owed.Done(t.Context()); err != nil {
			t.Error(err)
		}
		const told = "the disk of the store has little room: ended tasks, or their results, are dropped early"
		if n := logs.FilterMessage(told).Len(); n == 0 || n > 2 { // a reminder each minute
			t.Errorf("%q is logged %d times", told, n)
		}
		if n := logs.FilterMessage("the engine cannot store; requests for callbacks are refused").Len(); n > 0 {
			t.Errorf("the disk overflowed %d times", n)
		}
	})
}

func TestAResultThatWasDeliveredIsNotKeptInTheReserve(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		small, large := []byte("small"), bytes.Repeat([]byte("large"), 1<<20)
		awaitBallast(t, e)
		disk.fill(t, 7<<20)
		eventually(t, "the full disk is noticed", e.disk.tight.Load)
		if e.disk.isScarce() {
			t.Fatal("it is fuller than it should be")
		}
		for _, body := range [][]byte{small, large} {
			if len(body) > len(small) {
				disk.free(t)
				eventually(t, "the room is noticed", func() bool { return !e.disk.tight.Load() })
			}
			rec := queued("c.example:443")
			rec.StartedAt = time.Now().UTC()
			settle(t, claim(t, e, rec), rec, body)
			d := fetch(t, e)
			if len(body) > len(small) {
				disk.fill(t, 7<<20)
				eventually(t, "the full disk is noticed", e.disk.tight.Load)
			}
			end(t, e, d)
			if got, err := result(t, e, rec.ID); !errors.Is(err, ErrGone) {
				t.Errorf("of a result of %d bytes %d are left, and %v", len(body), len(got), err)
			}
			var refused *RefusedError
			if err := e.Redeliver(t.Context(), rec.ID); !errors.As(err, &refused) {
				t.Errorf("its redelivery ends with %v", err)
			}
		}
		if names := objects(t, e); len(names) > 0 {
			t.Errorf("bodies are left: %v", names)
		}
		// Nobody was told of this one, so that it is looked up.
		rec := queued("c.example:443")
		rec.Callback = nil
		endQueued(t, e, rec, small)
		if body, err := result(t, e, rec.ID); err != nil || !bytes.Equal(body, small) {
			t.Errorf("the result without a callback is %q, %v", body, err)
		}
	})
}

func TestAnAttemptThatFailsWritesNothingIntoTheReserve(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, []byte("owed"))
		awaitBallast(t, e)
		disk.fill(t, 7<<20)
		eventually(t, "the full disk is noticed", e.disk.tight.Load)
		due, err := e.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, move := range []func(*Delivery) error{
			func(d *Delivery) error { return d.Retry(t.Context(), time.Now()) },
			func(d *Delivery) error { return d.Hold(t.Context()) },
		} {
			d := fetchFrom(t, due)
			d.Record.AddAttempt(task.Attempt{StatusCode: 500})
			if err := move(d); err != nil {
				t.Fatal(err)
			}
			for _, place := range []string{retrySubject, heldSubject} {
				if n := stored(t, e, liveStream, place+">"); n > 0 {
					t.Errorf("%d messages were written below %s", n, place)
				}
			}
		}
		disk.free(t)
		eventually(t, "the room is noticed", func() bool { return !e.disk.tight.Load() })
		d := fetchFrom(t, due)
		if d.Record.ID != rec.ID || d.Record.Tries != 0 {
			t.Errorf("due is %+v", d.Record)
		}
		if err := d.Retry(t.Context(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if n := stored(t, e, liveStream, retrySubject+">"); n != 1 {
			t.Errorf("%d retries are stored once there is room", n)
		}
	})
}

func TestAttemptsThatFailAtOnceDoNotAllTakeTheSameRoom(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		const owed, size, room = 12, 600 << 10, 1 << 20
		for range owed {
			rec := record("c.example:443")
			settle(t, claim(t, e, rec), rec, make([]byte, size))
		}
		due, err := e.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var inHand []*Delivery
		for range owed {
			inHand = append(inHand, fetchFrom(t, due))
		}
		eventually(t, "what was stored is written", func() bool { return e.disk.unwritten() == 0 })
		awaitBallast(t, e)
		disk.fill(t, leastReserve+room)
		var group sync.WaitGroup
		for _, d := range inHand {
			group.Go(func() {
				if err := d.Retry(t.Context(), time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		// Who looks and who takes may pass each other, but hardly more than two of them.
		if n := stored(t, e, liveStream, retrySubject+">"); n < 1 || n > 2+room/size+1 {
			t.Errorf("%d tasks of %d bytes were written anew with %d bytes to do it in", n, size, room)
		}
	})
}

func TestABodyThatComesInTakesNothingOfTheReserve(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		rec := record("c.example:443")
		rec.Request = &task.Request{Method: "POST", URI: "/"}
		if err := e.StoreBody(t.Context(), &rec, bytes.NewReader(make([]byte, 30<<20))); !errors.Is(err, ErrFull) {
			t.Errorf("30 MiB on a disk of 32 are stored with %v", err)
		}
		if free, _, err := diskSpace(disk.folder); err != nil || free < leastReserve-(1<<20) {
			t.Errorf("then %d bytes are free, %v", free, err)
		}
		if err := e.Stores(); err != nil {
			t.Errorf("then the engine says %v", err)
		}
	})
}

func TestNewTasksAreRefusedWhileThoseUnderWayCanOutgrowTheDisk(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, c := range map[string]struct {
		free, total     uint64
		underWay        use
		wasLow          bool
		low, crowded    bool
		tight, isScarce bool
	}{
		"an empty store on a disk with room":      {free: 60 * mib, total: 64 * mib},
		"an empty store and no room":              {free: 3 * mib, total: 64 * mib, low: true, crowded: true, tight: true, isScarce: true},
		"room for what is under way once more":    {free: 40 * mib, total: 64 * mib, underWay: use{20 * mib, 20 * mib}},
		"no room for what is under way once more": {free: 27 * mib, total: 64 * mib, underWay: use{20 * mib, 20 * mib}, low: true, crowded: true},
		"room within what is under way":           {free: 20 * mib, total: 64 * mib, underWay: use{20 * mib, 35 * mib}},
		"more written anew than is under way":     {free: 13 * mib, total: 64 * mib, underWay: use{20 * mib, 50 * mib}},
		"a little room, for ended tasks to go":    {free: 11 * mib, total: 64 * mib, crowded: true},
		"a little room, after there was none":     {free: 9 * mib, total: 64 * mib, wasLow: true, low: true, crowded: true},
		"room enough, after there was none":       {free: 11 * mib, total: 64 * mib, wasLow: true, crowded: true},
		"a large disk":                            {free: 200 * mib, total: 1 << 40, underWay: use{50 * mib, 51 * mib}},
		"a large disk and its reserve":            {free: 40 * mib, total: 1 << 40, low: true, crowded: true, tight: true},
		"a tiny disk":                             {free: 6 * mib, total: 8 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(Config{Store: t.TempDir(), Logger: zap.NewNop(), space: func(string) (uint64, uint64, error) { return c.free, c.total, nil }})
			d.low.Store(c.wasLow)
			d.look(func(enough uint64) use {
				if c.underWay.messages < enough {
					return use{c.underWay.messages, c.underWay.messages}
				}
				return c.underWay
			})
			for _, state := range []struct {
				name      string
				got, want bool
			}{
				{"low", d.low.Load(), c.low}, {"crowded", d.crowded.Load(), c.crowded},
				{"tight", d.tight.Load(), c.tight}, {"scarce", d.isScarce(), c.isScarce},
			} {
				if state.got != state.want {
					t.Errorf("%s is %v", state.name, state.got)
				}
			}
		})
	}
}
