package engine

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

// The embedded server keeps what it has written for ten seconds, and Go collects
// what is let go of once the heap has doubled. So what a burst took would stay
// resident for minutes after it.

const (
	// burstInterval is how often it is looked whether a burst is over.
	burstInterval = 5 * time.Second
	// burstLeast is how many messages in that time make a burst.
	burstLeast = 1000
	// burstCalm is for how many intervals there are fewer before it is over: the
	// server has let go of what it kept.
	burstCalm = 3
)

// burst finds out when a burst is over.
type burst struct {
	last uint64 // messages, when they were counted last
	calm int    // intervals since the burst; burstCalm or more if there is none
}

// over takes how many messages were ever stored, and says once after each burst
// that it is over.
func (b *burst) over(stored uint64) bool {
	n := stored - b.last
	b.last = stored
	if n >= burstLeast {
		b.calm = 0
		return false
	}
	b.calm++
	return b.calm == burstCalm
}

// watchBursts gives memory back to the system after each burst, until ctx ends.
func (e *Engine) watchBursts(ctx context.Context) {
	tick := time.NewTicker(burstInterval)
	defer tick.Stop()
	b := burst{calm: burstCalm}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if b.over(e.stored.Load()) {
			runtime.GC() // what is in pools survives one collection
			debug.FreeOSMemory()
		}
	}
}
