package callback

import (
	"context"
	"testing"
	"time"
)

func TestRetryWaitsGrowWithJitter(t *testing.T) {
	t.Parallel()
	for starts, want := range map[int]time.Duration{
		1: time.Second, 2: 5 * time.Second, 3: 30 * time.Second, 4: 2 * time.Minute, 5: 2 * time.Minute, 100: 2 * time.Minute,
	} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			got := runWait(starts)
			if got < want || got > want+want/5 {
				t.Errorf("after %d starts the wait is %v, not %v and up to a fifth more", starts, got, want)
			}
			seen[got] = true
		}
		if len(seen) < 2 {
			t.Errorf("after %d starts the wait has no jitter", starts)
		}
	}
}

func TestSlotsAreSharedAndLimited(t *testing.T) {
	t.Parallel()
	var store sharedStore
	s := store.slotsOf("q")
	if s != store.slotsOf("q") {
		t.Fatal("two generations do not share their slots")
	}
	if n := s.take(t.Context(), 3); n != 3 {
		t.Errorf("took %d of three free slots", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n := s.take(ended, 3); n != 0 {
		t.Errorf("took %d slots although none is free", n)
	}
	waited := make(chan int)
	go func() { waited <- s.take(context.WithoutCancel(t.Context()), 2) }()
	s.give(1) // two are left, which is what the new limit allows
	s.give(1)
	if n := <-waited; n != 1 {
		t.Errorf("took %d slots, want the one that is free", n)
	}
}
