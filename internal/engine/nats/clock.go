package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// The servers of a cluster say when a schedule's time has come, so it is told them by
// their clock. By ours, if it were ten minutes slow, every lease would have lapsed
// when it is stored, and every retry would come at once; if it were fast, what a
// killed gateway held would be nobody's for ten minutes.

// clockSlack is how far two clocks that are kept right may be apart, and how well
// theirs can be read.
const clockSlack = time.Second

// clocksInterval is how often the clocks are looked after: ours may be set, theirs too,
// and another server may lead.
const clocksInterval = 10 * time.Second

// A server waits for the first of its schedules with a timer, and timers do not see
// that the clock is set, or that the machine slept: whatever is due in between would
// come as much later as the clock went forward. So there is always a schedule for a
// moment from now, for as long as others wait, and the timer never runs for longer.
const windAhead = 15 * time.Second

// compareClocks finds out how far the servers' clock is ahead of ours. The stream's
// leader is asked, who keeps its schedules.
func (e *Engine) compareClocks(ctx context.Context, k *link) error {
	asked := time.Now()
	info, err := k.live.Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the servers' time: %w", err)
	}
	took := time.Since(asked)
	if info.State.LastSeq < k.found.Load() {
		k.found.Store(0) // the stream was made anew
	}
	ahead := info.TimeStamp.Sub(asked.Add(took / 2).Round(0))
	if ahead.Abs() <= clockSlack+took/2 {
		ahead = 0
	}
	if before := time.Duration(k.ahead.Swap(int64(ahead))); (ahead - before).Abs() > clockSlack+took/2 {
		e.log.Warn("the clock of the NATS servers is not ours; leases and retries go by theirs", zap.Duration("ahead", ahead))
	}
	return nil
}

// watchClocks compares the clocks, and winds the servers', until ctx ends.
func (e *Engine) watchClocks(ctx context.Context) {
	tick := time.NewTicker(clocksInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// That either fails is told by others, too.
		if e.remote() {
			asking, cancel := context.WithTimeout(ctx, probeTimeout)
			if err := e.compareClocks(asking, e.link()); err != nil {
				e.log.Debug("clocks not compared", zap.Error(err))
			}
			cancel()
		}
		if e.Ready() == nil {
			if err := e.wind(ctx, e.link()); err != nil {
				e.log.Debug("clock not wound", zap.Error(err))
			}
		}
	}
}

// wind stores a schedule for a moment from now if there are others. It is written anew
// before its time has come, or else moves to where it is no matter. It has as long to be
// stored as a task has: an engine that is slow is not down.
func (e *Engine) wind(ctx context.Context, k *link) error {
	waiting, err := e.hasSchedules(ctx, k)
	if err != nil || !waiting {
		return err
	}
	at := k.theirs(time.Now().Add(windAhead))
	_, err = e.store(ctx, &nats.Msg{Subject: clockSubject, Header: scheduled(at, probeSubject)})
	return err
}

// hasSchedules says whether the servers are to move something when its time has come.
func (e *Engine) hasSchedules(ctx context.Context, k *link) (bool, error) {
	for _, subject := range []string{leaseSubject + "*", retrySubject + "*", cronSubject + "*.*"} {
		_, err := k.live.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject))
		if err == nil {
			return true, nil
		} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, fmt.Errorf("looking for %s: %w", subject, err)
		}
	}
	return false, nil
}

// theirs is a time of our clock by that of the servers.
func (k *link) theirs(t time.Time) time.Time { return t.Add(time.Duration(k.ahead.Load())) }
