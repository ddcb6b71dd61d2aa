package callback

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/event"
	"github.com/caddy-callback/caddy-callback/internal/metrics"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

func TestDefaultRetrySchedule(t *testing.T) {
	t.Parallel()
	o := new(Delivery)
	if err := o.provision(); err != nil {
		t.Fatal(err)
	}
	const s, m, h = time.Second, time.Minute, time.Hour
	want := []time.Duration{5 * s, 30 * s, 2 * m, 10 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h}
	got := make([]time.Duration, len(o.Retry))
	for i, wait := range o.Retry {
		got[i] = time.Duration(wait)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the schedule is %v, want %v", got, want)
	}
}

// A callback whose delivery window has ended counts as dead, like one whose last
// attempt has failed.
func TestExpiredCallbacksCountAsDead(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m, err := metrics.New(registry, new(web.NodeCounts))
	if err != nil {
		t.Fatal(err)
	}
	emitted := make(chan string, 1)
	a := &App{metrics: m, log: zap.NewNop(), handlers: &event.Handlers{
		Subscribed: func(string) bool { return true },
		Emit:       func(name string, data map[string]any) { emitted <- fmt.Sprint(name, " ", data["task_id"]) },
		Log:        zap.NewNop(),
	}}
	generations.Add(a) // it gets the events
	defer generations.Remove(a)
	defer generations.Drain(a)
	attemptObserver{a}.Expired(&task.Record{Task: task.Task{ID: "expired"}})
	if got := <-emitted; got != "callback_dead expired" {
		t.Errorf("the event is %q", got)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	dead := 0.0
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if labels := metric.GetLabel(); len(labels) == 1 && labels[0].GetValue() == "dead" {
				dead += metric.GetCounter().GetValue()
			}
		}
	}
	if dead != 1 {
		t.Errorf("%v dead deliveries are counted", dead)
	}
}
