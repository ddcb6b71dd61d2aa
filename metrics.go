package callback

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Outcomes of an attempt, as metrics and the log name them.
const (
	outcomeDelivered = "delivered"
	outcomeRetry     = "retry"
	outcomeDead      = "dead"
)

// metrics of one generation of the configuration. Labels are bounded: never a
// URL, a host or an ID.
type metrics struct {
	tasks            *prometheus.CounterVec
	taskDuration     prometheus.Histogram
	deliveries       *prometheus.CounterVec
	deliveryDuration prometheus.Histogram
	deliveryLag      prometheus.Histogram
	queueWait        prometheus.Histogram
	queueStarts      *prometheus.CounterVec
}

const metricsNamespace, metricsSubsystem = "caddy", "callback"

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help, Buckets: buckets}
	}
	m := &metrics{
		tasks: prometheus.NewCounterVec(prometheus.CounterOpts(opts("tasks_total",
			"Tasks that have their verdict, by it.")), []string{"route", "status"}),
		taskDuration: prometheus.NewHistogram(histogram("task_duration_seconds",
			"From accepting a task to its verdict.", prometheus.ExponentialBuckets(0.005, 4, 11))),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts(opts("deliveries_total",
			"Attempts to deliver a callback, by what came of them: delivered, retry or dead.")), []string{"outcome"}),
		deliveryDuration: prometheus.NewHistogram(histogram("delivery_duration_seconds",
			"One attempt, from connecting to the end of the answer.", prometheus.DefBuckets)),
		deliveryLag: prometheus.NewHistogram(histogram("delivery_lag_seconds",
			"From a task's verdict to the start of its first attempt.", prometheus.ExponentialBuckets(0.0005, 4, 11))),
		queueWait: prometheus.NewHistogram(histogram("queue_wait_seconds",
			"From accepting a queue's task to each time it is begun.", prometheus.ExponentialBuckets(0.0005, 4, 13))),
		queueStarts: prometheus.NewCounterVec(prometheus.CounterOpts(opts("queue_starts_total",
			"How often tasks of a queue were begun.")), []string{"queue"}),
	}
	var err error
	m.tasks, err = registered(registry, m.tasks, err)
	m.taskDuration, err = registered(registry, m.taskDuration, err)
	m.deliveries, err = registered(registry, m.deliveries, err)
	m.deliveryDuration, err = registered(registry, m.deliveryDuration, err)
	m.deliveryLag, err = registered(registry, m.deliveryLag, err)
	m.queueWait, err = registered(registry, m.queueWait, err)
	m.queueStarts, err = registered(registry, m.queueStarts, err)
	return m, err
}

// registered registers a collector, or returns the one that the registry has
// under its name already.
func registered[C prometheus.Collector](registry *prometheus.Registry, c C, before error) (C, error) {
	if before != nil {
		return c, before
	}
	err := registry.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("registering metrics: %w", err)
	}
	return c, nil
}

func (m *metrics) taskEnded(rec *task.Record) {
	m.tasks.WithLabelValues(rec.Route, string(rec.Status)).Inc()
	m.taskDuration.Observe(rec.FinishedAt.Sub(rec.CreatedAt).Seconds())
}

func (m *metrics) attempted(rec *task.Record, outcome string, took time.Duration) {
	m.deliveries.WithLabelValues(outcome).Inc()
	m.deliveryDuration.Observe(took.Seconds())
	if rec.Tries == 1 {
		m.deliveryLag.Observe(rec.Attempts[0].At.Sub(rec.FinishedAt).Seconds())
	}
}

// taskStarted notes that a queue's task was begun.
func (m *metrics) taskStarted(rec *task.Record) {
	m.queueWait.Observe(rec.StartedAt.Sub(rec.CreatedAt).Seconds())
	m.queueStarts.WithLabelValues(rec.Queue).Inc()
}
