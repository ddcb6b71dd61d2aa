package callback

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// addQueue makes a queue known to the app, while the configuration is
// provisioned, and returns its options.
func (a *App) addQueue(q *TaskQueue) (*QueueOptions, error) {
	if first := a.queues[q.Name]; first != nil && first.told == q.told {
		// One site block that two servers serve, with and without encryption: both
		// accept tasks, and the first runs them.
		return first.opts, nil
	} else if first != nil {
		return nil, fmt.Errorf("the queue %s is defined twice, with different blocks; give one of them another name", q.Name)
	}
	a.queues[q.Name] = q
	opts := a.Queues[q.Name]
	if opts == nil {
		opts = new(QueueOptions)
		opts.provision()
	}
	return opts, nil
}

// linkQueues finds out which callback handlers are before each queue.
func (a *App) linkQueues() error {
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		for _, server := range app.(*caddyhttp.App).Servers {
			if _, err := (&linker{named: server.NamedRoutes}).link(server.Routes, nil); err != nil {
				return err
			}
		}
	}
	for _, q := range a.queues {
		a.metrics.queueOpened(q.Name, q.opts)
	}
	a.warnOfIdleSchedules()
	return a.setSchedules()
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

// workers run the jobs of a generation's queues.
type workers struct {
	mu     sync.Mutex
	loops  sync.WaitGroup
	cancel context.CancelFunc // nil while they do not run
}

// start begins to take jobs, if the app's store is open. It may be called again.
func (w *workers) start(a *App) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := a.store.Load()
	if s == nil || w.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	for _, q := range a.queues {
		w.loops.Go(func() { q.work(ctx, s) })
	}
}

// stop stops taking jobs; those that run go on. It may be called again.
func (w *workers) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.loops.Wait()
	w.cancel = nil
}

// slots bound how many tasks of a queue run at once on this node. The generations
// of a configuration that overlap share them: a reload must not put a second
// task beside the one that fills the machine.
type slots struct {
	mu    sync.Mutex
	taken int
	given chan struct{} // closed when some are given back
}

// slotsOf returns the slots of a queue on this node.
func (s *sharedStore) slotsOf(queue string) *slots {
	all, _ := s.slots.LoadOrStore(queue, &slots{given: make(chan struct{})})
	return all.(*slots)
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
