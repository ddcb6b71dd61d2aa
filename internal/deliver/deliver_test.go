package deliver

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestJitterIsBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ wait, most time.Duration }{
		{time.Nanosecond, time.Nanosecond},
		{5 * time.Second, 6 * time.Second},
		{10 * time.Minute, 12 * time.Minute},
		{75 * time.Minute, 90 * time.Minute},
		{2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{24 * time.Hour, 24*time.Hour + 15*time.Minute},
	} {
		s := &Options{Retry: []time.Duration{test.wait}}
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

func TestRetryAfterExtendsRetrySchedule(t *testing.T) {
	t.Parallel()
	s := &Options{Retry: []time.Duration{time.Minute, 2 * time.Hour}}
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
			t.Errorf("attempt %d, Retry-After %v: %v, want %v to %v", test.tries, test.asked, got, test.least, test.most)
		}
	}
}

// ending is a delivery whose end is stored if err is nil.
type ending struct {
	engine.Delivery
	rec *task.Record
	err error
}

func (e ending) Record() *task.Record       { return e.rec }
func (e ending) Done(context.Context) error { return e.err }
func (e ending) Dead(context.Context) error { return e.err }

// observer records how deliveries ended.
type observer struct {
	Observer
	ended map[string]Outcome // by task ID
}

func (o observer) End(*task.Record, Outcome, *send.Answer, trace.Span) {}
func (o observer) Ended(rec *task.Record, outcome Outcome)             { o.ended[rec.ID] = outcome }

func TestOnlyStoredOutcomesAreObserved(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status int
		err    error
		want   Outcome
	}{
		"delivered":             {http.StatusOK, nil, Delivered},
		"dead":                  {http.StatusGone, nil, Dead},
		"delivered, not stored": {http.StatusOK, engine.ErrLost, ""},
		"dead, not stored":      {http.StatusGone, engine.ErrLost, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newTestDeliverer(t, nil)
			o := observer{ended: make(map[string]Outcome)}
			rec := &task.Record{Task: task.Task{ID: name}, Tries: 1}
			d.follows(&Options{Log: zap.NewNop(), Observer: o}, ending{rec: rec, err: test.err}, &send.Answer{Status: test.status}, nil)
			if got := o.ended[name]; got != test.want {
				t.Errorf("the delivery ended as %q, want %q", got, test.want)
			}
		})
	}
}

func newTestDeliverer(t *testing.T, e Engine) *Deliverer {
	return New(Config{
		Engine: e, Folder: t.TempDir(), Quit: t.Context(), Stopping: t.Context(),
		Hold: func() {}, Unhold: func() {}, Log: zap.NewNop,
	})
}

func TestNoAttemptWhileStoreIsUnavailable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &takeCounter{}
		d := newTestDeliverer(t, e)
		d.dispatcher.SetLimits(dispatch.Limits{})
		d.block(engine.ErrUnavailable)
		ctx, cancel := context.WithCancel(t.Context())
		d.loops.Go(func() { d.start(ctx) })
		d.due(engine.HostDue{HostState: engine.HostState{Host: "c.example:443"}, Due: 1}, time.Now())
		d.wake()
		<-time.After(time.Minute)
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
	Engine
	taken atomic.Int64
}

func (e *takeCounter) Take(_ context.Context, _ string, n int) ([]engine.Delivery, error) {
	e.taken.Add(int64(n))
	return nil, nil
}
