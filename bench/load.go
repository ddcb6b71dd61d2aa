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
// earlier responses. It opens connections as needed. It calls seen with the task ID of
// each response.
func steady(addr string, perSecond int, d time.Duration, status int, requests [][]byte, seen func(id string)) error {
	idle := make(chan *conn, 1024)
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	fail := func(err error) {
		mu.Lock()
		failed = errors.Join(failed, err)
		mu.Unlock()
	}
	began := time.Now()
	for i := range max(1, int(d.Seconds()*float64(perSecond))) {
		// If the machine was busy, requests that are late are sent at once.
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		request := requests[i%len(requests)]
		group.Go(func() {
			var c *conn
			select {
			case c = <-idle:
			default:
				var err error
				if c, err = dial(addr); err != nil {
					fail(err)
					return
				}
			}
			got, id, err := c.do(request)
			if err == nil && got != status {
				err = fmt.Errorf("the answer is %d, not %d", got, status)
			}
			if err != nil {
				fail(err)
				c.Close()
				return
			}
			if seen != nil {
				seen(id)
			}
			select {
			case idle <- c:
			default:
				c.Close()
			}
		})
	}
	group.Wait()
	close(idle)
	for c := range idle {
		c.Close()
	}
	return failed
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
