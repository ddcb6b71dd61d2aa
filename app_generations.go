package callback

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// generations are the running configurations of this process.
var generations generationList

// generationList knows which generations of the configuration run. The newest one has
// the admin API, the events, and the workers of its store. Caddy starts the next
// generation before it stops the last one, and may stop the new one at once if another
// app fails to start. So a generation is alive from the event that all apps have
// started until its Stop, and one that fails to start is never alive. While an exiting
// process waits for tasks in flight, its generations drain: they claim nothing, and
// still get events.
//
// Its methods may be called at once from several goroutines.
type generationList struct {
	change sync.Mutex // held while the list and the owners of stores change
	mu     sync.Mutex
	apps   []*App // the newest last
	alive  map[*App]bool
}

// add makes a generation alive.
func (l *generationList) add(a *App) {
	l.change.Lock()
	defer l.change.Unlock()
	l.mu.Lock()
	if l.alive == nil {
		l.alive = make(map[*App]bool)
	}
	l.apps, l.alive[a] = append(l.apps, a), true
	l.mu.Unlock()
	l.settleAll()
}

// drain makes a generation stop claiming. It may be called twice, and before add.
func (l *generationList) drain(a *App) {
	l.change.Lock()
	defer l.change.Unlock()
	l.mu.Lock()
	was := l.alive[a]
	delete(l.alive, a)
	l.mu.Unlock()
	if was {
		a.workers.stop()
		l.settleAll()
	}
}

// remove removes a draining generation from the list. It may be called twice, and
// before add.
func (l *generationList) remove(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = slices.DeleteFunc(l.apps, func(other *App) bool { return other == a })
}

// claims reports whether a generation is alive.
func (l *generationList) claims(a *App) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alive[a]
}

// newest returns the newest generation that is alive, or nil.
func (l *generationList) newest() *App {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range slices.Backward(l.apps) {
		if l.alive[a] {
			return a
		}
	}
	return nil
}

// newestRunning returns the newest generation that is alive or drains, or nil.
func (l *generationList) newestRunning() *App {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.apps) == 0 {
		return nil
	}
	return l.apps[len(l.apps)-1]
}

// usersOf returns the generations that are alive and use a store, oldest first.
func (l *generationList) usersOf(s *sharedStore) (users []*App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.apps {
		if l.alive[a] && a.store.Load() == s {
			users = append(users, a)
		}
	}
	return users
}

// settle makes the newest generation that uses a store its owner. It is called when a
// store has been opened.
func (l *generationList) settle(s *sharedStore) {
	l.change.Lock()
	defer l.change.Unlock()
	l.settleLocked(s)
}

func (l *generationList) settleAll() {
	openStores.Range(func(_, value any) bool {
		l.settleLocked(value.(*sharedStore))
		return true
	})
}

// settleLocked is settle for callers that hold l.change.
func (l *generationList) settleLocked(s *sharedStore) {
	var newest *App
	for _, newest = range l.usersOf(s) {
		newest.workers.start(newest)
	}
	if newest != s.owner {
		s.change(newest)
	}
}

// settleTimeout bounds how long an unresponsive store can block a reload.
const settleTimeout = 10 * time.Second

// change makes a generation the owner of the store: its settings, schedules and
// delivery options apply. Without an owner, nothing is claimed from the store. The
// caller holds generations.change.
func (s *sharedStore) change(owner *App) {
	s.owner = owner
	s.schedules.stop()
	if owner == nil {
		s.deliverer.Follow(nil)
		return
	}
	s.log.Store(owner.log)
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	if err := s.Reconfigure(ctx, owner.settings()); err != nil {
		owner.log.Error("applying the limits of the configuration failed; the previous ones apply", zap.Error(err))
	}
	s.schedules.start(owner)
	s.deliverer.Follow(owner.deliveries)
}
