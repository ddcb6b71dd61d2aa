package callback

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// eventNames are the events emitted to Caddy's events app, by the outcome of the last
// attempt of a delivery.
var eventNames = map[deliver.Outcome]string{
	deliver.Delivered: "callback_delivered",
	deliver.Dead:      alert.Dead,
}

// event is an event and its data, which contains no URL, secret or body.
type event struct {
	name string
	data map[string]any
}

// deliveryData describes a delivery that has ended.
func deliveryData(rec *task.Record) map[string]any {
	last := rec.LastAttempt()
	return map[string]any{
		"task_id": rec.ID, "status": string(rec.Status), "queue": rec.Queue, "callback_host": rec.CallbackHost,
		"attempts": rec.Tries, "upstream_status": rec.UpstreamStatus,
		"last_status_code": last.StatusCode, "last_error": last.Error,
	}
}

// hostData describes a failing host.
func hostData(host engine.HostState) map[string]any {
	return map[string]any{
		"callback_host": host.Host, "failures": host.Failures, "failing_since": host.FailingSince.Format(time.RFC3339Nano),
		"last_status": host.LastStatus, "last_error": host.LastError,
	}
}

// maxEvents bounds the events that wait in memory for slow handlers.
const maxEvents = 1024

// eventsGrace is how long a stopping generation waits for its event handlers. Then
// Caddy cancels them.
const eventsGrace = 5 * time.Second

// events emits the events of this process, in order and outside of the deliveries,
// because handlers may be slow. A delivery may outlive its generation, whose handlers
// are cleaned up by then. So an event goes to the newest generation at the time it is
// emitted, and waits while there is none.
var events eventQueue

// eventQueue passes events to the newest of [generations]. The zero value is ready to
// use. Its methods may be called from several goroutines at once.
type eventQueue struct {
	mu       sync.Mutex
	waiting  []event
	dropped  int
	emitting chan struct{} // closed when the emitting goroutine ends; nil if there is none
	busy     *App          // the generation whose handlers run, or nil
	handled  chan struct{} // closed when they return
}

// provisionEvents subscribes to Caddy's events. The events app takes subscriptions
// until all apps have started, and must not get an event before.
func (a *App) provisionEvents(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the events app: %w", err)
	}
	a.events = app.(*caddyevents.App)
	if err := a.events.On("started", &startedHandler{a}); err != nil {
		return fmt.Errorf("subscribing to events: %w", err)
	}
	return nil
}

// startedHandler handles the event that all apps have started.
type startedHandler struct{ app *App }

// Handle implements [caddyevents.Handler].
func (h *startedHandler) Handle(context.Context, caddy.Event) error {
	h.app.join()
	return nil
}

// resume emits the events that waited for a generation.
func (q *eventQueue) resume() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.start()
}

// leave returns a channel that is closed when no handler of a removed generation runs.
func (q *eventQueue) leave(a *App) (handled <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy == a {
		return q.handled
	}
	return closedChannel
}

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// idle returns a channel that is closed when no event waits.
func (q *eventQueue) idle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.emitting == nil {
		return closedChannel
	}
	return q.emitting
}

// endEvents ends this generation's events. It waits up to eventsGrace for the running
// handler and, if the process exits, for queued events.
func (a *App) endEvents() {
	grace := time.NewTimer(eventsGrace)
	defer grace.Stop()
	if caddy.Exiting() {
		select {
		case <-events.idle():
		case <-grace.C:
		}
	}
	generations.Remove(a)
	select {
	case <-events.leave(a):
	case <-grace.C:
	}
}

// add queues an event. It does not wait. data is called at once, unless no handler is
// subscribed.
func (q *eventQueue) add(name string, log *zap.Logger, data func() map[string]any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a := generations.NewestRunning(); a != nil && !a.events.ShouldEmit(name) {
		return // no handler is subscribed
	}
	if len(q.waiting) >= maxEvents {
		if q.dropped++; q.dropped == 1 {
			log.Warn("event handlers are too slow; events are dropped", zap.Int("waiting", maxEvents))
		}
		return
	}
	q.waiting = append(q.waiting, event{name, data()})
	q.start()
}

// start starts the emitting goroutine, unless it runs already. The caller holds q.mu.
func (q *eventQueue) start() {
	if q.emitting != nil || generations.NewestRunning() == nil || len(q.waiting) == 0 {
		return
	}
	q.emitting = make(chan struct{})
	go func() {
		for {
			a, e, ok := q.next()
			if !ok {
				return
			}
			a.emit(e)
		}
	}()
}

// next ends the current event and returns the next one, with its generation.
func (q *eventQueue) next() (*App, event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy != nil {
		q.busy = nil
		close(q.handled)
	}
	newest := generations.NewestRunning()
	if newest == nil || len(q.waiting) == 0 {
		close(q.emitting)
		q.emitting = nil
		return nil, event{}, false
	}
	e := q.waiting[0]
	q.busy, q.handled = newest, make(chan struct{})
	if q.waiting = q.waiting[1:]; len(q.waiting) == 0 {
		q.waiting = nil
		if q.dropped > 0 {
			q.busy.log.Warn("events were dropped", zap.Int("dropped", q.dropped))
			q.dropped = 0
		}
	}
	return q.busy, e, true
}

// emit passes an event to this generation's handlers.
func (a *App) emit(e event) {
	defer func() {
		// Outside of an HTTP request, a panic of a plugin would end the process.
		if cause := recover(); cause != nil {
			a.log.Error("event handler panicked", zap.String("event", e.name), zap.Any("panic", cause))
		}
	}()
	a.events.Emit(a.ctx, e.name, e.data)
}
