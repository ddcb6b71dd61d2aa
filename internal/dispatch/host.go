package dispatch

import (
	"container/list"
	"time"
)

const (
	// firstWindow is how many attempts at once a host gets that has not answered
	// lately.
	firstWindow = 2
	// fastAverage is the average from which on a host is no longer fast.
	fastAverage = 100 * time.Millisecond
	// answerLifetime is how long it counts that a host has answered.
	answerLifetime = 24 * time.Hour
)

// Stats is what is known of a host. The engine keeps it, because a restart loses
// what is in memory, and memory is bounded. The zero value means that nothing is
// known.
type Stats struct {
	Window   int           // attempts at once that the host has earned
	Average  time.Duration // of its attempts, the last ones counting most
	Answered time.Time     // when it answered last
}

// host is one host:port with deliveries due or attempts in flight, or one that
// is only remembered.
type host struct {
	position
	name    string
	group   string
	trusted bool
	stats   Stats
	due     int   // deliveries that wait in the engine, as far as is known
	arrived int64 // deliveries that were ever reported
	late    int   // attempts in flight that have left the fast pool

	next  time.Time // when its next attempt may start, if there is a rate
	paced int       // its place among those that wait for that, from 1; 0 if it does not

	queued *participant  // in whose order it waits
	idle   *list.Element // its place among those that are only remembered
}

// fast reports whether the next attempt is expected to end soon.
func (h *host) fast() bool {
	return h.stats.Average < fastAverage && h.late == 0 && (h.trusted || !h.stats.Answered.IsZero())
}

// load sets what is known of a host.
func (h *host) load(s Stats, now time.Time) {
	if s.Window < 1 || !s.Answered.IsZero() && now.Sub(s.Answered) > answerLifetime {
		s = Stats{Window: firstWindow}
	}
	h.stats = s
}

// learn adjusts what is known of a host to how an attempt ended.
func (h *host) learn(o Outcome, now time.Time, perHost int) {
	s := &h.stats
	switch o.Kind {
	case Cancelled:
		return
	case Answered:
		s.Window = max(s.Window, min(s.Window+1, perHost))
	default:
		s.Window = max(1, s.Window/2)
	}
	if o.Kind == Unreachable {
		return // how long that took says nothing about answers
	}
	if s.Average == 0 {
		s.Average = o.Took
	}
	s.Average += (o.Took - s.Average) / 4
	if o.Kind == Answered {
		s.Answered = now
	}
}
