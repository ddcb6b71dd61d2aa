package callback

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// addQueue makes a queue known to the app, while the configuration is
// provisioned, and returns its options.
func (a *App) addQueue(q *TaskQueue) (*QueueOptions, error) {
	if first := a.queues[q.Name]; first != nil && first.told == q.told {
		// One site block that two servers serve, with and without encryption.
		first.twins = append(first.twins, q)
		return first.opts, nil
	} else if first != nil {
		return nil, fmt.Errorf("the queue %s stands there twice; which block its tasks run would be anybody's guess", q.Name)
	}
	a.queues[q.Name] = q
	opts := a.Queues[q.Name]
	if opts == nil {
		opts = new(QueueOptions)
		opts.provision()
	}
	return opts, nil
}

// openQueues finds out what stands before each queue, opens it and sets its
// schedules.
func (a *App) openQueues(e *engine.Engine) error {
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		for _, server := range app.(*caddyhttp.App).Servers {
			if _, err := (&linker{named: server.NamedRoutes}).link(server.Routes, nil); err != nil {
				return err
			}
		}
	}
	for _, q := range a.queues {
		var err error
		if q.queue, err = e.Queue(a.ctx, q.Name); err != nil {
			return err
		}
		q.slots = slotsOf(a.key(), q.Name)
		a.metrics.queueOpened(q.Name, q.opts)
		for _, twin := range q.twins {
			twin.queue, twin.slots, twin.depth = q.queue, q.slots, q.depth
		}
	}
	a.warnOfIdleSchedules()
	return a.setSchedules(e)
}

// setSchedules makes the schedules of the configuration those of the engine.
func (a *App) setSchedules(e *engine.Engine) error {
	var schedules []engine.Schedule
	for _, q := range a.queues {
		own, err := q.schedules()
		if err != nil {
			return err
		}
		schedules = append(schedules, own...)
	}
	return e.SetSchedules(a.ctx, schedules)
}

// linker tells the callback handlers and the queues of a server of each other.
// Whose profiles differ cannot serve one client.
type linker struct {
	named   map[string]*caddyhttp.Route
	invoked []string // those of named that it is in: they may invoke each other
}

// link walks through routes in the order in which a request would. It is given
// the callback handlers that a request may have passed before them, and returns
// those that it may have passed after them.
func (l *linker) link(routes caddyhttp.RouteList, fronts []*Handler) ([]*Handler, error) {
	var last caddyhttp.MiddlewareHandler // after which this one follows for sure
	groups := make(map[string][]*Handler)
	for _, route := range routes {
		if len(route.MatcherSets) > 0 || route.Group != "" {
			last = nil
		}
		// Of a group's routes a request takes one.
		passed := slices.DeleteFunc(slices.Clone(fronts), func(h *Handler) bool { return slices.Contains(groups[route.Group], h) })
		before := len(passed)
		for _, handler := range route.Handlers {
			var err error
			if passed, err = l.linkHandler(handler, last, passed); err != nil {
				return nil, err
			}
			last = handler
		}
		if route.Terminal {
			last = nil
			continue
		}
		fronts = append(slices.Clip(fronts), passed[before:]...)
		if route.Group != "" {
			groups[route.Group] = append(groups[route.Group], passed[before:]...)
		}
	}
	return fronts, nil
}

// linkHandler is link for one handler, that follows after last for sure.
func (l *linker) linkHandler(handler, last caddyhttp.MiddlewareHandler, fronts []*Handler) ([]*Handler, error) {
	switch handler := handler.(type) {
	case *Handler:
		return append(slices.Clip(fronts), handler), nil
	case *TaskQueue:
		if err := handler.linkFronts(fronts); err != nil {
			return nil, err
		}
		if handler.front != nil && last == handler.front {
			handler.front.hands.Store(true)
		}
	case *caddyhttp.Subroute:
		return l.link(handler.Routes, fronts)
	case *caddyhttp.Invoke:
		route := l.named[handler.Name]
		if route == nil || slices.Contains(l.invoked, handler.Name) {
			break
		}
		l.invoked = append(l.invoked, handler.Name)
		defer func() { l.invoked = l.invoked[:len(l.invoked)-1] }()
		return l.link(caddyhttp.RouteList{*route}, fronts)
	}
	return fronts, nil
}

// linkFronts tells the queue of the nearest of the callback handlers before it,
// and all of them of the queue: the first that finds a callback makes the task.
func (q *TaskQueue) linkFronts(fronts []*Handler) error {
	for _, front := range fronts {
		front.leads.Store(true)
	}
	if len(fronts) == 0 {
		return nil
	}
	q.front = fronts[len(fronts)-1]
	if q.Profile != "" && q.Profile != q.front.Profile {
		return fmt.Errorf("the queue %s has the profile %s, and the callback before it %s; both need the same",
			q.Name, q.Profile, cmp.Or(q.front.Profile, "none"))
	}
	return nil
}

// holdsCallback says whether a callback handler is among those of routes.
func holdsCallback(routes caddyhttp.RouteList) bool {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			switch handler := handler.(type) {
			case *Handler:
				return true
			case *caddyhttp.Subroute:
				if holdsCallback(handler.Routes) {
					return true
				}
			}
		}
	}
	return false
}

// startWorkers begins to run the queues' tasks.
func (a *App) startWorkers() {
	var ctx context.Context
	ctx, a.stopWorkers = context.WithCancel(context.Background())
	for _, q := range a.queues {
		a.workers.Go(func() { q.work(ctx) })
	}
}

// endWorkers stops taking tasks; those that run go on. It may be called twice, and
// without startWorkers.
func (a *App) endWorkers() {
	if a.stopWorkers == nil {
		return
	}
	a.stopWorkers()
	a.workers.Wait()
}

// slots bound how many tasks of a queue run at once on this node. The generations
// of a configuration that overlap share them: a reload must not put a second
// task beside the one that fills the machine.
type slots struct {
	mu    sync.Mutex
	taken int
	given chan struct{} // closed when some are given back
}

// allSlots has the slots of every queue that this process has run.
var allSlots sync.Map

// slotsOf returns the slots of a queue in the engine of that key.
func slotsOf(engineKey, queue string) *slots {
	s, _ := allSlots.LoadOrStore([2]string{engineKey, queue}, &slots{given: make(chan struct{})})
	return s.(*slots)
}

// take waits until fewer than limit are taken, takes those that are left, and
// returns how many; 0 if ctx ends first.
func (s *slots) take(ctx context.Context, limit int) int {
	for ctx.Err() == nil {
		s.mu.Lock()
		n, given := limit-s.taken, s.given
		if n > 0 {
			s.taken = limit
			s.mu.Unlock()
			return n
		}
		s.mu.Unlock()
		select {
		case <-given:
		case <-ctx.Done():
		}
	}
	return 0
}

// give gives n slots back.
func (s *slots) give(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	close(s.given)
	s.given = make(chan struct{})
}
