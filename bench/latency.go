package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// latencies measures how soon a callback is sent after the last byte of the endpoint's
// response, and how soon a queue's task starts after its 202. It does so at 200 tasks per
// second and at half of the rate that the machine can sustain, with evictions and
// checkpoints of the database in progress.
func latencies(b *bench) ([]row, error) {
	l, err := startLatency()
	if err != nil {
		return nil, err
	}
	defer l.close()
	rate, err := l.saturate(b)
	if err != nil {
		return nil, err
	}
	const low = 200
	half := max(1, int(rate/2))
	var rows []row
	var pause time.Duration
	for _, c := range []struct {
		what     string
		queue    bool
		rate     int
		share    float64 // of the time
		p50, p99 time.Duration
	}{
		{"endpoint's last byte to callback", false, low, 0.4, time.Millisecond, 5 * time.Millisecond},
		{"the same at half of the saturated rate", false, half, 0.5, 0, 10 * time.Millisecond},
		{"202 to start", true, low, 0.1, time.Millisecond, 5 * time.Millisecond},
	} {
		s, err := l.sustain(c.queue, c.rate, time.Duration(c.share*float64(b.long)))
		if err != nil {
			return nil, fmt.Errorf("%s, %d/s: %w: %s", c.what, c.rate, err, l.g.lastLog())
		}
		pause = max(pause, s.pause)
		slices.Sort(s.took)
		what := fmt.Sprintf("%s, %s/s", c.what, number(float64(c.rate)))
		rows = append(rows, within(what+", p50", quantile(s.took, 0.5), c.p50), within(what+", p99", quantile(s.took, 0.99), c.p99))
	}
	return append(rows, within(fmt.Sprintf("longest pause in %v", b.long), pause, 100*time.Millisecond)), nil
}

// within returns a row for a duration. A limit of zero means no target.
func within(what string, took, limit time.Duration) row {
	r := row{what: what, measured: number(millis(took)) + " ms"}
	if limit > 0 {
		r.target, r.met = "< "+number(millis(limit))+" ms", took < limit
	}
	return r
}

// latency is a gateway with an endpoint for waiting clients' tasks and one for a queue's.
type latency struct {
	*workload
	work    *peer
	queue   string // address of the queue's site
	entries []byte // a request for it
}

func startLatency() (*latency, error) {
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	l := &latency{entries: post("a", "/", "application/json", filler(200, ""))}
	if l.work, err = serve("127.0.0.1:0", ok("application/json", body)); err != nil {
		return nil, err
	}
	if l.queue, err = freeAddr(); err != nil {
		return nil, err
	}
	// Finished tasks are evicted all the time.
	l.workload, err = startWorkloadBeside(g, "retention 24h 1000", waitingSite, func(*workload) string {
		return siteAt(l.queue, "task_queue q {\nreverse_proxy "+l.work.addr+"\n}")
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	return l, nil
}

func (l *latency) close() {
	l.work.close()
	l.workload.close()
	l.g.remove()
}

// saturate returns the tasks per second that the machine can sustain.
func (l *latency) saturate(b *bench) (float64, error) {
	var rates []float64
	for i := range 3 {
		rate, err := l.round(b.round)
		if err != nil {
			return 0, err
		}
		if i > 0 { // the first round is a warm-up
			rates = append(rates, rate)
		}
	}
	return median(rates), nil
}

// sustain sends tasks at a rate for a duration, and returns how long they took.
func (l *latency) sustain(queue bool, rate int, d time.Duration) (*spans, error) {
	s := newSpans()
	addr, request, status, seen := l.site, l.request, 200, func(string) {}
	if queue {
		addr, request, status, seen = l.queue, l.entries, 202, s.begin
		l.work.observe(s.end, nil)
		defer l.work.observe(nil, nil)
	} else {
		l.app.observe(nil, s.begin)
		l.rcv.observe(s.end, nil)
		defer l.app.observe(nil, nil)
		defer l.rcv.observe(nil, nil)
	}
	if err := steady(addr, rate, d, status, [][]byte{request}, seen); err != nil {
		return nil, err
	}
	sent := max(1, int(d.Seconds()*float64(rate)))
	return s, awaitAll("tasks", sent, s.len)
}

// spans are times between two events of each task. It keeps only tasks for which one of
// the two is missing, because a map of all IDs would make the program pause.
type spans struct {
	mu    sync.Mutex
	open  map[string]time.Time
	took  []time.Duration
	last  time.Time     // of an end
	pause time.Duration // the longest between two ends
}

func newSpans() *spans { return &spans{open: make(map[string]time.Time)} }

// begin records the first event of a task. If it is recorded after the second one, the
// task took no time.
func (s *spans) begin(id string) { s.mark(id, false) }

// end records the second event of a task.
func (s *spans) end(id string) { s.mark(id, true) }

func (s *spans) mark(id string, end bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if end {
		if !s.last.IsZero() {
			s.pause = max(s.pause, now.Sub(s.last))
		}
		s.last = now
	}
	at, known := s.open[id]
	switch {
	case !known:
		s.open[id] = now
		return
	case end:
		s.took = append(s.took, now.Sub(at))
	default:
		s.took = append(s.took, 0)
	}
	delete(s.open, id)
}

func (s *spans) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.took)
}
