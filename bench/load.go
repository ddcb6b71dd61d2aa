package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is the result of a round.
type load struct {
	n       int
	elapsed time.Duration
	waits   []time.Duration // for the responses, sorted
}

func (l load) rate() float64 { return float64(l.n) / l.elapsed.Seconds() }

func (l load) quantile(q float64) time.Duration { return quantile(l.waits, q) }

// quantile returns a quantile of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// closed sends requests for a duration. Each client sends the next request when it has
// the response to the previous one.
func closed(addr string, clients int, d time.Duration, status int, request []byte) (load, error) {
	end := time.Now().Add(d)
	return run(addr, clients, status, request, func() bool { return time.Now().Before(end) })
}

// count is closed for n requests.
func count(addr string, clients, n, status int, request []byte) (load, error) {
	var sent atomic.Int64
	return run(addr, clients, status, request, func() bool { return sent.Add(1) <= int64(n) })
}

func run(addr string, clients, status int, request []byte, more func() bool) (load, error) {
	waits := make([][]time.Duration, clients)
	errs := make([]error, clients)
	var group sync.WaitGroup
	start := time.Now()
	for i := range clients {
		group.Go(func() {
			c, err := dial(addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			for more() {
				began := time.Now()
				got, _, err := c.do(request)
				if err == nil && got != status {
					err = fmt.Errorf("the answer is %d, not %d", got, status)
				}
				if err != nil {
					errs[i] = err
					return
				}
				waits[i] = append(waits[i], time.Since(began))
			}
		})
	}
	group.Wait()
	l := load{elapsed: time.Since(start), waits: slices.Concat(waits...)}
	l.n = len(l.waits)
	slices.Sort(l.waits)
	return l, errors.Join(errs...)
}

// steady sends requests in turn, at a constant rate for a duration, without waiting for
// earlier responses. It calls seen with the task ID of each response.
func steady(addr string, perSecond int, d time.Duration, status int, requests [][]byte, seen func(id string)) error {
	p := newPool(addr)
	defer p.close()
	return atRate(perSecond, d, func(i int) error {
		id, err := p.do(requests[i%len(requests)], status)
		if err == nil && seen != nil {
			seen(id)
		}
		return err
	})
}

// sentIn returns how many calls atRate makes.
func sentIn(d time.Duration, perSecond int) int { return max(1, int(d.Seconds()*float64(perSecond))) }

// atRate calls f at a constant rate for a duration, each time in a goroutine of its own.
// It returns when all calls have ended.
func atRate(perSecond int, d time.Duration, f func(i int) error) error {
	errs := make([]error, sentIn(d, perSecond))
	var group sync.WaitGroup
	began := time.Now()
	for i := range errs {
		// If the machine was busy, calls that are late are made at once.
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		group.Go(func() { errs[i] = f(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// pool has the idle connections to an address. It opens connections as needed.
type pool struct {
	addr string
	idle chan *conn
}

func newPool(addr string) *pool { return &pool{addr, make(chan *conn, 1024)} }

// do sends a request whose response must have the status. It returns the task's ID, if
// the response has one.
func (p *pool) do(request []byte, status int) (id string, err error) {
	var c *conn
	select {
	case c = <-p.idle:
	default:
		if c, err = dial(p.addr); err != nil {
			return "", err
		}
	}
	got, id, err := c.do(request)
	if err == nil && got != status {
		err = fmt.Errorf("the answer is %d, not %d", got, status)
	}
	if err != nil {
		c.Close()
		return "", err
	}
	select {
	case p.idle <- c:
	default:
		c.Close()
	}
	return id, nil
}

// close closes the idle connections. No request may follow.
func (p *pool) close() {
	close(p.idle)
	for c := range p.idle {
		c.Close()
	}
}

// stamps records a time for each task.
type stamps struct {
	mu sync.Mutex
	at map[string]time.Time
}

func newStamps() *stamps { return &stamps{at: make(map[string]time.Time)} }

// mark records the current time, unless the task already has one.
func (s *stamps) mark(id string) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.at[id]; !ok {
		s.at[id] = now
	}
}

// reset removes all times.
func (s *stamps) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.at)
}

func (s *stamps) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.at)
}

// since returns, sorted, how long after its time in from each task's time in s was.
// Negative durations count as zero.
func (s *stamps) since(from *stamps) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	from.mu.Lock()
	defer from.mu.Unlock()
	var waits []time.Duration
	for id, at := range s.at {
		if began, ok := from.at[id]; ok {
			waits = append(waits, max(0, at.Sub(began)))
		}
	}
	slices.Sort(waits)
	return waits
}

// patience is how long the program waits for a number that does not change.
const patience = 5 * time.Minute

// awaitAll waits until f returns n. It fails if the number stops growing.
func awaitAll(what string, n int, f func() int) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	last, moved := -1, time.Now()
	for range tick.C {
		have := f()
		if have >= n {
			return nil
		}
		if have != last {
			last, moved = have, time.Now()
		}
		if time.Since(moved) > patience {
			return fmt.Errorf("%s: %d of %d, and no more come", what, have, n)
		}
	}
	return nil
}
