package dispatch

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"
)

// simple implements simpler rules: limits on all attempts and on those to one host, and
// an order.
type simple struct {
	// order compares two hosts that both may start an attempt.
	order func(a, b *simpleHost) int
	// slow is the size of a pool to which attempts move after a second. An attempt to a
	// host that has not answered, or takes longer, starts only if the pool has room for
	// it.
	slow int

	hosts   map[string]*simpleHost
	list    []*simpleHost
	running []*Attempt // those that use a slot, the oldest first
	inSlow  map[*Attempt]bool
	starts  int
}

type simpleHost struct {
	h        *host
	due      []time.Time // when each delivery became due
	served   int         // the number of the last start
	slotTime time.Duration
}

const simpleSlotTime = time.Second

func newSimple(order func(a, b *simpleHost) int, slow int) *simple {
	return &simple{order: order, slow: slow, hosts: make(map[string]*simpleHost), inSlow: make(map[*Attempt]bool)}
}

func firstCome(a, b *simpleHost) int     { return a.due[0].Compare(b.due[0]) }
func roundRobin(a, b *simpleHost) int    { return cmp.Compare(a.served, b.served) }
func leastSlotTime(a, b *simpleHost) int { return cmp.Compare(a.slotTime, b.slotTime) }

func (s *simple) Due(due Due, now time.Time) bool {
	h := s.hosts[due.Host]
	if h == nil {
		h = &simpleHost{h: &host{name: due.Host, stats: due.Stats}}
		s.hosts[due.Host] = h
		s.list = append(s.list, h)
	}
	for range due.N {
		h.due = append(h.due, now)
	}
	return true
}

// unsure reports whether an attempt needs room in the slow pool from the start.
func (s *simple) unsure(h *host) bool {
	return s.slow > 0 && (h.stats.Answered.IsZero() || h.stats.Average > simpleSlotTime)
}

func (s *simple) Next(now time.Time) (Grant, bool) {
	s.running = slices.DeleteFunc(s.running, func(a *Attempt) bool {
		if now.Sub(a.started) < simpleSlotTime || !s.inSlow[a] && len(s.inSlow) >= s.slow {
			return false
		}
		s.inSlow[a] = true
		return true
	})
	if len(s.running) >= DefaultConcurrency {
		return Grant{}, false
	}
	var next *simpleHost
	for _, h := range s.list {
		if len(h.due) > 0 && h.h.running < DefaultPerHost && (next == nil || s.order(h, next) < 0) &&
			!(s.unsure(h.h) && len(s.inSlow) >= s.slow) {
			next = h
		}
	}
	if next == nil {
		return Grant{}, false
	}
	s.starts++
	next.due = next.due[1:]
	next.h.running++
	next.served = s.starts
	a := &Attempt{host: next.h, started: now}
	s.running = append(s.running, a)
	if s.unsure(next.h) {
		s.inSlow[a] = true
	}
	return Grant{Host: next.h.name, Attempts: []*Attempt{a}}, true
}

func (s *simple) Done(a *Attempt, o Outcome, now time.Time) Stats {
	h := s.hosts[a.host.name]
	h.slotTime += now.Sub(a.started)
	if s.slow > 0 {
		h.slotTime += min(0, simpleSlotTime-now.Sub(a.started))
	}
	h.h.running--
	h.h.learn(o, now, DefaultPerHost)
	delete(s.inSlow, a)
	if i := slices.Index(s.running, a); i >= 0 {
		s.running = slices.Delete(s.running, i, i+1)
	}
	return h.h.stats
}

func (s *simple) Short(Grant, int, time.Time) {}

func (s *simple) NextChange(now time.Time) time.Time {
	if s.slow == 0 || len(s.running) == 0 {
		return time.Time{}
	}
	if at := s.running[0].started.Add(simpleSlotTime); at.After(now) {
		return at
	}
	return time.Time{}
}

// Each simpler rule fails under one load. If one passes, use it.
func TestSimplerRulesFail(t *testing.T) {
	t.Parallel()
	alone := measure(New(Limits{}), nil, true, 1)
	for _, r := range []struct {
		name  string
		rules func() rules
		load  string
	}{
		{"first come, first served", func() rules { return newSimple(firstCome, 0) }, "8 hosts that hold"},
		{"one host after the other", func() rules { return newSimple(roundRobin, 0) }, "8 hosts that hold"},
		{"least slot time", func() rules { return newSimple(leastSlotTime, 0) }, "8 hosts that hold"},
		{"least slot time, slow pool", func() rules { return newSimple(leastSlotTime, DefaultSlow) }, "a thousand names of a domain that hold"},
		{"one host after the other, slow pool", func() rules { return newSimple(roundRobin, DefaultSlow) }, "a thousand names of a domain that hold"},
		{"least slot time, slow pool without limit", func() rules { return newSimple(leastSlotTime, math.MaxInt) }, "500 hosts at 0.9 s, 500 at 1.5 s, 500 that drip"},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			i := slices.IndexFunc(loads, func(l load) bool { return l.name == r.load })
			f := measure(r.rules(), loads[i].add, true, 1)
			t.Logf("%s: %v", r.load, f)
			if f.fair(alone) {
				t.Error("passes")
			}
		})
	}
}
