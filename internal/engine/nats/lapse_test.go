package engine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// lapsed stores what the server would of a lease that it found lapsed just before
// its holder settled the task.
func lapsed(t *testing.T, e *Engine, rec task.Record) *Delivery {
	t.Helper()
	_, err := e.publish(t.Context(), step{subject: dueSubject + hostToken(rec.CallbackHost) + "." + rec.ID, rec: &rec})
	if err != nil {
		t.Fatal(err)
	}
	return fetch(t, e)
}

func TestALapseThatIsStoredAfterItsTaskWasSettledDoesNotCount(t *testing.T) {
	t.Parallel()
	for name, finish := range map[string]func(d *Delivery, ctx context.Context) error{
		"delivered":  (*Delivery).Done,
		"given up":   (*Delivery).Dead,
		"waits":      (*Delivery).Hold,
		"is retried": func(d *Delivery, ctx context.Context) error { return d.Retry(ctx, time.Now().Add(time.Hour)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			rec := record("c.example:443")
			settle(t, claim(t, e, rec), rec, []byte("the result"))
			if err := finish(fetch(t, e), t.Context()); err != nil {
				t.Fatal(err)
			}
			d := lapsed(t, e, rec)
			if counts, err := d.TakeLapsed(t.Context()); counts || err != nil {
				t.Errorf("it counts: %v, %v", counts, err)
			}
			gone(t, e, liveStream, dueSubject+">")
		})
	}
}

func TestALapseWaitsForWhatIsAttempted(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, []byte("the result"))
	first := fetch(t, e)
	if counts, err := lapsed(t, e, rec).TakeLapsed(t.Context()); counts || err != nil {
		t.Errorf("it counts: %v, %v", counts, err)
	}
	if err := first.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	if counts, err := fetch(t, e).TakeLapsed(t.Context()); counts || err != nil { // it came again
		t.Errorf("it counts: %v, %v", counts, err)
	}
	gone(t, e, liveStream, dueSubject+">")
}

func TestALapseOfATaskThatNobodySettledCounts(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	if counts, err := lapsed(t, e, record("c.example:443")).TakeLapsed(t.Context()); !counts || err != nil {
		t.Errorf("it counts: %v, %v", counts, err)
	}
}

func TestAHolderThatWasPausedDoesNotSettleBeforeTheLapseThatWasSeen(t *testing.T) {
	t.Parallel()
	for name, pause := range map[string]func(renewed time.Time) time.Time{
		"the process": func(renewed time.Time) time.Time { return renewed.Add(-time.Minute) },
		"the clock":   func(renewed time.Time) time.Time { return renewed.Round(0).Add(-time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			rec := record("c.example:443")
			l := claim(t, e, rec)
			l.mu.Lock()
			l.renewed = pause(l.renewed)
			l.mu.Unlock()
			before := leaseOf(t, e, rec.ID)
			settled := make(chan error, 1)
			complete := rec
			complete.Status, complete.Error, complete.Result = task.Complete, "", new(task.Result)
			go func() { settled <- l.Settle(t.Context(), &complete, nil, false) }()
			for leaseOf(t, e, rec.ID) == before { // until it has been renewed
				select {
				case err := <-settled:
					t.Fatalf("settling returned %v, and the lease was not renewed", err)
				default:
				}
			}
			// What the server stores of a lease that it found lapsed before that.
			if _, err := e.publish(t.Context(), step{
				subject: l.lapse, rec: &rec, fence: l.subject(), seq: leaseOf(t, e, rec.ID), purge: true,
			}); err != nil {
				t.Fatal(err)
			}
			if err := <-settled; !errors.Is(err, ErrLost) {
				t.Errorf("settling returned %v, not ErrLost", err)
			}
			if d := fetch(t, e); d.Record.Status != task.Failed {
				t.Errorf("the verdict is %s", d.Record.Status)
			}
		})
	}
}

func TestAHolderThatWasPausedSettlesIfNothingHasLapsed(t *testing.T) {
	t.Parallel()
	e := openTemp(t, 3*time.Second)
	rec := record("c.example:443")
	l := claim(t, e, rec)
	l.mu.Lock()
	l.renewed = l.renewed.Add(-time.Minute)
	l.mu.Unlock()
	settle(t, l, rec, nil)
	if d := fetch(t, e); d.Record.Status != task.Complete {
		t.Errorf("the verdict is %s", d.Record.Status)
	}
}

// leaseOf returns the sequence of a task's lease.
func leaseOf(t *testing.T, e *Engine, id string) uint64 {
	t.Helper()
	msg, err := e.link().live.GetLastMsgForSubject(t.Context(), leaseSubject+id)
	if err != nil {
		t.Fatal(err)
	}
	return msg.Sequence
}
