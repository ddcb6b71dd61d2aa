package dispatch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// load is what runs in addition to the callbacks of the healthy hosts.
type load struct {
	name string
	add  func(s *simulation, stored bool)
	// beyond marks a load that exceeds the promise: it may delay some callbacks for as
	// long as an attempt has a slot of the fast pool.
	beyond bool
}

// backlogOf gives each of n receivers a backlog. If stored is set, the engine has their
// stats.
func backlogOf(n, callbacks int, receiverOf func(i int) *receiver, stats Stats) func(*simulation, bool) {
	return func(s *simulation, stored bool) {
		for i := range n {
			r := receiverOf(i)
			if stored {
				r.stored = stats
			}
			s.after(0, func() { s.due(r, callbacks) })
		}
	}
}

func together(loads ...func(*simulation, bool)) func(*simulation, bool) {
	return func(s *simulation, stored bool) {
		for _, add := range loads {
			add(s, stored)
		}
	}
}

// anHourAgo is when hosts with stats in the engine answered last.
var anHourAgo = epoch.Add(-time.Hour)

// holding is a load of hosts that answer a few callbacks and then hold every
// connection. If stored is set, they have answered these callbacks before.
func holding(answers, n, callbacks int, format string) func(*simulation, bool) {
	stats := Stats{Window: min(firstWindow+answers, DefaultPerHost), Average: 5 * time.Millisecond, Answered: anHourAgo}
	return func(s *simulation, stored bool) {
		first := answers
		if stored {
			first = 0
		}
		backlogOf(n, callbacks, func(i int) *receiver { return holdsAfter(fmt.Sprintf(format, i), first) }, stats)(s, stored)
	}
}

// slow is a load of hosts that answer late, or never if takes is the attempt timeout.
func slow(n, callbacks int, takes time.Duration, format string) func(*simulation, bool) {
	stats := Stats{Window: DefaultPerHost, Average: takes, Answered: anHourAgo}
	if takes >= attemptTimeout {
		stats = Stats{Window: 1, Average: takes}
	}
	return backlogOf(n, callbacks, func(i int) *receiver { return steady(fmt.Sprintf(format, i), takes) }, stats)
}

var (
	holders  = holding(1, 8, 1000, "hold%d.example:443")
	wildcard = holding(1, 1000, 10, "n%d.wild.example:443")
	hosting  = holding(1, 1000, 10, "n%d.github.io:443")
	network6 = holding(1, 1000, 10, "[2001:db8:1:%x::1]:443")
	crowd    = together(
		slow(500, 7, 900*time.Millisecond, "a%d.example:443"),
		slow(500, 7, 1500*time.Millisecond, "b%d.example:443"),
		slow(500, 7, attemptTimeout, "c%d.example:443"))
)

var loads = []load{
	{name: "8 hosts that hold", add: holders},
	{name: "a thousand names of a domain that hold", add: wildcard},
	{name: "a thousand names of a hosting company that hold", add: hosting},
	{name: "a thousand networks of a /48 that hold", add: network6},
	{name: "100 ports of an address that hold", add: holding(1, 100, 5, "192.0.2.1:%d")},
	{name: "22 hosts that answer in 15 s", add: slow(22, 100, 15*time.Second, "late%d.example:443")},
	{name: "500 hosts at 0.9 s, 500 at 1.5 s, 500 that drip", add: crowd},
	{name: "2,000 domains that drip", add: slow(2000, 5, attemptTimeout, "drip%d.example:443")},
	{name: "8 hosts that answered often and then hold", add: holding(20, 8, 1000, "turned%d.example:443")},
	{name: "a thousand names that answered often and then hold", add: holding(20, 1000, 40, "n%d.turned.example:443")},
	{name: "300 domains that answered often and then hold", add: holding(20, 300, 100, "turned%d.example:443"), beyond: true},
	{name: "all", add: together(holders, wildcard, hosting, network6, crowd)},
}

// figures are the measurements of a run.
type figures struct {
	p99   time.Duration // of the healthy hosts' callbacks, from being due to the answer
	first time.Duration // the longest until a new host's first callback was answered
	lost  int           // callbacks of healthy or new hosts that were not answered
	total int           // callbacks that were answered
}

func (f figures) String() string {
	return fmt.Sprintf("p99 %v, first %v, %d lost, %d answered", f.p99, f.first, f.lost, f.total)
}

// measure runs 200 callbacks a second to 50 healthy hosts, and one a second to a new
// host, in addition to a load, for a minute.
func measure(r rules, add func(*simulation, bool), stored bool, seed uint64) figures {
	const runTime = time.Minute
	s := newSimulation(r, seed)
	var delays, first []time.Duration
	due := 0
	healthy := make([]*receiver, 50)
	for i := range healthy {
		healthy[i] = &receiver{
			name:   fmt.Sprintf("healthy%d.example:443", i),
			takes:  func(rng *rand.Rand) time.Duration { return 3*time.Millisecond + time.Duration(rng.ExpFloat64()*5e6) },
			onDone: func(delay time.Duration) { delays = append(delays, delay) },
		}
		if stored {
			healthy[i].stored = Stats{Window: DefaultPerHost, Average: 8 * time.Millisecond, Answered: anHourAgo}
		}
	}
	s.every(5*time.Millisecond, runTime, func(int) {
		due++
		s.due(healthy[s.rng.IntN(len(healthy))], 1)
	})
	s.every(time.Second, runTime, func(i int) {
		due++
		r := steady(fmt.Sprintf("new%d.example:443", i), 50*time.Millisecond)
		r.onDone = func(delay time.Duration) { first = append(first, delay) }
		s.due(r, 1)
	})
	if add != nil {
		add(s, stored)
	}
	s.run(runTime + 2*time.Second)
	return figures{
		p99: quantile(delays, 0.99), first: quantile(first, 1),
		lost: due - len(delays) - len(first), total: s.answered,
	}
}

// fair reports whether the figures keep the promise, compared with those without the
// load.
func (f figures) fair(alone figures) bool {
	return f.p99 <= max(alone.p99*6/5, alone.p99+5*time.Millisecond) && f.first <= 2*time.Second && f.lost == 0
}

func TestBadHostsDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	for _, stored := range []bool{true, false} {
		alone := measure(New(Limits{}), nil, stored, 1)
		for _, l := range loads {
			t.Run(fmt.Sprintf("%s, stored %v", l.name, stored), func(t *testing.T) {
				t.Parallel()
				f := measure(New(Limits{}), l.add, stored, 1)
				t.Log(f)
				if l.beyond {
					f.p99 -= 10 * time.Millisecond
					f.first -= 5 * time.Second
				}
				if !f.fair(alone) {
					t.Errorf("with the load: %v\nwithout: %v", f, alone)
				}
			})
		}
	}
}

func TestSlowHonestReceiverKeepsUp(t *testing.T) {
	t.Parallel()
	const perHour, runTime = 20_000, 5 * time.Minute
	for _, l := range append([]load{{name: "alone"}}, loads[:6]...) {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			s := newSimulation(New(Limits{}), 1)
			var late []time.Duration
			r := steady("slow.example:443", 1500*time.Millisecond)
			r.onDone = func(delay time.Duration) {
				if s.now > time.Minute { // the window has grown by then
					late = append(late, delay)
				}
			}
			s.every(time.Hour/perHour, runTime, func(int) { s.due(r, 1) })
			if l.add != nil {
				l.add(s, true)
			}
			s.run(runTime)
			if p99 := quantile(late, 0.99); len(late) < 1000 || p99 > 3*time.Second {
				t.Errorf("%d callbacks, p99 %v", len(late), p99)
			}
		})
	}
}

func TestBacklogIsDelivered(t *testing.T) {
	t.Parallel()
	const takes = 10 * time.Millisecond
	tests := []struct {
		name             string
		hosts, callbacks int
		format           string
		workers          int // of the client loop to compare with
	}{
		{"of 1,000 hosts", 1000, 50, "host%d.example:443", DefaultConcurrency},
		{"of one host", 1, 5000, "host%d.example:443", DefaultPerHost},
		{"of two hosts of one domain", 2, 5000, "host%d.one.example:443", 2 * DefaultPerHost},
		{"of 10,000 hosts", 10_000, 2, "host%d.example:443", DefaultConcurrency},
	}
	for _, tt := range tests {
		for _, stored := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stored %v", tt.name, stored), func(t *testing.T) {
				t.Parallel()
				s := newSimulation(New(Limits{}), 1)
				backlogOf(tt.hosts, tt.callbacks, func(i int) *receiver { return steady(fmt.Sprintf(tt.format, i), takes) },
					Stats{Window: DefaultPerHost, Average: takes, Answered: anHourAgo})(s, stored)
				all := tt.hosts * tt.callbacks
				ideal := time.Duration(all) * takes / time.Duration(tt.workers)
				s.run(ideal * 10 / 6)
				t.Logf("%d of %d after 1/0.6 of %v", s.answered, all, ideal)
				if s.answered < all {
					t.Errorf("answered %d of %d in %v", s.answered, all, ideal*10/6)
				}
			})
		}
	}
}

func TestFewSlowHostsDoNotDelayOneCallback(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		limits Limits
		add    func(*simulation, bool)
	}{
		{"20 hosts at 1 s, 8 slots", Limits{Concurrency: 8, Slow: 24}, slow(20, 30, time.Second, "192.0.2.%d:443")},
		{"20 domains at 1 s, 8 slots", Limits{Concurrency: 8, Slow: 24}, slow(20, 30, time.Second, "s%d.example:443")},
		{"one host at 5 s", Limits{}, slow(1, 40, 5*time.Second, "s%d.example:443")},
		{"12 hosts that hold", Limits{}, slow(12, 40, attemptTimeout, "s%d.example:443")},
		{"100 ports that answer once", Limits{}, holding(1, 100, 5, "192.0.2.1:%d")},
	}
	for _, tt := range tests {
		for _, stored := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stored %v", tt.name, stored), func(t *testing.T) {
				t.Parallel()
				s := newSimulation(New(tt.limits), 1)
				tt.add(s, stored)
				var delays []time.Duration
				for i := range 20 {
					r := steady(fmt.Sprintf("healthy%d.example:443", i), 10*time.Millisecond)
					r.onDone = func(delay time.Duration) { delays = append(delays, delay) }
					s.after(time.Duration(i)*time.Second, func() { s.due(r, 1) })
				}
				s.run(30 * time.Second)
				if worst := quantile(delays, 1); len(delays) < 20 || worst > 2*time.Second {
					t.Errorf("%d callbacks, the longest took %v", len(delays), worst)
				}
			})
		}
	}
}

func TestManyNewHostsDelayNoOther(t *testing.T) {
	t.Parallel()
	const flood = 3 * time.Minute
	s := newSimulation(New(Limits{Slow: 40}), 1)
	answered := 0
	for i := range 20 {
		r := steady(fmt.Sprintf("honest%d.example:443", i), time.Second)
		r.onDone = func(time.Duration) { answered++ }
		s.after(0, func() { s.due(r, 1) })
	}
	slow(100, 1, attemptTimeout, "first%d.example:443")(s, false) // the newest hosts come first
	// Attempts to these names end at most at a fifth of the rate at which they arrive.
	s.every(100*time.Millisecond, flood, func(i int) {
		s.due(steady(fmt.Sprintf("flood%d.example:443", i), attemptTimeout), 1)
	})
	s.run(flood)
	if answered < 20 {
		t.Errorf("answered %d callbacks, want 20", answered)
	}
}
