// Package event emits events to the handlers of the newest generation of the
// configuration, in order and in the background, because handlers may be slow.
//
// A delivery can cause an event after its generation has ended and the handlers of that
// generation are cleaned up. So an event goes to the generation that is the newest when the
// event is emitted, and waits while there is none.
package event

import (
	"sync"

	"go.uber.org/zap"
)

// Handlers are the event handlers of a generation.
type Handlers struct {
	// Subscribed reports whether a handler is subscribed to the events of a name.
	Subscribed func(name string) bool
	// Emit calls the handlers that are subscribed. Data contains no URL, secret or body.
	Emit func(name string, data map[string]any)
	Log  *zap.Logger
}

// maxWaiting bounds the events that wait in memory for slow handlers.
const maxWaiting = 1024

// Queue emits the events of a process. Its methods may be called from several goroutines
// at once.
type Queue struct {
	newest func() *Handlers

	mu       sync.Mutex
	waiting  []event
	dropped  int
	emitting chan struct{} // closed when the emitting goroutine ends; nil if there is none
	busy     *Handlers     // the handlers that run, or nil
	handled  chan struct{} // closed when they return
}

type event struct {
	name string
	data map[string]any
}

// NewQueue returns an empty queue. newest returns the handlers of the newest generation
// that runs, or nil. It must not call the queue.
func NewQueue(newest func() *Handlers) *Queue { return &Queue{newest: newest} }

// Add queues an event. It does not wait. data is called at once, unless no handler is
// subscribed. If events are dropped, Add says so in log.
func (q *Queue) Add(name string, log *zap.Logger, data func() map[string]any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if h := q.newest(); h != nil && !h.Subscribed(name) {
		return
	}
	if len(q.waiting) >= maxWaiting {
		if q.dropped++; q.dropped == 1 {
			log.Warn("event handlers are too slow; events are dropped", zap.Int("waiting", maxWaiting))
		}
		return
	}
	q.waiting = append(q.waiting, event{name, data()})
	q.start()
}

// Resume emits the events that waited for a generation.
func (q *Queue) Resume() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.start()
}

// Leave returns a channel that is closed when none of the handlers runs. Their generation
// must no longer be the newest one, or they could be called again.
func (q *Queue) Leave(h *Handlers) (handled <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if h != nil && q.busy == h {
		return q.handled
	}
	return closed
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Idle returns a channel that is closed when no event is emitted and none can be.
func (q *Queue) Idle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.emitting == nil {
		return closed
	}
	return q.emitting
}

// start starts the emitting goroutine, unless it runs already. The caller holds q.mu.
func (q *Queue) start() {
	if q.emitting != nil || len(q.waiting) == 0 || q.newest() == nil {
		return
	}
	q.emitting = make(chan struct{})
	go func() {
		for {
			h, e, ok := q.next()
			if !ok {
				return
			}
			h.emit(e)
		}
	}()
}

// next ends the current event and returns the next one, with its handlers.
func (q *Queue) next() (*Handlers, event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy != nil {
		q.busy = nil
		close(q.handled)
	}
	newest := q.newest()
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
			newest.Log.Warn("events were dropped", zap.Int("dropped", q.dropped))
			q.dropped = 0
		}
	}
	return newest, e, true
}

// emit passes an event to the handlers.
func (h *Handlers) emit(e event) {
	defer func() {
		// Outside of an HTTP request, a panic of a plugin would end the process.
		if cause := recover(); cause != nil {
			h.Log.Error("event handler panicked", zap.String("event", e.name), zap.Any("panic", cause))
		}
	}()
	h.Emit(e.name, e.data)
}
