package sqlite

import (
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A delivery in flight is not given up. The others are, however many there are.
func TestExpiredDeliveriesAreGivenUpBesideOneInFlight(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	const others = 2 * trimBatch
	for range others + 1 {
		settled(t, s, newTask("a.test:443"), "result")
	}
	taken, err := s.Take(t.Context(), "a.test:443", others+1)
	must(t, err)
	for _, d := range taken { // retries are not held in memory
		must(t, d.Retry(t.Context(), time.Now()))
	}
	takeOne(t, s, "a.test:443")
	isBehind, err := s.trim(t.Context(), engine.Settings{
		Retention: time.Hour, RetentionCount: 1000, Dead: time.Hour, DeadCount: 1000, DeliveryWindow: time.Nanosecond,
	}, trimBatch)
	must(t, err)
	stats, err := s.Stats(t.Context())
	must(t, err)
	if n := stats.Tasks[task.Dead]; n != others || isBehind {
		t.Errorf("%d of %d were given up; behind: %v", n, others, isBehind)
	}
}
