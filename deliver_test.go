package callback

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestJitterAddsUpToAFifthAndNeverMoreThanAQuarterOfAnHour(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ wait, most time.Duration }{
		{time.Nanosecond, time.Nanosecond},
		{5 * time.Second, 6 * time.Second},
		{10 * time.Minute, 12 * time.Minute},
		{75 * time.Minute, 90 * time.Minute},
		{2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{24 * time.Hour, 24*time.Hour + 15*time.Minute},
	} {
		s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(test.wait)}}}
		shortest, longest := 1000*time.Hour, time.Duration(0)
		for range 10_000 {
			wait := s.retryIn(1, new(send.Answer))
			shortest, longest = min(shortest, wait), max(longest, wait)
		}
		if shortest < test.wait || longest > test.most {
			t.Errorf("%v becomes %v to %v, not up to %v", test.wait, shortest, longest, test.most)
		}
		if spread := test.most - test.wait; longest-shortest < spread*9/10 {
			t.Errorf("%v becomes %v to %v, which is hardly spread", test.wait, shortest, longest)
		}
	}
}

func TestTheDefaultScheduleIsTheDocumentedOne(t *testing.T) {
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
		t.Errorf("the schedule is %v, not %v", got, want)
	}
}

func TestTheLongerOfScheduleAndRetryAfterCounts(t *testing.T) {
	t.Parallel()
	s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(time.Minute), caddy.Duration(2 * time.Hour)}}}
	for _, test := range []struct {
		tries              int
		asked, least, most time.Duration
	}{
		{1, 0, time.Minute, 72 * time.Second},
		{1, time.Second, time.Minute, 72 * time.Second},
		{1, time.Hour, time.Hour, time.Hour},
		{2, time.Hour, 2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{1, 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 365 * 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 1<<63 - 1, 24 * time.Hour, 24 * time.Hour},
	} {
		if got := s.retryIn(test.tries, &send.Answer{RetryAfter: test.asked}); got < test.least || got > test.most {
			t.Errorf("attempt %d, Retry-After %v: %v, not %v to %v", test.tries, test.asked, got, test.least, test.most)
		}
	}
}

// ending is a delivery whose end is stored, or fails with err.
type ending struct {
	engine.Delivery
	rec *task.Record
	err error
}

func (e ending) Record() *task.Record       { return e.rec }
func (e ending) Done(context.Context) error { return e.err }
func (e ending) Dead(context.Context) error { return e.err }

func TestOnlyWhatIsStoredIsAnnounced(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	metrics, err := newMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	store := &sharedStore{log: zap.NewNop(), givingBack: t.Context()}
	d := newDeliverer(store, t.TempDir())
	s := &sender{app: &App{metrics: metrics, log: zap.NewNop()}, opts: &Delivery{}}
	for name, test := range map[string]struct {
		status    int
		err       error
		announced string // the name of the event
	}{
		"delivered":             {http.StatusOK, nil, "callback_delivered"},
		"dead":                  {http.StatusGone, nil, "callback_dead"},
		"delivered, not stored": {http.StatusOK, engine.ErrLost, ""},
		"dead, not stored":      {http.StatusGone, engine.ErrLost, ""},
	} {
		t.Run(name, func(t *testing.T) {
			rec := &task.Record{Task: task.Task{ID: name}, Tries: 1}
			d.follows(s, ending{rec: rec, err: test.err}, &send.Answer{Status: test.status}, nil)
			if got := announced(name); got != test.announced {
				t.Errorf("the event is %q, not %q", got, test.announced)
			}
		})
	}
}

// announced takes a task's event from those that wait for a generation, of which
// there is none here, and returns its name.
func announced(id string) (name string) {
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

func TestNothingIsAttemptedWhileTheStoreStoresNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &takeCounter{}
		store := &sharedStore{Engine: e, log: zap.NewNop(), givingBack: t.Context(), quit: t.Context()}
		d := newDeliverer(store, t.TempDir())
		d.dispatcher.SetLimits(dispatch.Limits{})
		d.block(engine.ErrUnavailable)
		ctx, cancel := context.WithCancel(t.Context())
		d.loops.Go(func() { d.start(ctx) })
		d.due(engine.HostDue{HostState: engine.HostState{Host: "c.example:443"}, Due: 1}, time.Now())
		d.wake()
		time.Sleep(time.Minute)
		if n := e.taken.Load(); n != 0 {
			t.Errorf("%d deliveries are taken", n)
		}
		d.unblock()
		synctest.Wait()
		if n := e.taken.Load(); n == 0 {
			t.Error("none is taken once the store stores again")
		}
		cancel()
		d.loops.Wait()
	})
}

// takeCounter is an engine that has no deliveries.
type takeCounter struct {
	engine.Engine
	taken atomic.Int64
}

func (e *takeCounter) Take(_ context.Context, _ string, n int) ([]engine.Delivery, error) {
	e.taken.Add(int64(n))
	return nil, nil
}
