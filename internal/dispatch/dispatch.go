package dispatch

import (
	"container/list"
	"sync"
	"time"
)

// Defaults of Limits.
const (
	DefaultConcurrency = 256
	DefaultSlow        = 768
	DefaultPerHost     = 32
	DefaultHosts       = 20_000
)

// Limits bound what is in flight and in memory, and how often attempts start. Every
// field except Interval has a default, which applies if it is below 1.
type Limits struct {
	// Concurrency is how many attempts are in flight at once to hosts that usually
	// answer within 100 ms.
	Concurrency int
	// Slow is how many attempts are in flight at once to all other hosts. An attempt
	// that was expected to be fast counts here after half a second.
	Slow int
	// PerHost is how many attempts are in flight at once to one host.
	PerHost int
	// Interval is the average time between the starts of attempts to one host. 0 means
	// no rate.
	Interval time.Duration
	// Hosts is how many hosts are in memory, at about 400 bytes each.
	Hosts int
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.Concurrency, DefaultConcurrency)
	setDefault(&l.Slow, DefaultSlow)
	setDefault(&l.PerHost, DefaultPerHost)
	setDefault(&l.Hosts, DefaultHosts)
	return l
}

func setDefault(field *int, value int) {
	if *field < 1 {
		*field = value
	}
}

const (
	// slowPaceTime is the paceTime of the slow pool.
	slowPaceTime = 2 * time.Second
	// hostsPart bounds the waiting hosts of one participant to 1/hostsPart of the hosts
	// in memory, so that the names of one domain do not keep others out.
	hostsPart = 8
)

// Dispatcher decides which deliveries may be attempted now. Its methods can be called
// from several goroutines at once. They never block.
type Dispatcher struct {
	mu       sync.Mutex
	limits   Limits
	hosts    map[string]*host
	idle     list.List // of *host: those with nothing due or in flight, the oldest first
	fast     pool
	slow     pool
	running  []*Attempt          // those in the fast pool and some that have ended, the oldest first
	nextPass time.Time           // when passOn is due
	paused   map[string]struct{} // by host
	paced    paces
	ticks    int64
	refused  bool // a host was refused because the memory is full
	reread   bool
}

// New returns a dispatcher that has no hosts.
func New(l Limits) *Dispatcher {
	d := &Dispatcher{hosts: make(map[string]*host), paused: make(map[string]struct{})}
	d.fast.participants = make(map[string]*participant)
	d.slow.participants = make(map[string]*participant)
	d.slow.paceTime = slowPaceTime
	d.SetLimits(l)
	return d
}

// SetLimits changes the limits. Attempts in flight continue, even if there are more
// than the new limits allow.
func (d *Dispatcher) SetLimits(l Limits) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setInterval(l.Interval)
	d.limits = l.withDefaults()
	d.fast.size, d.slow.size = d.limits.Concurrency, d.limits.Slow
	for _, h := range d.hosts {
		d.settle(h)
	}
}

// Due reports that deliveries of a host have become due.
type Due struct {
	Host    string // host:port
	N       int    // how many, in addition to those that were reported before
	Trusted bool   // the operator has named the host, not a client
	Stats   Stats  // the host's stats in the engine; ignored if the host is in memory
}

// Due records that deliveries have become due. It returns false if so many hosts wait
// that this one cannot be kept in memory; Reread says when to report it again.
// Reporting more deliveries than there are costs one Take that returns too few.
func (d *Dispatcher) Due(due Due, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.hosts[due.Host]
	if h == nil {
		if h = d.admit(due, now); h == nil {
			return false
		}
	}
	if h.idle != nil {
		d.idle.Remove(h.idle)
		h.idle = nil
		h.load(h.stats, now)
		h.rank = d.firstRank(h)
	}
	if due.Trusted && !h.trusted {
		h.trusted, h.group = true, h.name // settle moves it to its own participant
	}
	h.due += due.N
	h.arrived += int64(due.N)
	d.settle(h)
	return true
}

// admit takes a host into memory. It returns nil if there is no room.
func (d *Dispatcher) admit(due Due, now time.Time) *host {
	h := &host{name: due.Host, trusted: due.Trusted, group: due.Host}
	if !h.trusted {
		h.group = Group(due.Host)
	}
	h.load(due.Stats, now)
	if who := d.poolOf(h).participants[h.group]; who != nil && len(who.hosts) >= max(1, d.limits.Hosts/hostsPart) {
		who.refused = true
		return nil
	}
	if len(d.hosts) >= d.limits.Hosts {
		oldest := d.idle.Front()
		if oldest == nil {
			d.refused = true
			return nil
		}
		delete(d.hosts, d.idle.Remove(oldest).(*host).name) // the engine stores its stats
	}
	h.rank = d.firstRank(h)
	d.hosts[h.name] = h
	return h
}

// Reread reports, once, that there is room again after Due has refused hosts. Then
// report all hosts with deliveries due again.
func (d *Dispatcher) Reread() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	again := d.reread
	d.reread = false
	return again
}

// Pause stops attempts to a host from being started, or allows them again. Attempts in
// flight continue. A host stays paused even if it is removed from memory.
func (d *Dispatcher) Pause(hostPort string, paused bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if paused {
		d.paused[hostPort] = struct{}{}
	} else {
		delete(d.paused, hostPort)
	}
	if h := d.hosts[hostPort]; h != nil {
		d.settle(h)
	}
}

// InFlight returns the number of attempts in flight, by host. Hosts without any are
// omitted.
func (d *Dispatcher) InFlight() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := make(map[string]int)
	for name, h := range d.hosts {
		if h.running > 0 {
			counts[name] = h.running
		}
	}
	return counts
}

// allowed returns how many attempts may start to a host. It considers only the limits
// of the host itself.
func (d *Dispatcher) allowed(h *host) int {
	if _, paused := d.paused[h.name]; paused {
		return 0
	}
	n := min(h.due, min(h.stats.Window, d.limits.PerHost)-h.running)
	switch {
	case h.paced > 0:
		return 0
	case d.limits.Interval > 0:
		return min(n, 1)
	}
	return n
}

// settle moves a host to where it belongs now: into the order of its participant, or
// into the list of idle hosts.
func (d *Dispatcher) settle(h *host) {
	var who *participant
	if d.allowed(h) > 0 {
		who = d.participant(d.poolOf(h), h)
	}
	if old := h.queued; old != nil && old != who {
		old.hosts.remove(h)
		d.unrefuse(old)
		old.pool.place(old)
	}
	h.queued = who
	if who != nil {
		who.hosts.add(h)
		who.pool.place(who)
		return
	}
	if h.due == 0 && h.running == 0 && h.idle == nil {
		h.idle = d.idle.PushBack(h)
		if d.refused && len(d.hosts)-d.idle.Len() <= d.limits.Hosts*3/4 {
			d.refused, d.reread = false, true
		}
	}
}

// unrefuse makes Reread return true once half of the waiting hosts of a participant
// that had refused hosts are gone.
func (d *Dispatcher) unrefuse(who *participant) {
	if who.refused && len(who.hosts) <= d.limits.Hosts/hostsPart/2 {
		who.refused, d.reread = false, true
	}
}

func (d *Dispatcher) poolOf(h *host) *pool {
	if h.fast() {
		return &d.fast
	}
	return &d.slow
}

func (d *Dispatcher) participant(p *pool, h *host) *participant {
	who := p.participants[h.group]
	if who == nil {
		who = &participant{pool: p, group: h.group}
		who.rank = d.firstRank(h)
		p.participants[h.group] = who
	}
	return who
}

func (d *Dispatcher) tick() int64 {
	d.ticks++
	return d.ticks
}

// firstRank returns the rank of a host that had nothing due, and of its participant. It
// is ahead of all that were served, and of those that came before: thousands of hosts
// can wait for their first attempt, and a new one must not wait for all of them. A host
// whose last attempt failed comes after all others.
func (d *Dispatcher) firstRank(h *host) int64 {
	if h.stats.Window < firstWindow {
		return d.tick()
	}
	return -d.tick()
}
