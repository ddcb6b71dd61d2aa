package dispatch

import (
	"container/list"
	"time"
)

const (
	// firstWindow is the window of a host that has not answered lately.
	firstWindow = 2
	// fastAverage is the average from which a host is no longer fast.
	fastAverage = 100 * time.Millisecond
	// answerLifetime is how long an answer of a host counts.
	answerLifetime = 24 * time.Hour
)

// Stats is what is known about a host. The engine stores it, because a restart loses
// the memory, and the memory is bounded. The zero value means that nothing is known.
type Stats struct {
	Window   int           // attempts at once that the host has earned
	Average  time.Duration // of the durations of attempts, weighted towards the last ones
	Answered time.Time     // when the host answered last
}

// host is one host:port. Without deliveries due and attempts in flight, it is idle.
type host struct {
	position
	name    string
	group   string
	trusted bool
	stats   Stats
	due     int   // deliveries that wait in the engine, as reported
	arrived int64 // deliveries that were reported in total
	late    int   // attempts in flight that have left the fast pool

	next  time.Time // when the next attempt may start, if there is a rate
	paced int       // the position in Dispatcher.paced, from 1; 0 if the host is not in it

	queued *participant  // the participant in whose order the host waits
	idle   *list.Element // the element in Dispatcher.idle
}

// fast reports whether the next attempt is expected to end soon.
func (h *host) fast() bool {
	return h.stats.Average < fastAverage && h.late == 0 && (h.trusted || !h.stats.Answered.IsZero())
}

// load sets the stats of a host. It replaces empty and expired stats with those of a
// new host.
func (h *host) load(s Stats, now time.Time) {
	if s.Window < 1 || !s.Answered.IsZero() && now.Sub(s.Answered) > answerLifetime {
		s = Stats{Window: firstWindow}
	}
	h.stats = s
}

// learn updates the stats of a host after an attempt.
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
		return // the duration says nothing about answers
	}
	if s.Average == 0 {
		s.Average = o.Took
	}
	s.Average += (o.Took - s.Average) / 4
	if o.Kind == Answered {
		s.Answered = now
	}
}
