package lifecycle

import "sync"

// Gate counts its users. Unlike a WaitGroup, it may be entered while another goroutine
// waits. The zero value has no users. Its methods may be called from several goroutines at
// once.
type Gate struct {
	mu     sync.Mutex
	inside int
	empty  chan struct{} // closed when the last user leaves; nil if nobody waits
}

// Enter adds a user.
func (g *Gate) Enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

// Leave removes a user.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// Wait returns when there are no users; new ones may enter afterwards.
func (g *Gate) Wait() {
	g.mu.Lock()
	if g.inside == 0 {
		g.mu.Unlock()
		return
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	<-empty
}
