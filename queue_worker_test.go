package callback

import (
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

func TestGenerationsShareSlots(t *testing.T) {
	t.Parallel()
	var store sharedStore
	if s := store.slotsOf("q"); s != store.slotsOf("q") || s == store.slotsOf("r") {
		t.Error("the slots are not those of the queue")
	}
}
