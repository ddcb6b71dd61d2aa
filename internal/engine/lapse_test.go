package engine

import (
	"context"
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
