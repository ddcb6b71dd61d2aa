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
//
// Beside the first is an fsync, which each task waits for. Beside the second is a plain
// proxy whose client posts the result itself: this is the part of the latency that is due
// to the load program, which shares the cores, and to Caddy.
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
	var rows []row
	for _, c := range []struct {
		what         string
		rate         int
		share        float64 // of the time
		fsync        bool    // the target of the median is in addition to an fsync
		p50, p99     time.Duration
		ours, theirs sampler
		beside       string
	}{
		{"endpoint's last byte to callback", low, 0.4, true, time.Millisecond / 2, 5 * time.Millisecond, l.callbacks, l.disk.syncs, "fsync"},
		{"the same at half of the saturated rate", max(1, int(rate/2)), 0.5, false, 0, 10 * time.Millisecond, l.callbacks, l.plain, "plain"},
		{"a queue's 202 to the start of its task", low, 0.1, false, time.Millisecond, 5 * time.Millisecond, l.starts, nil, ""},
	} {
		ours, theirs, err := alternate(c.rate, c.ours, c.theirs, time.Duration(c.share*float64(b.long)), b.long/600)
		if err != nil {
			return nil, fmt.Errorf("%s, %d/s: %w: %s", c.what, c.rate, err, l.g.lastLog())
		}
		what := fmt.Sprintf("%s, %s/s", c.what, number(float64(c.rate)))
		p50, p99 := within(what+", p50", quantile(ours, 0.5), c.p50), within(what+", p99", quantile(ours, 0.99), c.p99)
		if c.theirs != nil {
			p50.against = number(millis(quantile(theirs, 0.5))) + " ms " + c.beside
			p99.against = number(millis(quantile(theirs, 0.99))) + " ms " + c.beside
		}
		if c.fsync {
			p50.target = "< fsync + " + number(millis(c.p50)) + " ms"
			p50.met = quantile(ours, 0.5) < quantile(theirs, 0.5)+c.p50
		}
		rows = append(rows, p50, p99)
	}
	return append(rows, within(fmt.Sprintf("longest time without a task in %v", b.long), l.pause, 100*time.Millisecond)), nil
}

// sampler measures latencies at a rate for a duration.
type sampler func(rate int, d time.Duration) ([]time.Duration, error)

// alternate measures ours for a duration, in parts. Before each it measures theirs, if
// there is one, because the speed of a disk changes within minutes. The latencies are
// sorted.
func alternate(rate int, ours, theirs sampler, d, each time.Duration) (took, beside []time.Duration, err error) {
	const parts = 5
	for range parts {
		if theirs != nil {
			more, err := theirs(rate, each)
			if err != nil {
				return nil, nil, err
			}
			beside = append(beside, more...)
		}
		more, err := ours(rate, d/parts)
		if err != nil {
			return nil, nil, err
		}
		took = append(took, more...)
	}
	slices.Sort(took)
	slices.Sort(beside)
	return took, beside, nil
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
	disk    *disk
	work    *peer
	queue   string        // address of the queue's site
	entries []byte        // a request for it
	proxy   string        // address of a site without callbacks, for the endpoint of waiting clients' tasks
	pause   time.Duration // the longest between two tasks
}

func startLatency() (*latency, error) {
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	l := &latency{entries: post("a", "/", "application/json", filler(200, ""))}
	if l.disk, err = openDisk(); err != nil {
		return nil, err
	}
	if l.work, err = serve("127.0.0.1:0", ok("application/json", body)); err != nil {
		return nil, err
	}
	if l.queue, err = freeAddr(); err != nil {
		return nil, err
	}
	if l.proxy, err = freeAddr(); err != nil {
		return nil, err
	}
	// Finished tasks are evicted all the time.
	l.workload, err = startWorkloadBeside(g, "retention 24h 1000", waitingSite, func(w *workload) string {
		return siteAt(l.queue, "task_queue q {\nreverse_proxy "+l.work.addr+"\n}") + siteAt(l.proxy, "reverse_proxy "+w.app.addr)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	return l, nil
}

func (l *latency) close() {
	l.disk.file.Close()
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

// callbacks sends tasks of waiting clients. It returns the times from the endpoint's last
// byte to the callback.
func (l *latency) callbacks(rate int, d time.Duration) ([]time.Duration, error) {
	s := newSpans()
	defer l.observe(s)()
	if err := steady(l.site, rate, d, 200, [][]byte{l.request}, nil); err != nil {
		return nil, err
	}
	took, err := s.all("callbacks", sentIn(d, rate))
	l.pause = max(l.pause, s.pause)
	return took, err
}

// starts sends tasks of a queue. It returns the times from their 202 to their start.
func (l *latency) starts(rate int, d time.Duration) ([]time.Duration, error) {
	s := newSpans()
	l.work.observe(s.end, nil)
	defer l.work.observe(nil, nil)
	if err := steady(l.queue, rate, d, 202, [][]byte{l.entries}, s.begin); err != nil {
		return nil, err
	}
	took, err := s.all("tasks", sentIn(d, rate))
	l.pause = max(l.pause, s.pause)
	return took, err
}

// plain sends requests to a plain proxy and posts a result when the response is there. It
// returns the times from the endpoint's last byte to the POST.
func (l *latency) plain(rate int, d time.Duration) ([]time.Duration, error) {
	s := newSpans()
	defer l.observe(s)()
	proxy, receiver := newPool(l.proxy), newPool(l.rcv.addr)
	defer proxy.close()
	defer receiver.close()
	err := atRate(rate, d, func(i int) error {
		// The host of a request ends its header line, so an ID can follow.
		host := fmt.Sprintf("a\r\nBeam-Task-ID: %d", i)
		if _, err := proxy.do(post(host, "/", "application/json", filler(200, "")), 200); err != nil {
			return err
		}
		_, err := receiver.do(post(host, "/hook", "application/x-www-form-urlencoded", []byte("response=example+response")), 200)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.all("results", sentIn(d, rate))
}

// observe makes the endpoint and the receiver record the beginning and the end of spans,
// until the returned function is called.
func (l *latency) observe(s *spans) (stop func()) {
	l.app.observe(nil, s.begin)
	l.rcv.observe(s.end, nil)
	return func() {
		l.app.observe(nil, nil)
		l.rcv.observe(nil, nil)
	}
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

// all waits for n tasks. It returns how long they took.
func (s *spans) all(what string, n int) ([]time.Duration, error) {
	if err := awaitAll(what, n, s.len); err != nil {
		return nil, err
	}
	return s.took, nil
}
