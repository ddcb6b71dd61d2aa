package metrics

import (
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestGaugesOfStore(t *testing.T) {
	t.Parallel()
	e, err := sqlite.Open(t.Context(), sqlite.Config{Folder: t.TempDir(), MaxSize: 1 << 30, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close(t.Context()) //nolint:errcheck // the folder is a temporary one
	rec := &task.Record{Task: task.Task{ID: "0193b1de-7a4c-7cc3-98c4-dc0c0c07398f", Queue: "busy"}, Request: new(task.Request)}
	if _, _, err := e.Enqueue(t.Context(), rec, nil, engine.EnqueueOptions{}); err != nil {
		t.Fatal(err)
	}
	left := 0
	registry := prometheus.NewRegistry()
	if err := RegisterStore(registry, Store{
		Open:   func() (engine.Engine, func(), error) { return e, func() { left++ }, nil },
		Queues: func() []string { return []string{"idle", "busy"} },
	}); err != nil {
		t.Fatal(err)
	}
	got := gather(t, registry)
	for series, want := range map[string]float64{
		`engine_ready`: 1, `tasks{state="queued"}`: 1, `tasks{state="dead"}`: 0, `due_deliveries`: 0, `hosts{state="failing"}`: 0,
		`queued_tasks{queue="busy"}`: 1, `queued_tasks{queue="idle"}`: 0, `queue_oldest_seconds{queue="idle"}`: 0,
	} {
		if value, ok := got[series]; !ok || value != want {
			t.Errorf("%s is %v (%v), want %v", series, value, ok, want)
		}
	}
	if got["store_used_bytes"] <= 0 || got["store_limit_bytes"] < got["store_used_bytes"] {
		t.Errorf("the store has %v of %v bytes", got["store_used_bytes"], got["store_limit_bytes"])
	}
	if left != 1 {
		t.Errorf("the store was left %d times", left)
	}
}

func TestGaugesOfUnavailableStore(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	if err := RegisterStore(registry, Store{
		Open: func() (engine.Engine, func(), error) { return nil, nil, engine.ErrUnavailable },
	}); err != nil {
		t.Fatal(err)
	}
	if got := gather(t, registry); !maps.Equal(got, map[string]float64{"engine_ready": 0}) {
		t.Errorf("the gauges are %v", slices.Sorted(maps.Keys(got)))
	}
}
