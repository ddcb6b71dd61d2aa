package engine

import "testing"

func TestABurstIsOverOnceAndWhenItIsCalm(t *testing.T) {
	t.Parallel()
	b := burst{calm: burstCalm}
	stored := uint64(0)
	for i, step := range []struct {
		stored uint64 // since the step before
		over   bool
	}{
		{}, {}, {stored: 10}, {}, {}, // there was none
		{stored: burstLeast}, {stored: 5 * burstLeast}, {stored: 3}, {stored: burstLeast - 1}, {over: true}, {}, {stored: 7}, {}, {},
		{stored: 9 * burstLeast}, {}, {}, {stored: burstLeast}, {}, {}, {over: true}, // it went on after a break
		{}, {}, {}, {},
	} {
		stored += step.stored
		if over := b.over(stored); over != step.over {
			t.Errorf("step %d: over is %v", i, over)
		}
	}
}
