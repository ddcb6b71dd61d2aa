// Package lifecycle has what outlives one configuration of a process: which generations
// of the configuration run, and who still uses what they share.
package lifecycle

import (
	"slices"
	"sync"
)

// Generations knows which generations of the configuration run. Caddy starts the next
// generation before it stops the last one, and may stop the new one at once if another app
// fails to start. So a generation is alive from the event that all apps have started until
// its Stop, and one that fails to start is never alive. While an exiting process waits for
// tasks in flight, its generations drain: they claim nothing, and still get events.
//
// The zero value is empty. Its methods may be called from several goroutines at once.
type Generations[G comparable] struct {
	mu    sync.Mutex
	list  []G // the newest last
	alive map[G]bool
}

// Add makes a generation alive.
func (l *Generations[G]) Add(g G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive == nil {
		l.alive = make(map[G]bool)
	}
	l.list, l.alive[g] = append(l.list, g), true
}

// Drain makes a generation draining, and reports whether it was alive.
func (l *Generations[G]) Drain(g G) (was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was = l.alive[g]
	delete(l.alive, g)
	return was
}

// Remove removes a draining generation. It may be called twice, and before Add.
func (l *Generations[G]) Remove(g G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(l.list, func(other G) bool { return other == g })
}

// IsAlive reports whether a generation is alive.
func (l *Generations[G]) IsAlive(g G) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alive[g]
}

// Alive returns the generations that are alive, oldest first.
func (l *Generations[G]) Alive() (alive []G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.list {
		if l.alive[g] {
			alive = append(alive, g)
		}
	}
	return alive
}

// Newest returns the newest generation that is alive, or the zero value.
func (l *Generations[G]) Newest() (newest G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range slices.Backward(l.list) {
		if l.alive[g] {
			return g
		}
	}
	return newest
}

// NewestRunning returns the newest generation that is alive or drains, or the zero value.
func (l *Generations[G]) NewestRunning() (newest G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) > 0 {
		newest = l.list[len(l.list)-1]
	}
	return newest
}
