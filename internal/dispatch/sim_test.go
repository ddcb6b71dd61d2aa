package dispatch

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"
)

// rules are the rules under simulation: the Dispatcher, or simpler ones.
type rules interface {
	Due(Due, time.Time) bool
	Next(time.Time) (Grant, bool)
	Short(Grant, int, time.Time)
	Done(*Attempt, Outcome, time.Time) Stats
	NextChange(time.Time) time.Time
}

// attemptTimeout and retries are the defaults of the delivery options.
const attemptTimeout = 20 * time.Second

var retries = []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute}

// receiver is a host in simulated time.
type receiver struct {
	name    string
	trusted bool
	stored  Stats
	// takes returns how long an attempt takes. From attemptTimeout on there is no
	// answer.
	takes   func(*rand.Rand) time.Duration
	onDone  func(delay time.Duration) // called when a first attempt was answered
	waiting []*callback               // due in the engine
}

type callback struct {
	due   time.Duration
	tries int
}

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	if e[i].at != e[j].at {
		return e[i].at < e[j].at
	}
	return e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// simulation has a deliverer, an engine and receivers in simulated time.
type simulation struct {
	rules     rules
	rng       *rand.Rand
	now       time.Duration
	seq       int
	events    events
	wake      time.Duration
	receivers map[string]*receiver
	answered  int
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newSimulation(r rules, seed uint64) *simulation {
	return &simulation{rules: r, rng: rand.New(rand.NewPCG(seed, 1)), receivers: make(map[string]*receiver)}
}

func (s *simulation) clock() time.Time { return epoch.Add(s.now) }

func (s *simulation) after(wait time.Duration, do func()) {
	s.seq++
	heap.Push(&s.events, event{s.now + wait, s.seq, do})
}

// due makes n callbacks of a receiver due now.
func (s *simulation) due(r *receiver, n int) {
	s.receivers[r.name] = r
	for range n {
		r.waiting = append(r.waiting, &callback{due: s.now})
	}
	s.report(r, n)
}

func (s *simulation) report(r *receiver, n int) {
	if !s.rules.Due(Due{Host: r.name, N: n, Trusted: r.trusted, Stats: r.stored}, s.clock()) {
		s.after(time.Second, func() { s.report(r, n) })
	}
}

// run simulates until the given time.
func (s *simulation) run(until time.Duration) {
	for len(s.events) > 0 && s.events[0].at <= until {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
		if len(s.events) > 0 && s.events[0].at == s.now {
			continue
		}
		s.start()
	}
	s.now = until
}

// start starts all attempts that may start now.
func (s *simulation) start() {
	for {
		g, ok := s.rules.Next(s.clock())
		if !ok {
			break
		}
		r := s.receivers[g.Host]
		n := min(len(g.Attempts), len(r.waiting))
		s.rules.Short(g, n, s.clock())
		for i, c := range r.waiting[:n] {
			s.attempt(r, c, g.Attempts[i])
		}
		r.waiting = r.waiting[n:]
	}
	if at := s.rules.NextChange(s.clock()); !at.IsZero() && at.Sub(epoch) != s.wake {
		s.wake = at.Sub(epoch)
		s.after(s.wake-s.now, func() {})
	}
}

func (s *simulation) attempt(r *receiver, c *callback, a *Attempt) {
	took := min(r.takes(s.rng), attemptTimeout)
	s.after(took, func() {
		if took < attemptTimeout {
			s.answered++
			if c.tries == 0 && r.onDone != nil {
				r.onDone(s.now - c.due)
			}
			r.stored = s.rules.Done(a, Outcome{Kind: Answered, Took: took}, s.clock())
			return
		}
		r.stored = s.rules.Done(a, Outcome{Kind: TimedOut, Took: took}, s.clock())
		if c.tries < len(retries) {
			s.after(retries[c.tries], func() {
				c.tries++
				r.waiting = append(r.waiting, c)
				s.report(r, 1)
			})
		}
	})
}

// every calls do until the given time, at random intervals with the given mean.
func (s *simulation) every(mean, until time.Duration, do func(i int)) {
	at := time.Duration(0)
	for i := 0; ; i++ {
		at += time.Duration(s.rng.ExpFloat64() * float64(mean))
		if at >= until {
			return
		}
		s.after(at, func() { do(i) })
	}
}

// steady returns a receiver that takes equally long each time.
func steady(name string, takes time.Duration) *receiver {
	return &receiver{name: name, takes: func(*rand.Rand) time.Duration { return takes }}
}

// holdsAfter returns a receiver that answers n times at once and then holds every
// connection.
func holdsAfter(name string, n int) *receiver {
	return &receiver{name: name, takes: func(*rand.Rand) time.Duration {
		if n--; n >= 0 {
			return 5 * time.Millisecond
		}
		return attemptTimeout
	}}
}

func quantile(delays []time.Duration, q float64) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	slices.Sort(delays)
	return delays[min(len(delays)-1, int(q*float64(len(delays))))]
}
