package metrics

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// gather returns the counters, the gauges and the histogram counts of a registry, by name and
// labels.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		name := strings.TrimPrefix(family.GetName(), namespace+"_"+subsystem+"_")
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", label.GetName(), label.GetValue()))
			}
			series := name
			if len(labels) > 0 {
				series += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case metric.Counter != nil:
				values[series] = metric.GetCounter().GetValue()
			case metric.Gauge != nil:
				values[series] = metric.GetGauge().GetValue()
			case metric.Histogram != nil:
				values[series] = float64(metric.GetHistogram().GetSampleCount())
			}
		}
	}
	return values
}

func newTestMetrics(t *testing.T) (*Metrics, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	m, err := New(registry, new(web.NodeCounts))
	if err != nil {
		t.Fatal(err)
	}
	return m, registry
}

// An alert on an increase misses a series that starts at 1.
func TestCountersStartAtZero(t *testing.T) {
	t.Parallel()
	_, registry := newTestMetrics(t)
	values := gather(t, registry)
	for _, series := range []string{
		`deliveries_total{outcome="delivered"}`, `deliveries_total{outcome="retry"}`, `deliveries_total{outcome="dead"}`,
		`skipped_total{reason="content_type"}`, `skipped_total{reason="stream"}`, `skipped_total{reason="content_encoding"}`,
		`skipped_total{reason="not_decodable"}`, `skipped_total{reason="not_json"}`, `skipped_total{reason="max_request"}`,
		`skipped_total{reason="no_spool"}`, `skipped_total{reason="hops"}`,
	} {
		if value, ok := values[series]; !ok || value != 0 {
			t.Errorf("%s is %v (%v)", series, value, ok)
		}
	}
}

func TestTasksAreCountedByRouteAndQueue(t *testing.T) {
	t.Parallel()
	m, registry := newTestMetrics(t)
	before := gather(t, registry)
	now := time.Now()
	run := &task.Record{Route: "q", Task: task.Task{
		Queue: "q", Status: task.Failed, CreatedAt: now.Add(-time.Minute), StartedAt: now.Add(-time.Second), FinishedAt: now,
	}}
	waiting := &task.Record{Route: "srv0", Task: task.Task{
		Status: task.Complete, CreatedAt: now.Add(-time.Minute), StartedAt: now.Add(-time.Minute), FinishedAt: now,
	}}
	canceled := &task.Record{Route: "q", Task: task.Task{ // before it started
		Queue: "q", Status: task.Failed, CreatedAt: now.Add(-time.Minute), FinishedAt: now,
	}}
	m.TaskStarted(run)
	for _, rec := range []*task.Record{run, waiting, canceled} {
		m.TaskEnded(rec)
	}
	want := map[string]float64{
		`tasks_total{route="q",status="FAILED"}`:      2,
		`tasks_total{route="srv0",status="COMPLETE"}`: 1,
		`task_duration_seconds`:                       3,
		`queue_starts_total{queue="q"}`:               1,
		`queue_wait_seconds{queue="q"}`:               1,
		`queue_run_seconds{queue="q"}`:                1,
	}
	got := gather(t, registry)
	maps.DeleteFunc(got, func(series string, value float64) bool {
		old, known := before[series]
		return known && old == value
	})
	if !maps.Equal(got, want) {
		t.Errorf("counts %v of %v", slices.Sorted(maps.Keys(got)), got)
	}
}

func TestDeliveryLagOfFirstAttempts(t *testing.T) {
	t.Parallel()
	m, registry := newTestMetrics(t)
	now := time.Now()
	for _, test := range []struct {
		name string
		rec  *task.Record
		lags float64
	}{
		{"a first attempt", &task.Record{Tries: 1}, 1},
		{"a retry", &task.Record{Tries: 2}, 1},
		{"the first after a redelivery", &task.Record{Tries: 1, Redelivered: []time.Time{now}}, 1},
	} {
		test.rec.FinishedAt = now
		m.Attempted(test.rec, deliver.Retry, now, time.Second)
		if got := gather(t, registry)["delivery_lag_seconds"]; got != test.lags {
			t.Errorf("after %s there are %v lags, want %v", test.name, got, test.lags)
		}
	}
	if got := gather(t, registry)["delivery_duration_seconds"]; got != 3 {
		t.Errorf("%v durations of 3 attempts", got)
	}
}
