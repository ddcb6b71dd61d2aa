package dispatch

import (
	"container/list"
	"time"
)

// pool is a number of slots and the participants that wait for them.
type pool struct {
	size         int
	running      int // attempts in flight
	active       int // participants with attempts in flight
	participants map[string]*participant
	ready        order[*participant] // participants with hosts that may start an attempt
	waiting      list.List           // those in ready without attempts in flight, the longest waiting first
	passed       int                 // grants since the last one to the longest waiting
	// paceTime makes the second half of the slots last, unless it is zero. Half of it
	// is taken after paceTime at the earliest, half of the rest after twice that time,
	// and so on. Thousands of hosts can wait, for instance after a restart, and all of
	// them can hold their connections. A new host then still finds a slot.
	paceTime time.Duration
	last     time.Time // when the last attempt started
}

// participant is the unit of fairness: the hosts of one group that wait for a pool or
// have attempts in it. All participants of a pool have equal shares.
type participant struct {
	position
	pool    *pool
	group   string
	hosts   order[*host]  // hosts that may start an attempt
	waits   *list.Element // the element in pool.waiting
	refused bool          // a host was refused because too many wait
}

// longestEvery is how often the participant that has waited longest is next. Without
// it, a participant could wait for as long as new ones arrive.
const longestEvery = 8

// choose returns the participant that is next, or nil if no attempt may start.
func (p *pool) choose(now time.Time) *participant {
	if len(p.ready) == 0 || p.free(now) < 1 {
		return nil
	}
	next := p.ready[0]
	if front := p.waiting.Front(); front != nil && p.passed >= longestEvery-1 {
		next = front.Value.(*participant)
	}
	if p.share(next) < 1 {
		return nil // the others have at least as many in flight
	}
	return next
}

// free returns how many attempts may start now.
func (p *pool) free(now time.Time) int {
	free := p.size - p.running
	if pace := p.pace(); pace > 0 {
		free = min(free, 1)
		if now.Before(p.last.Add(pace)) {
			return 0
		}
	}
	return free
}

// pace returns the minimum time between the last attempt and the next one.
func (p *pool) pace() time.Duration {
	free := max(1, p.size-p.running)
	if p.paceTime == 0 || free > p.size/2 {
		return 0
	}
	return min(p.paceTime/2, p.paceTime*time.Duration(p.size)/time.Duration(2*free*free))
}

// share returns how many more attempts a participant may start now. It leaves an equal
// share for one more participant.
func (p *pool) share(who *participant) int {
	active := p.active
	if who.running == 0 {
		active++
	}
	return max(1, p.size/(active+1)) - who.running
}

// nextChange returns when an attempt may start that may not start now. It is zero if
// there is no such time.
func (p *pool) nextChange(now time.Time) time.Time {
	if len(p.ready) == 0 || p.running >= p.size {
		return time.Time{}
	}
	if at := p.last.Add(p.pace()); at.After(now) {
		return at
	}
	return time.Time{}
}

// count adds n to the attempts in flight of a participant.
func (p *pool) count(who *participant, n int) {
	if who.running == 0 {
		p.active++
	}
	who.running += n
	if who.running == 0 {
		p.active--
	}
	p.running += n
}

// granted records that a participant starts n attempts.
func (p *pool) granted(who *participant, n int, now time.Time) {
	p.passed++
	if who.waits == p.waiting.Front() {
		p.passed = 0
	}
	p.last = now
	p.count(who, n)
}

// place moves a participant to where it belongs now. It drops a participant without
// hosts and without attempts in flight.
func (p *pool) place(who *participant) {
	waits := len(who.hosts) > 0 && who.running == 0
	switch {
	case waits && who.waits == nil:
		who.waits = p.waiting.PushBack(who)
	case !waits && who.waits != nil:
		p.waiting.Remove(who.waits)
		who.waits = nil
	}
	switch {
	case len(who.hosts) > 0:
		p.ready.add(who)
	case who.index > 0:
		p.ready.remove(who)
	}
	if len(who.hosts) == 0 && who.running == 0 {
		delete(p.participants, who.group)
	}
}
