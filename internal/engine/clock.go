package engine

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// The servers of a cluster say when a schedule's time has come, so it is told them by
// their clock. By ours, if it were ten minutes slow, every lease would have lapsed
// when it is stored, and every retry would come at once; if it were fast, what a
// killed gateway held would be nobody's for ten minutes.

// clockSlack is how far two clocks that are kept right may be apart, and how well
// theirs can be read.
const clockSlack = time.Second

// clocksInterval is how often the clocks are compared: ours may be set, and another
// server may lead.
const clocksInterval = 10 * time.Second

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

// watchClocks compares the clocks until ctx ends.
func (e *Engine) watchClocks(ctx context.Context) {
	tick := time.NewTicker(clocksInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		if err := e.compareClocks(ctx, e.link()); err != nil {
			e.log.Debug("clocks not compared", zap.Error(err))
		}
		cancel()
	}
}

// theirs is a time of our clock by that of the servers.
func (k *link) theirs(t time.Time) time.Time { return t.Add(time.Duration(k.ahead.Load())) }
