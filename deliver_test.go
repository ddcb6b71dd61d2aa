package callback

import (
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestDefaultRetrySchedule(t *testing.T) {
	t.Parallel()
	o := new(Delivery)
	if err := o.provision(); err != nil {
		t.Fatal(err)
	}
	const s, m, h = time.Second, time.Minute, time.Hour
	want := []time.Duration{5 * s, 30 * s, 2 * m, 10 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h}
	got := make([]time.Duration, len(o.Retry))
	for i, wait := range o.Retry {
		got[i] = time.Duration(wait)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the schedule is %v, want %v", got, want)
	}
}

// A callback whose delivery window has ended counts as dead, like one whose last
// attempt has failed.
func TestExpiredCallbacksCountAsDead(t *testing.T) {
	t.Parallel()
	metrics, registry := newTestMetrics(t)
	o := attemptObserver{&App{metrics: metrics, log: zap.NewNop()}}
	o.Expired(&task.Record{Task: task.Task{ID: "expired"}})
	if got := queuedEvent("expired"); got != "callback_dead" {
		t.Errorf("the event is %q", got)
	}
	if n := gather(t, registry)[`deliveries_total{outcome="dead"}`]; n != 1 {
		t.Errorf("%v dead deliveries are counted", n)
	}
}

// queuedEvent removes a task's event from the queue of events, and returns its name. No
// generation takes it, because none runs here.
func queuedEvent(id string) (name string) {
	events.mu.Lock()
	defer events.mu.Unlock()
	events.waiting = slices.DeleteFunc(events.waiting, func(e event) bool {
		if e.data["task_id"] != id {
			return false
		}
		name = e.name
		return true
	})
	return name
}
