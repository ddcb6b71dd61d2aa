package callback

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// The events that are emitted to Caddy's events app, by the outcome of the attempt
// that ended a delivery.
var eventNames = map[deliver.Outcome]string{
	deliver.Delivered: "callback_delivered",
	deliver.Dead:      "callback_dead",
}

// event describes a delivery that ended: never a URL, a secret or a body.
type event struct {
	name string
	data map[string]any
}

func newEvent(rec *task.Record, outcome deliver.Outcome) event {
	return event{eventNames[outcome], map[string]any{
		"task_id": rec.ID, "status": string(rec.Status), "queue": rec.Queue, "callback_host": rec.CallbackHost,
		"attempts": rec.Tries, "upstream_status": rec.UpstreamStatus,
	}}
}

// maxEvents bounds how many events wait in memory for a handler that is slow.
const maxEvents = 1024

// eventsGrace is how long a generation that stops waits for the handlers of its
// events. Caddy cancels them then.
const eventsGrace = 5 * time.Second

// events tells the handlers of events of this process, in order, beside the
// deliveries: a handler may take its time. A delivery may outlive the generation
// that began it, whose handlers are cleaned up by then; so an event goes to the
// generation that is there when its turn comes, and waits while there is none.
var events announcer

// announcer hands events to the newest of [generations]. The zero
// value is ready; its methods may be called at once from several goroutines.
type announcer struct {
	mu      sync.Mutex
	waiting []event
	dropped int
	telling chan struct{} // closed when the goroutine that tells ends; nil if none runs
	busy    *App          // whose handlers have an event; nil if nobody's have
	handled chan struct{} // closed when they are done with it
}

// provisionEvents finds Caddy's events app. It takes subscriptions until all
// apps have started, and must not be given an event before.
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

// startedHandler learns that all apps have started.
type startedHandler struct{ app *App }

// Handle implements [caddyevents.Handler].
func (h *startedHandler) Handle(context.Context, caddy.Event) error {
	h.app.join()
	return nil
}

// join makes this generation alive: it works on tasks, and events go to its
// handlers.
func (a *App) join() {
	generations.add(a)
	events.resume()
}

// resume goes on with events that waited for a generation.
func (n *announcer) resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tell()
}

// leave returns what is closed when the handlers of a generation that was removed
// have no event any more.
func (n *announcer) leave(a *App) (handled <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy == a {
		return n.handled
	}
	return closedChannel
}

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// idle returns what is closed when no event waits for its turn.
func (n *announcer) idle() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.telling == nil {
		return closedChannel
	}
	return n.telling
}

// endEvents ends this generation's events. One that is being handled has a while;
// if the process exits, so have those that wait.
func (a *App) endEvents() {
	grace := time.NewTimer(eventsGrace)
	defer grace.Stop()
	if caddy.Exiting() {
		select {
		case <-events.idle():
		case <-grace.C:
		}
	}
	generations.remove(a)
	select {
	case <-events.leave(a):
	case <-grace.C:
	}
}

// announce tells that a delivery has ended, as soon as the event's turn comes; it
// does not wait.
func (n *announcer) announce(rec *task.Record, outcome deliver.Outcome, log *zap.Logger) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := generations.newestRunning(); a != nil && !a.events.ShouldEmit(eventNames[outcome]) {
		return // nobody listens
	}
	if len(n.waiting) >= maxEvents {
		if n.dropped++; n.dropped == 1 {
			log.Warn("events are dropped: their handlers are too slow", zap.Int("waiting", maxEvents))
		}
		return
	}
	n.waiting = append(n.waiting, newEvent(rec, outcome))
	n.tell()
}

// tell begins to hand out what waits, unless that is being done. Caller holds
// n.mu.
func (n *announcer) tell() {
	if n.telling != nil || generations.newestRunning() == nil || len(n.waiting) == 0 {
		return
	}
	n.telling = make(chan struct{})
	go func() {
		for {
			a, e, ok := n.next()
			if !ok {
				return
			}
			a.emit(e)
		}
	}()
}

// next ends the event before and takes the next one that waits, and the
// generation that it is for.
func (n *announcer) next() (*App, event, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy != nil {
		n.busy = nil
		close(n.handled)
	}
	newest := generations.newestRunning()
	if newest == nil || len(n.waiting) == 0 {
		close(n.telling)
		n.telling = nil
		return nil, event{}, false
	}
	e := n.waiting[0]
	n.busy, n.handled = newest, make(chan struct{})
	if n.waiting = n.waiting[1:]; len(n.waiting) == 0 {
		n.waiting = nil
		if n.dropped > 0 {
			n.busy.log.Warn("events were dropped", zap.Int("dropped", n.dropped))
			n.dropped = 0
		}
	}
	return n.busy, e, true
}

// emit gives an event to this generation's handlers.
func (a *App) emit(e event) {
	defer func() {
		// Elsewhere a plugin's panic ends a request; here it would end the process.
		if cause := recover(); cause != nil {
			a.log.Error("event handler panicked", zap.String("event", e.name), zap.Any("panic", cause))
		}
	}()
	a.events.Emit(a.ctx, e.name, e.data)
}
