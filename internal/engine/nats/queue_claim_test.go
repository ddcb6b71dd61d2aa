package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A cluster's consumer hands out what its own server has stored, and the stream's
// leader may store it later: it then still has what the copy was made of. These
// tests make that with one server.

func TestACopyIsKeptWhileTheLeaseThatBecameItStands(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("a.example")
	lease := claim(t, e, rec) // as if it had lapsed, and became the copy
	enqueue(t, e, &rec, nil)
	if _, err := hand(t, e).Claim(t.Context(), rec, func() {}); !errors.Is(err, ErrHeld) {
		t.Fatalf("beside the lease the claim gave %v", err)
	}
	if err := lease.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := hand(t, e).Claim(t.Context(), rec, func() {}); err != nil {
		t.Errorf("when the lease was gone: %v", err)
	}
}

func TestALeaseOnThisCopyOrALaterOneDropsIt(t *testing.T) {
	t.Parallel()
	for on, dropped := range map[int]bool{-1: false, 0: true, 1: true} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			rec := queued("a.example")
			enqueue(t, e, &rec, nil)
			w := hand(t, e)
			other := &Lease{engine: e, rec: rec, lapse: queuedOn(&rec), copy: uint64(int(w.Sequence()) + on), lost: func() {}}
			if err := other.claim(t.Context()); err != nil {
				t.Fatal(err)
			}
			other.renew() // it is still on the same copy
			if _, err := w.Claim(t.Context(), rec, func() {}); !errors.Is(err, ErrHeld) {
				t.Fatalf("the claim gave %v", err)
			}
			if dropped {
				gone(t, e, liveStream, queuedSubject+">")
				return
			}
			if err := other.Drop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := hand(t, e).Claim(t.Context(), rec, func() {}); err != nil {
				t.Errorf("when the lease was gone: %v", err)
			}
		})
	}
}

func TestATaskRunsThoughSomebodyDroppedTheCopyForOurClaim(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("a.example")
	enqueue(t, e, &rec, nil)
	w := hand(t, e)
	// As who had the copy too does on seeing the claim, before we look.
	if err := e.link().live.DeleteMsg(t.Context(), w.Sequence()); err != nil {
		t.Fatal(err)
	}
	lease, err := w.Claim(t.Context(), rec, func() {})
	if err != nil {
		t.Fatalf("nobody else has it, and the claim gave %v", err)
	}
	rec.Status = task.Complete
	settle(t, lease, rec, nil)
}

func TestAClaimIsGivenUpOnlyIfTheTaskIsPastWaitingForCertain(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	for cause, left := range map[error]int{ErrHeld: 0, errBehind: 1, errors.New("no answer"): 1} {
		rec := queued("a.example")
		claim(t, e, rec).giveUp(t.Context(), cause)
		if n := stored(t, e, liveStream, leaseSubject+rec.ID); n != left {
			t.Errorf("because of %q %d leases are left", cause, n)
		}
	}
}

func TestACopyRunsThoughTheWaitThatBecameItStands(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		verdict task.Verdict // of what stands among the retries
		later   bool         // than the copy
		runs    bool
	}{
		"an older wait for another run": {runs: true},
		"a wait for yet another run":    {later: true},
		"a callback to be tried again":  {verdict: task.Complete},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			rec := queued("a.example")
			rec.Starts = 1
			other := rec
			other.Status = c.verdict
			retry := step{
				subject: retrySubject + rec.ID, rec: &other, at: time.Now().Add(time.Hour), target: queuedOn(&rec),
			}
			steps := []step{retry, {subject: queuedOn(&rec), rec: &rec}}
			if c.later {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, s := range steps {
				if _, err := e.publish(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			again := rec
			again.Starts++
			_, err := hand(t, e).Claim(t.Context(), again, func() {})
			switch {
			case c.runs && err != nil:
				t.Errorf("the claim gave %v", err)
			case !c.runs && !errors.Is(err, ErrHeld):
				t.Errorf("the claim gave %v", err)
			}
			gone(t, e, liveStream, queuedSubject+">")
		})
	}
}

func TestATaskThatRanSinceItWasFoundIsNotCanceled(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("a.example")
	enqueue(t, e, &rec, nil)
	found, err := e.Find(t.Context(), rec.ID)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := hand(t, e).Claim(t.Context(), rec, func() {})
	if err != nil {
		t.Fatal(err)
	}
	rec.Status = task.Complete
	settle(t, lease, rec, nil)
	if err := e.cancelQueued(t.Context(), found, "canceled"); !errors.Is(err, ErrHeld) {
		t.Errorf("to cancel it gave %v", err)
	}
	if err := e.Cancel(t.Context(), rec.ID, "canceled"); !errors.Is(err, ErrEnded) {
		t.Errorf("to cancel it once more gave %v", err)
	}
	if d := fetch(t, e); d.Record.Status != task.Complete {
		t.Errorf("its verdict is %s", d.Record.Status)
	}
}

func TestAQueueIsCountedWhenTheEngineWasOpenedAnew(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("a.example")
	enqueue(t, e, &rec, nil)
	q, err := e.Queue(t.Context(), "q")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := q.Waiting(t.Context()); err != nil || n != 1 {
		t.Errorf("%d tasks wait: %v", n, err)
	}
}

func TestATaskThatCannotBeGivenBackRunsAgainWhenItsLeaseLapses(t *testing.T) {
	t.Parallel()
	e := openTemp(t, 3*time.Second)
	rec := queued("a.example")
	enqueue(t, e, &rec, nil)
	l, err := hand(t, e).Claim(t.Context(), rec, func() {})
	if err != nil {
		t.Fatal(err)
	}
	away, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Requeue(away, &rec, time.Time{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("to give it back says %v", err)
	}
	deadline := time.Now().Add(time.Minute)
	for f, err := e.Find(t.Context(), rec.ID); f == nil || f.Record.State != task.Queued; f, err = e.Find(t.Context(), rec.ID) {
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("after a minute the task is %+v: %v", f, err)
		}
		<-time.After(10 * time.Millisecond)
	}
	if again := hand(t, e); again.Record().ID != rec.ID {
		t.Errorf("in the queue is %+v", again.Record())
	}
}
