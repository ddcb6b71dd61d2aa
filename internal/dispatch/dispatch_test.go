package dispatch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var good = Stats{Window: 8, Average: 10 * time.Millisecond, Answered: anHourAgo}

// grants calls Next until it returns false, and returns how many attempts each host may
// start.
func grants(d *Dispatcher, now time.Time) (map[string]int, []*Attempt) {
	counts := make(map[string]int)
	var all []*Attempt
	for {
		g, ok := d.Next(now)
		if !ok {
			return counts, all
		}
		counts[g.Host] += len(g.Attempts)
		all = append(all, g.Attempts...)
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		stats   Stats
		trusted bool
		perHost int
		want    int
	}{
		{"of an unknown host", Stats{}, false, 0, firstWindow},
		{"of the operator's host", Stats{}, true, 0, firstWindow},
		{"as stored", good, false, 0, 8},
		{"limited per host", good, false, 3, 3},
		{"of a host that failed", Stats{Window: 1, Average: attemptTimeout}, false, 0, 1},
		{"of a host that answered long ago", Stats{Window: 8, Answered: epoch.Add(-25 * time.Hour)}, false, 0, firstWindow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := New(Limits{PerHost: tt.perHost})
			d.Due(Due{Host: "a.example:443", N: 100, Stats: tt.stats, Trusted: tt.trusted}, epoch)
			if counts, _ := grants(d, epoch); counts["a.example:443"] != tt.want {
				t.Errorf("%d attempts at once, want %d", counts["a.example:443"], tt.want)
			}
		})
	}
}

func TestDoneUpdatesHost(t *testing.T) {
	t.Parallel()
	at := epoch.Add(time.Second)
	tests := []struct {
		name    string
		outcome Outcome
		want    Stats
	}{
		{"answered", Outcome{Answered, 50 * time.Millisecond}, Stats{9, 20 * time.Millisecond, at}},
		{"timed out", Outcome{TimedOut, 20 * time.Second}, Stats{4, 5007500 * time.Microsecond, anHourAgo}},
		{"unreachable", Outcome{Unreachable, time.Millisecond}, Stats{4, 10 * time.Millisecond, anHourAgo}},
		{"cancelled", Outcome{Cancelled, time.Minute}, good},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := New(Limits{})
			d.Due(Due{Host: "a.example:443", N: 1, Stats: good}, epoch)
			g, _ := d.Next(epoch)
			if got := d.Done(g.Attempts[0], tt.outcome, at); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if got := d.Done(g.Attempts[0], Outcome{Kind: TimedOut}, at); got != tt.want {
				t.Errorf("a second Done: got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestShortDropsMissingTasks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		later int // deliveries reported between Next and Short
		want  int // attempts after that
	}{
		{"nothing new", 0, 0},
		{"one more since the grant", 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := New(Limits{})
			due := Due{Host: "a.example:443", N: 100, Stats: good}
			d.Due(due, epoch)
			g, _ := d.Next(epoch)
			due.N = tt.later
			d.Due(due, epoch)
			d.Short(g, 2, epoch)
			if counts, _ := grants(d, epoch); counts[due.Host] != tt.want {
				t.Errorf("%d attempts, want %d", counts[due.Host], tt.want)
			}
			if n := d.InFlight()[due.Host]; n != 2+tt.want {
				t.Errorf("%d in flight, want %d", n, 2+tt.want)
			}
		})
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	d := New(Limits{})
	d.Due(Due{Host: "a.example:443", N: 1}, epoch)
	d.Pause("a.example:443", true)
	d.Pause("b.example:443", true)
	d.Due(Due{Host: "b.example:443", N: 1}, epoch)
	if g, ok := d.Next(epoch); ok {
		t.Errorf("paused, but %s may start", g.Host)
	}
	d.Pause("a.example:443", false)
	if g, ok := d.Next(epoch); !ok || g.Host != "a.example:443" {
		t.Errorf("got %v, %v", g, ok)
	}
}

func TestSetLimits(t *testing.T) {
	t.Parallel()
	d := New(Limits{PerHost: 2})
	d.Due(Due{Host: "a.example:443", N: 100, Stats: good}, epoch)
	_, first := grants(d, epoch)
	d.SetLimits(Limits{PerHost: 5})
	_, more := grants(d, epoch)
	d.SetLimits(Limits{PerHost: 1})
	if len(first) != 2 || len(more) != 3 || d.InFlight()["a.example:443"] != 5 {
		t.Errorf("%d attempts, then %d more, %v in flight", len(first), len(more), d.InFlight())
	}
	for i, a := range append(first, more...) {
		if counts, _ := grants(d, epoch); len(counts) > 0 {
			t.Fatalf("%v may start with %d in flight", counts, 5-i)
		}
		d.Done(a, Outcome{Kind: Answered}, epoch)
	}
	if counts, _ := grants(d, epoch); counts["a.example:443"] != 1 {
		t.Errorf("%v may start", counts)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 80
	t.Run("idle hosts make room", func(t *testing.T) {
		t.Parallel()
		d := New(Limits{Hosts: limit})
		for i := range 10 * limit {
			d.Due(Due{Host: fmt.Sprintf("h%d.example:443", i), N: 1}, epoch)
			g, ok := d.Next(epoch)
			if !ok {
				t.Fatalf("host %d was refused", i)
			}
			d.Done(g.Attempts[0], Outcome{Kind: TimedOut}, epoch)
		}
		if len(d.hosts) != limit || d.idle.Len() != limit || len(d.slow.participants) != 0 {
			t.Errorf("%d hosts, %d idle, %d participants", len(d.hosts), d.idle.Len(), len(d.slow.participants))
		}
	})
	for name, format := range map[string]string{"too many hosts": "h%d.example:443", "too many of a domain": "h%d.one.example:443"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := New(Limits{Hosts: limit, Slow: 1})
			refused := 0
			for i := range 2 * limit {
				if !d.Due(Due{Host: fmt.Sprintf(format, i), N: 1}, epoch) {
					refused++
				}
			}
			if refused < limit || d.Reread() {
				t.Fatalf("%d refused", refused)
			}
			if !d.Due(Due{Host: "h0.one.example:443"}, epoch) && name != "too many hosts" {
				t.Error("a host in memory was refused")
			}
			for now, n := epoch, 0; !d.Reread(); n++ {
				now = now.Add(time.Second)
				g, ok := d.Next(now)
				if !ok || n > limit {
					t.Fatalf("after %d attempts there is no room", n)
				}
				d.Done(g.Attempts[0], Outcome{Kind: TimedOut}, now)
			}
			if d.Reread() {
				t.Error("Reread reports it twice")
			}
			if !d.Due(Due{Host: "another." + fmt.Sprintf(format, 0), N: 1}, epoch) {
				t.Error("a host was refused though there is room")
			}
		})
	}
}

func TestNextChange(t *testing.T) {
	t.Parallel()
	t.Run("the second half of the slow pool is paced", func(t *testing.T) {
		t.Parallel()
		d := New(Limits{Slow: 8})
		for i := range 20 {
			d.Due(Due{Host: fmt.Sprintf("h%d.example:443", i), N: 1}, epoch)
		}
		counts, _ := grants(d, epoch)
		now := epoch
		for n := len(counts); n < 8; n++ {
			at := d.NextChange(now)
			if !at.After(now) || at.Sub(now) > slowPaceTime/2 {
				t.Fatalf("with %d attempts, the next change is after %v", n, at.Sub(now))
			}
			if counts, _ := grants(d, at.Add(-1)); len(counts) > 0 {
				t.Fatalf("%v may start before %v", counts, at)
			}
			if counts, _ := grants(d, at); len(counts) != 1 {
				t.Fatalf("%v may start at %v", counts, at)
			}
			now = at
		}
		if len(counts) != 4 || !d.NextChange(now).IsZero() {
			t.Errorf("%d attempts started at once; the pool is full, and the next change %v", len(counts), d.NextChange(now))
		}
	})
	t.Run("a fast host waits for one that holds", func(t *testing.T) {
		t.Parallel()
		d := New(Limits{Concurrency: 1})
		d.Due(Due{Host: "a.example:443", N: 1, Stats: good}, epoch)
		d.Due(Due{Host: "b.example:443", N: 1, Stats: good}, epoch)
		first, _ := grants(d, epoch)
		at := d.NextChange(epoch)
		second, _ := grants(d, at)
		if len(first) != 1 || at != epoch.Add(slotTime) || len(second) != 1 {
			t.Errorf("%v, at %v %v", first, at, second)
		}
		if !d.NextChange(at).IsZero() {
			t.Error("nothing waits, but there is a next change")
		}
	})
}

func TestGroup(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"a.b.example.com:443":         "example.com",
		"EXAMPLE.com.:443":            "example.com",
		"x.example.co.uk:443":         "example.co.uk",
		"me.github.io:443":            "github.io",
		"a.me.github.io:443":          "github.io",
		"x.blogspot.co.uk:443":        "blogspot.co.uk",
		"bucket.s3.amazonaws.com:443": "amazonaws.com",
		"com:443":                     "com",
		"localhost:80":                "localhost",
		"a.b.internal:80":             "b.internal",
		"192.0.2.77:80":               "192.0.2.0/24",
		"[::ffff:192.0.2.77]:80":      "192.0.2.0/24",
		"[2001:db8:1:2::3]:80":        "2001:db8:1::/48",
		"[fe80::1%eth0]:80":           "fe80::/48",
		"":                            "",
		"example.com":                 "example.com",
	} {
		if got := Group(host); got != want {
			t.Errorf("Group(%q) = %q, want %q", host, got, want)
		}
	}
}

// check reports violations of the dispatcher's invariants.
func (d *Dispatcher) check(t *testing.T, limits Limits, attempts map[*Attempt]bool) {
	t.Helper()
	running, counted := make(map[*pool]int), make(map[*participant]int)
	perHost, late := make(map[*host]int), make(map[*host]int)
	for a := range attempts {
		running[a.participant.pool]++
		counted[a.participant]++
		perHost[a.host]++
		if a.late {
			late[a.host]++
		}
	}
	for _, p := range []*pool{&d.fast, &d.slow} {
		if p.running != running[p] || p.running > p.size {
			t.Fatalf("%d attempts are counted of %d in a pool of %d", p.running, running[p], p.size)
		}
		active := 0
		for _, who := range p.participants {
			if who.running != counted[who] || who.running == 0 && len(who.hosts) == 0 {
				t.Fatalf("%s: %d attempts are counted of %d, %d hosts wait", who.group, who.running, counted[who], len(who.hosts))
			}
			if who.running > 0 {
				active++
			}
			if (who.index > 0) != (len(who.hosts) > 0) || (who.waits != nil) != (len(who.hosts) > 0 && who.running == 0) {
				t.Fatalf("%s is in the wrong place", who.group)
			}
		}
		if p.active != active {
			t.Fatalf("%d participants are counted of %d", p.active, active)
		}
	}
	for name, h := range d.hosts {
		if h.running != perHost[h] || h.running > limits.PerHost || h.due < 0 || h.late != late[h] {
			t.Fatalf("%s: %d attempts are counted of %d; %d due, %d late", name, h.running, perHost[h], h.due, h.late)
		}
		if (h.queued != nil) != (h.index > 0) || (h.idle != nil) != (h.due == 0 && h.running == 0) {
			t.Fatalf("%s is in the wrong place", name)
		}
	}
	if len(d.hosts) > limits.Hosts {
		t.Fatalf("%d hosts in memory", len(d.hosts))
	}
}

// operate calls the dispatcher at random and checks it after each call. At the end it
// expects that every due delivery is started.
func operate(t *testing.T, rng *rand.Rand, calls int) {
	limits := Limits{Concurrency: 1 + rng.IntN(8), Slow: 1 + rng.IntN(16), PerHost: 1 + rng.IntN(6), Hosts: 8 + rng.IntN(40)}
	d, now := New(limits), epoch
	engine := make(map[string]int) // deliveries that are due
	attempts := make(map[*Attempt]bool)
	next := func() bool {
		g, ok := d.Next(now)
		if !ok {
			return false
		}
		n := min(len(g.Attempts), engine[g.Host])
		engine[g.Host] -= n
		for _, a := range g.Attempts[:n] {
			attempts[a] = true
		}
		d.Short(g, n, now)
		return true
	}
	done := func(a *Attempt, kind Kind) {
		d.Done(a, Outcome{kind, now.Sub(a.started)}, now)
		delete(attempts, a)
	}
	report := func(host string, n, known int) {
		if d.Due(Due{Host: host, N: n, Trusted: rng.IntN(50) == 0, Stats: Stats{Window: rng.IntN(9), Average: 5e6, Answered: anHourAgo}}, now) {
			engine[host] += known
		}
	}
	for range calls {
		now = now.Add(time.Duration(rng.ExpFloat64() * 5e7))
		host := fmt.Sprintf("h%d.d%d.example:443", rng.IntN(8), rng.IntN(8))
		switch rng.IntN(10) {
		case 0:
			report(host, 1, 1)
		case 1:
			n := rng.IntN(20)
			report(host, n, n*rng.IntN(2)) // the engine has all of them or none
		case 2:
			d.Pause(host, rng.IntN(4) == 0)
		case 3, 4, 5:
			for a := range attempts {
				done(a, Kind(rng.IntN(4)))
				break
			}
		default:
			next()
		}
		d.check(t, limits, attempts)
	}
	for host := range d.paused {
		d.Pause(host, false)
	}
	for {
		for next() {
		}
		if at := d.NextChange(now); len(attempts) == 0 && !at.IsZero() {
			now = at
			continue
		}
		if len(attempts) == 0 {
			break
		}
		now = now.Add(time.Millisecond)
		for a := range attempts {
			done(a, Answered)
		}
		d.check(t, limits, attempts)
	}
	for host, n := range engine {
		if n > 0 {
			t.Fatalf("%d deliveries of %s were never started", n, host)
		}
	}
	if d.fast.running+d.slow.running != 0 || d.idle.Len() != len(d.hosts) {
		t.Fatalf("%d and %d attempts are left, %d of %d hosts are idle", d.fast.running, d.slow.running, d.idle.Len(), len(d.hosts))
	}
}

func FuzzDispatcher(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { operate(t, rand.New(rand.NewPCG(seed, 0)), 500) })
}

func TestRateSpreadsAttempts(t *testing.T) {
	t.Parallel()
	d := New(Limits{Interval: 100 * time.Millisecond})
	for _, host := range []string{"a.example:443", "b.example:443"} {
		d.Due(Due{Host: host, N: 100, Stats: good}, epoch)
	}
	starts := make(map[string][]time.Duration)
	for now := epoch; now.Before(epoch.Add(time.Second)); {
		for g, ok := d.Next(now); ok; g, ok = d.Next(now) {
			if starts[g.Host] = append(starts[g.Host], now.Sub(epoch)); len(g.Attempts) != 1 {
				t.Fatalf("%d attempts at once", len(g.Attempts))
			}
			d.Done(g.Attempts[0], Outcome{Answered, time.Millisecond}, now)
			if !d.RateLimited(g.Host) {
				t.Errorf("the rate does not hold %s back", g.Host)
			}
		}
		next := d.NextChange(now)
		if !next.After(now) {
			t.Fatalf("the next change is at %v, now is %v", next, now)
		}
		now = next.Add(3 * time.Millisecond) // timers are late
	}
	for host, times := range starts {
		if len(times) < 10 || len(times) > 11 || times[0] != 0 {
			t.Errorf("%s: attempts at %v", host, times)
		}
	}
}

func TestRateCountsOnlyTakenTasks(t *testing.T) {
	t.Parallel()
	d := New(Limits{Interval: time.Minute})
	due := Due{Host: "a.example:443", N: 1, Stats: good}
	d.Due(due, epoch)
	g, _ := d.Next(epoch)
	d.Short(g, 0, epoch)
	d.Due(due, epoch)
	if _, ok := d.Next(epoch); !ok {
		t.Error("an attempt that was not made counts")
	}
	d.Due(due, epoch)
	if _, ok := d.Next(epoch); ok {
		t.Error("an attempt that was made does not count")
	}
	d.SetLimits(Limits{Interval: time.Second})
	if _, ok := d.Next(epoch); !ok {
		t.Error("a new rate goes on with the wait of the one before")
	}
}
