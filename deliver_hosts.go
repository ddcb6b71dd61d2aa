package callback

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// hosts says whose turn it is: how many attempts are made at once, and how many
// of them to one host.
//
// Three rules keep bad hosts from taking every attempt there is. A host gets
// per_host attempts at most. One that has not answered lately gets an eighth of
// that, and all such hosts together three quarters of all attempts: clients can
// name as many of them as they like. And of the last quarter no host gets more
// than an eighth of per_host.
//
// Who waits is served in the order in which it came. Methods may be called from
// several goroutines at once.
type hosts struct {
	mu          sync.Mutex
	concurrency int
	perHost     int
	all         map[string]*host // by the engine's token; those with attempts, or with one that waits
	running     int              // attempts at once
	mute        int              // of these, to hosts that have not answered lately
	answering   recent           // hosts that have
	waiting     list.List        // of *waiter
}

// host is one host and port that callbacks go to.
type host struct {
	running int
	waiting int
	silent  int  // attempts in a row that got no answer
	answers bool // has answered lately
}

func newHosts() *hosts { return &hosts{all: make(map[string]*host)} }

// turn is what can be done with a delivery: begin, or why not.
type turn int

const (
	begins turn = iota // and is counted in
	busy               // all attempts are taken
	full               // the host has all it may have
)

// setLimits sets how many attempts are made at once, and to one host.
func (hs *hosts) setLimits(concurrency, perHost int) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.concurrency, hs.perHost = concurrency, perHost
	hs.admit()
}

// turn says whether h may have one more attempt. Caller holds the lock.
func (hs *hosts) turn(h *host) turn {
	most := max(1, hs.concurrency*3/4)
	limit := hs.perHost
	if !h.answers || hs.running >= most {
		limit = max(1, hs.perHost/8)
	}
	switch {
	case h.running >= limit, !h.answers && hs.mute >= most:
		return full
	case hs.running >= hs.concurrency:
		return busy
	default:
		return begins
	}
}

// start counts an attempt in if the host may have one more now. Then leave must
// be called when it has ended.
func (hs *hosts) start(name string) turn {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.get(name)
	defer hs.forget(name, h)
	t := hs.turn(h)
	if t == begins {
		hs.count(h, 1)
	}
	return t
}

// waiter waits for its turn.
type waiter struct {
	host   *host
	begins chan struct{} // closed when it is counted in
}

// await is start for who can wait: it returns an error only if ctx ends first.
func (hs *hosts) await(ctx context.Context, name string) error {
	return hs.awaitUntil(ctx, name, nil)
}

// awaitFor is await for so long at most.
func (hs *hosts) awaitFor(ctx context.Context, name string, long time.Duration) error {
	timer := time.NewTimer(long)
	defer timer.Stop()
	return hs.awaitUntil(ctx, name, timer.C)
}

func (hs *hosts) awaitUntil(ctx context.Context, name string, late <-chan time.Time) error {
	hs.mu.Lock()
	h := hs.get(name)
	w := &waiter{host: h, begins: make(chan struct{})}
	place := hs.waiting.PushBack(w)
	h.waiting++
	hs.admit()
	hs.mu.Unlock()

	err := context.DeadlineExceeded
	select {
	case <-w.begins:
	case <-late:
	case <-ctx.Done():
		err = ctx.Err()
	}

	hs.mu.Lock()
	defer hs.mu.Unlock()
	defer hs.forget(name, h)
	h.waiting--
	select {
	case <-w.begins: // maybe just as the wait ended
		return nil
	default:
		hs.waiting.Remove(place)
		return err
	}
}

// admit gives those who wait their turn. Caller holds the lock.
func (hs *hosts) admit() {
	for e := hs.waiting.Front(); e != nil && hs.running < hs.concurrency; {
		w, next := e.Value.(*waiter), e.Next()
		if hs.turn(w.host) == begins {
			hs.count(w.host, 1)
			hs.waiting.Remove(e)
			close(w.begins)
		}
		e = next
	}
}

// heard notes whether an attempt to a host got an answer. It is called before
// leave.
func (hs *hosts) heard(name string, answered bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.get(name)
	switch {
	case answered:
		h.silent = 0
		hs.answering.add(name)
		if !h.answers {
			h.answers = true
			hs.mute -= h.running
		}
	default:
		h.silent++
		if h.answers && h.silent >= hs.perHost {
			hs.answering.remove(name)
			h.answers = false
			hs.mute += h.running
		}
	}
}

// isMute says whether a host with attempts has not answered lately.
func (hs *hosts) isMute(name string) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.get(name)
	defer hs.forget(name, h)
	return !h.answers
}

// leave counts an attempt out.
func (hs *hosts) leave(name string) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.get(name)
	hs.count(h, -1)
	hs.forget(name, h)
	hs.admit()
}

func (hs *hosts) count(h *host, n int) {
	h.running += n
	hs.running += n
	if !h.answers {
		hs.mute += n
	}
}

func (hs *hosts) get(name string) *host {
	h := hs.all[name]
	if h == nil {
		h = &host{answers: hs.answering.has(name)}
		hs.all[name] = h
	}
	return h
}

// forget drops a host of which there is nothing to remember. Names come from
// clients; they must not pile up.
func (hs *hosts) forget(name string, h *host) {
	if h.running == 0 && h.waiting == 0 {
		delete(hs.all, name)
	}
}

// recent remembers the names added last: at least maxRecent of them, at most
// twice that.
type recent struct{ now, before map[string]struct{} }

const maxRecent = 5000

func (r *recent) has(name string) bool {
	_, now := r.now[name]
	_, before := r.before[name]
	return now || before
}

func (r *recent) add(name string) {
	if r.now == nil || len(r.now) >= maxRecent {
		r.now, r.before = make(map[string]struct{}), r.now
	}
	r.now[name] = struct{}{}
}

func (r *recent) remove(name string) {
	delete(r.now, name)
	delete(r.before, name)
}
