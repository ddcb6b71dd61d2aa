// Package pace spreads starts evenly over time, instead of in bursts of a whole period.
package pace

import (
	"context"
	"sync/atomic"
	"time"
)

// Slack is how late a start may be without delaying those after it: timers are not
// exact, and a busy machine is late too.
const Slack = 20 * time.Millisecond

// Pace keeps the starts of one thing an interval apart. Its methods may be called from
// several goroutines at once, also with different intervals: an interval counts from the
// last start.
type Pace struct {
	turn    chan struct{} // has a value between Acquire and Release
	last    time.Time     // the last start, or earlier if it was late; owned by the turn
	waiting atomic.Bool   // Acquire waits for the interval to pass
}

// New returns a Pace whose first start is permitted at once.
func New() *Pace { return &Pace{turn: make(chan struct{}, 1)} }

// Acquire waits until a start is permitted and returns how many are: one, or a few more
// if the interval is shorter than [Slack] and some of them are late. It returns 0 if ctx
// ends first. Otherwise other callers wait until Release.
func (p *Pace) Acquire(ctx context.Context, interval time.Duration) int {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	if p.wait(ctx, interval) != nil {
		<-p.turn
		return 0
	}
	late := min(time.Since(p.last)-interval, Slack)
	return 1 + int(late/interval)
}

// wait waits until an interval has passed since the last start.
func (p *Pace) wait(ctx context.Context, interval time.Duration) error {
	left := interval - time.Since(p.last)
	if left <= 0 {
		return ctx.Err()
	}
	p.waiting.Store(true)
	defer p.waiting.Store(false)
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Release ends what Acquire began. n of the permitted starts were made, just now.
func (p *Pace) Release(interval time.Duration, n int) {
	if n > 0 {
		next := p.last.Add(interval)
		if earliest := time.Now().Add(-Slack); next.Before(earliest) {
			next = earliest
		}
		p.last = next.Add(time.Duration(n-1) * interval)
	}
	<-p.turn
}

// Waiting reports whether a caller of Acquire waits for its interval to pass.
func (p *Pace) Waiting() bool { return p.waiting.Load() }
