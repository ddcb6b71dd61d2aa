package dispatch

import "time"

// slotTime is how long an attempt keeps a slot of the fast pool.
const slotTime = 500 * time.Millisecond

// Grant allows attempts to start. Each of them must be ended with Done or Short.
type Grant struct {
	Host     string
	Attempts []*Attempt // one for each delivery to take from the engine
}

// Attempt is one attempt, from its grant to its end.
type Attempt struct {
	host        *host
	participant *participant // the participant whose share it uses; nil once it has ended
	started     time.Time
	arrived     int64 // deliveries of the host that were reported before the start
	fast        bool  // whether it is in the fast pool
	late        bool  // whether it has left the fast pool for the slow one
}

// Kind says how an attempt ended.
type Kind int

// The ways in which an attempt ends.
const (
	Answered    Kind = iota // with any status code
	TimedOut                // connected, but no answer in time
	Unreachable             // not connected
	Cancelled               // ended by the sender, or never made
)

// Outcome is how an attempt ended.
type Outcome struct {
	Kind Kind
	Took time.Duration // from connecting to the end
}

// Next returns a host to which attempts may start now, and reserves slots for them. It
// returns false if there is none. Then call it again after any other call, and at
// NextChange.
func (d *Dispatcher) Next(now time.Time) (Grant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passOn(now)
	d.resume(now)
	for _, p := range []*pool{&d.fast, &d.slow} {
		if who := p.choose(now); who != nil {
			return d.grant(who, now), true
		}
	}
	return Grant{}, false
}

func (d *Dispatcher) grant(who *participant, now time.Time) Grant {
	p, h := who.pool, who.hosts[0]
	n := who.hosts.lead(min(d.allowed(h), p.share(who), p.free(now)))
	if who == p.ready[0] {
		n = p.ready.lead(n)
	} else {
		n = 1
	}
	p.granted(who, n, now)
	h.due -= n
	h.running += n
	h.rank = d.tick()
	who.rank = h.rank
	g := Grant{Host: h.name, Attempts: make([]*Attempt, n)}
	attempts := make([]Attempt, n)
	for i := range attempts {
		a := &attempts[i]
		*a = Attempt{host: h, participant: who, started: now, arrived: h.arrived, fast: p == &d.fast}
		if a.fast {
			d.running = append(d.running, a)
		}
		g.Attempts[i] = a
	}
	d.started(h, now)
	d.settle(h)
	p.place(who)
	return g
}

// passOn moves attempts that have taken longer than slotTime to the slow pool, as far
// as their participants have a share of it.
func (d *Dispatcher) passOn(now time.Time) {
	if now.Before(d.nextPass) {
		return
	}
	d.nextPass = now.Add(slotTime)
	kept := d.running[:0]
	for i, a := range d.running {
		if !a.fast {
			continue // it has ended
		}
		if at := a.started.Add(slotTime); at.After(now) {
			d.nextPass = earlier(d.nextPass, at)
			kept = append(kept, d.running[i:]...)
			break
		}
		if d.slow.running >= d.slow.size || !d.move(a) {
			d.nextPass = now.Add(slotTime / 4)
			kept = append(kept, a)
		}
	}
	clear(d.running[len(kept):])
	d.running = kept
}

// move moves an attempt to the slow pool. It returns false if the participant has no
// share left.
func (d *Dispatcher) move(a *Attempt) bool {
	old, who := a.participant, d.participant(&d.slow, a.host)
	if d.slow.share(who) < 1 {
		return false // this call did not create who: it has attempts in flight
	}
	a.fast, a.late, a.participant = false, true, who
	a.host.late++
	d.slow.count(who, 1)
	d.fast.count(old, -1)
	d.slow.place(who)
	d.fast.place(old)
	d.settle(a.host)
	return true
}

// NextChange returns when to call Next again if nothing else happens. The time is zero
// if nothing changes by itself.
func (d *Dispatcher) NextChange(now time.Time) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.slow.nextChange(now)
	if d.fast.running > 0 && len(d.fast.ready) > 0 && d.nextPass.After(now) {
		at = earlier(at, d.nextPass)
	}
	if len(d.paced) > 0 {
		at = earlier(at, d.paced[0].next)
	}
	return at
}

// earlier returns the earlier of two times. A zero a means no time.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// Short ends the attempts of a grant for which there was no delivery, because Take
// returned only n. The host then has no more deliveries due than were reported since
// the grant.
func (d *Dispatcher) Short(g Grant, n int, now time.Time) {
	if n >= len(g.Attempts) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rest := g.Attempts[max(0, n):]
	h := rest[0].host
	h.due = min(h.due, int(h.arrived-rest[0].arrived))
	for _, a := range rest {
		d.notStarted(h)
		d.end(a, Outcome{Kind: Cancelled}, now)
	}
}

// Done ends an attempt and returns the stats of the host, for the engine to store. A
// second call for the same attempt changes nothing. If the delivery is still due,
// report it with Due.
func (d *Dispatcher) Done(a *Attempt, o Outcome, now time.Time) Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end(a, o, now)
	return a.host.stats
}

func (d *Dispatcher) end(a *Attempt, o Outcome, now time.Time) {
	h, who := a.host, a.participant
	if who == nil {
		return
	}
	a.participant, a.fast = nil, false
	if a.late {
		h.late--
	}
	h.running--
	h.learn(o, now, d.limits.PerHost)
	who.pool.count(who, -1)
	who.pool.place(who)
	d.settle(h)
}
