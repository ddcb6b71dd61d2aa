// Package alert decides which alerts an operator gets. A receiver that is away can make
// thousands of callbacks fail, and must not cause thousands of alerts: there is at most
// one an hour about each subject.
//
//	var limiter alert.Limiter
//	if a, ok := limiter.Raise(alert.Alert{Type: alert.Dead, …}, host, true); ok { … } // send a
//	for _, a := range limiter.Held(time.Now()) { … }                               // from time to time
package alert

import (
	"sync"
	"time"
)

// The types of alerts. Events of the same names are emitted to Caddy's events app.
const (
	Dead        = "callback_dead"
	HostFailing = "callback_host_failing"
	HostPaused  = "callback_host_paused"
	StoreFull   = "callback_store_nearly_full"
)

// Alert is what the operator gets, as JSON: the payload that Standard Webhooks
// recommends.
type Alert struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	// Count is how often this has happened to the subject since the last alert about
	// it. Data describes the last time. It contains no URL, secret or body.
	Count int            `json:"count"`
	Data  map[string]any `json:"data"`
}

// Interval is the least time between two alerts of one type about one subject.
const Interval = time.Hour

// maxSubjects bounds the memory. If there are more, the others of a type share one.
const maxSubjects = 10_000

// Limiter limits alerts. The zero value is ready to use. Its methods may be called from
// several goroutines at once.
type Limiter struct {
	mu       sync.Mutex
	subjects map[subject]*recent
}

type subject struct{ kind, name string }

// recent is a subject whose last alert was sent less than an Interval ago.
type recent struct {
	next time.Time // of the next alert
	held int       // alerts since the last one
	last Alert
}

// Raise reports whether an alert is sent, and returns it with its Count. Otherwise, an
// alert was sent less than an [Interval] ago. Then this one is counted and, if hold is
// set, [Limiter.Held] returns it once the interval is over.
func (l *Limiter) Raise(a Alert, name string, hold bool) (Alert, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	about := subject{a.Type, name}
	r := l.subjects[about]
	if r == nil {
		if about = l.room(about, a.Timestamp); l.subjects[about] == nil {
			l.subjects[about] = new(recent)
		}
		r = l.subjects[about]
	}
	if a.Timestamp.Before(r.next) {
		if hold {
			r.held, r.last = r.held+1, a
		}
		return Alert{}, false
	}
	a.Count = r.held + 1
	*r = recent{next: a.Timestamp.Add(Interval)}
	return a, true
}

// room makes room for a subject, and returns the one to use. l.mu is held.
func (l *Limiter) room(about subject, now time.Time) subject {
	if l.subjects == nil {
		l.subjects = make(map[subject]*recent)
	}
	if len(l.subjects) >= maxSubjects {
		for other, r := range l.subjects {
			if r.held == 0 && !now.Before(r.next) {
				delete(l.subjects, other)
			}
		}
	}
	if len(l.subjects) >= maxSubjects {
		about.name = ""
	}
	return about
}

// Held returns the alerts that were held back and can be sent now.
func (l *Limiter) Held(now time.Time) (due []Alert) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for about, r := range l.subjects {
		switch {
		case now.Before(r.next):
		case r.held == 0:
			delete(l.subjects, about)
		default:
			r.last.Count = r.held
			due = append(due, r.last)
			*r = recent{next: now.Add(Interval)}
		}
	}
	return due
}
