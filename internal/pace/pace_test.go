package pace

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// starts makes n starts and returns when they were, since the first.
func starts(t *testing.T, p *Pace, interval time.Duration, n int) (at []time.Duration) {
	t.Helper()
	var first time.Time
	for len(at) < n {
		permitted := p.Acquire(t.Context(), interval)
		if permitted < 1 {
			t.Fatalf("%d starts are permitted", permitted)
		}
		now := time.Now()
		if first.IsZero() {
			first = now
		}
		permitted = min(permitted, n-len(at))
		for range permitted {
			at = append(at, now.Sub(first))
		}
		p.Release(interval, permitted)
	}
	return at
}

func TestStartsAreSpreadEvenly(t *testing.T) {
	t.Parallel()
	for name, interval := range map[string]time.Duration{
		"slow": time.Minute, "second": time.Second, "as long as the slack": Slack, "fast": 100 * time.Microsecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n = 50
				early := 0 // an idle pace may be ahead by the slack
				for i, at := range starts(t, New(), interval, n) {
					for at < time.Duration(i-early)*interval {
						early++
					}
				}
				if most := int(Slack/interval) + 1; early > most {
					t.Errorf("%d of %d starts are early, want %d at most", early, n, most)
				}
			})
		})
	}
}

func TestLateStartsAreNotMadeUpForInABurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New()
		starts(t, p, time.Second, 1)
		<-time.After(time.Hour) // fake: nothing to start
		at := starts(t, p, time.Second, 3)
		if at[1] < time.Second-Slack || at[2] < 2*time.Second-Slack {
			t.Errorf("after an idle hour the starts are at %v", at)
		}
	})
}

func TestLateStartsWithinTheSlackCostNoRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, first := New(), time.Now()
		const n = 200
		for range n {
			p.Acquire(t.Context(), time.Second)
			<-time.After(Slack / 2) // fake: each start is late
			p.Release(time.Second, 1)
		}
		if took := time.Since(first); took > (n+1)*time.Second {
			t.Errorf("%d starts took %v", n, took)
		}
	})
}

func TestANewIntervalCountsFromTheLastStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New()
		starts(t, p, time.Hour, 1)
		before := time.Now()
		starts(t, p, time.Second, 1)
		if took := time.Since(before); took > time.Second {
			t.Errorf("with a new interval of 1s, the next start was after %v", took)
		}
	})
}

func TestCallersShareOneRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, first := New(), time.Now()
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() { starts(t, p, time.Second, 5) })
		}
		callers.Wait()
		if took := time.Since(first); took < 19*time.Second-Slack {
			t.Errorf("20 starts of 4 callers took %v", took)
		}
	})
}

func TestAcquireEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New()
		starts(t, p, time.Hour, 1)
		ctx, cancel := context.WithCancel(t.Context())
		permitted := make(chan int, 2)
		for range 2 { // one waits for its time, one for its turn
			go func() { permitted <- p.Acquire(ctx, time.Hour) }()
		}
		synctest.Wait()
		if !p.Waiting() {
			t.Error("nobody waits")
		}
		cancel()
		if n := <-permitted + <-permitted; n != 0 {
			t.Errorf("%d starts are permitted", n)
		}
		if p.Waiting() {
			t.Error("somebody still waits")
		}
		p.Acquire(t.Context(), time.Nanosecond) // the turn is free
	})
}
