package callback

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// generations are the configurations of this process that run.
var generations generationList

// generationList knows which generations of the configuration run. It is the only
// place that does: the admin API, the events, and what works on the tasks of a store
// belong to the newest one. Caddy starts the next generation before it stops the
// last, and may stop it right away if another app does not start. So a generation
// is alive from the event that all apps have started until its Stop, and one that
// fails leaves no trace. While a process that exits waits for what is in flight,
// generations are draining: they claim nothing, and still get events.
//
// Its methods may be called at once from several goroutines.
type generationList struct {
	change sync.Mutex // held while the list changes and stores settle
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

// drain makes a generation stop claiming. It may be called twice, and without add.
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

// remove takes a generation that drains out of the list. It may be called twice,
// and without add.
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

// newest returns the newest generation that is alive, nil if there is none.
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

// newestRunning returns the newest generation that is alive or drains, nil if there
// is none.
func (l *generationList) newestRunning() *App {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.apps) == 0 {
		return nil
	}
	return l.apps[len(l.apps)-1]
}

// usersOf returns the generations that are alive and use a store, the newest last.
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

// settle makes the newest generation that uses a store the one whose settings
// hold there. It is called when a store has been opened.
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

// settleLocked is settle. Caller holds l.change.
func (l *generationList) settleLocked(s *sharedStore) {
	var newest *App
	for _, newest = range l.usersOf(s) {
		newest.workers.start(newest)
	}
	if newest != s.owner {
		s.change(newest)
	}
}

// settleTimeout keeps a store that does not answer from holding up a reload.
const settleTimeout = 10 * time.Second

// change makes a generation the one whose settings, schedules and delivery options
// hold in the store. With nil nothing is taken from the store. Caller holds
// generations.change.
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
		owner.log.Error("applying the limits of the configuration failed; the earlier ones hold", zap.Error(err))
	}
	s.schedules.start(owner)
	s.deliverer.Follow(owner.deliveries)
}
