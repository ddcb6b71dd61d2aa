package encode

import (
	"context"
	"slices"
	"sync"
)

// budget is memory that encodings share. Destinations take turns, so that many large
// results for one destination delay each encoding for another by only one encoding.
type budget struct {
	mu      sync.Mutex
	all     int64
	free    int64
	waiting map[string][]*waiter // waiting encodings, by destination
	turns   []string             // destinations in waiting, the next one first
}

type waiter struct {
	need    int64
	granted chan struct{} // closed when the memory is reserved
}

// acquire waits until n bytes are free, or the whole budget if n is larger.
func (b *budget) acquire(ctx context.Context, destination string, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &waiter{need: min(n, b.all), granted: make(chan struct{})}
	b.mu.Lock()
	if b.waiting == nil {
		b.waiting = make(map[string][]*waiter)
	}
	if len(b.waiting[destination]) == 0 {
		b.turns = append(b.turns, destination)
	}
	b.waiting[destination] = append(b.waiting[destination], w)
	b.grant()
	b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.granted:
		b.free += w.need
	default:
		b.remove(destination, w)
	}
	b.grant() // others may have waited behind this one
	return ctx.Err()
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += min(n, b.all)
	b.grant()
}

// grant reserves memory for waiters while there is room. The caller holds b.mu.
func (b *budget) grant() {
	for len(b.turns) > 0 {
		destination := b.turns[0]
		w := b.waiting[destination][0]
		if w.need > b.free {
			return // smaller requests behind it must not starve it
		}
		b.free -= w.need
		close(w.granted)
		b.remove(destination, w)
		if len(b.waiting[destination]) > 0 {
			b.turns = append(b.turns[1:], destination)
		}
	}
}

// remove removes a waiter. The caller holds b.mu.
func (b *budget) remove(destination string, w *waiter) {
	rest := slices.DeleteFunc(b.waiting[destination], func(other *waiter) bool { return other == w })
	b.waiting[destination] = rest
	if len(rest) == 0 {
		delete(b.waiting, destination)
		b.turns = slices.DeleteFunc(b.turns, func(other string) bool { return other == destination })
	}
}
