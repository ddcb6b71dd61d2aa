package callback

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
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
	skipped          *prometheus.CounterVec
	skips            map[bodies.Reason]prometheus.Counter // those of skipped
	taskDuration     prometheus.Histogram
	deliveries       *prometheus.CounterVec
	deliveryDuration prometheus.Histogram
	deliveryLag      prometheus.Histogram
	queueWait        *prometheus.HistogramVec
	queueRun         *prometheus.HistogramVec
	queueStarts      *prometheus.CounterVec
	queueWorkers     *prometheus.GaugeVec
	queueMax         *prometheus.GaugeVec
	counts           *taskCounts
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
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts(opts("skipped_total",
			"Requests that could have been tasks and were not, by the reason.")), []string{"reason"}),
		taskDuration: prometheus.NewHistogram(histogram("task_duration_seconds",
			"From accepting a task to its verdict.", prometheus.ExponentialBuckets(0.005, 4, 11))),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts(opts("deliveries_total",
			"Attempts to deliver a callback, by what came of them: delivered, retry or dead.")), []string{"outcome"}),
		deliveryDuration: prometheus.NewHistogram(histogram("delivery_duration_seconds",
			"One attempt, from connecting to the end of the answer.",
			[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 60})),
		deliveryLag: prometheus.NewHistogram(histogram("delivery_lag_seconds",
			"From a task's verdict to the start of its first attempt.", prometheus.ExponentialBuckets(0.0005, 4, 11))),
		queueWait: prometheus.NewHistogramVec(histogram("queue_wait_seconds",
			"From accepting a queue's task to each time it is begun.",
			prometheus.ExponentialBuckets(0.0005, 4, 13)), []string{"queue"}),
		queueRun: prometheus.NewHistogramVec(histogram("queue_run_seconds",
			"From beginning a queue's task to the verdict of that run.",
			prometheus.ExponentialBuckets(0.005, 4, 11)), []string{"queue"}),
		queueStarts: prometheus.NewCounterVec(prometheus.CounterOpts(opts("queue_starts_total",
			"How often tasks of a queue were begun.")), []string{"queue"}),
		queueWorkers: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("queue_workers",
			"How many tasks of a queue can run at once on this node.")), []string{"queue"}),
		queueMax: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("queue_max_tasks",
			"How many tasks can wait in a queue before more are refused.")), []string{"queue"}),
		counts: &taskCounts{desc: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "tasks"),
			"Tasks that stand in a state: queued, running, delivering, done or dead.", []string{"state"}, nil),
			queued: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "queued_tasks"),
				"Tasks that wait in a queue.", []string{"queue"}, nil),
			due: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "due_deliveries"),
				"Deliveries that are due: being attempted, or waiting for their turn.", nil, nil),
			ready: prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "engine_ready"),
				"Whether the engine can take tasks: 1, or 0 while requests for callbacks are refused.", nil, nil)},
	}
	var err error
	m.tasks, err = registered(registry, m.tasks, err)
	m.skipped, err = registered(registry, m.skipped, err)
	m.taskDuration, err = registered(registry, m.taskDuration, err)
	m.deliveries, err = registered(registry, m.deliveries, err)
	m.deliveryDuration, err = registered(registry, m.deliveryDuration, err)
	m.deliveryLag, err = registered(registry, m.deliveryLag, err)
	m.queueWait, err = registered(registry, m.queueWait, err)
	m.queueRun, err = registered(registry, m.queueRun, err)
	m.queueStarts, err = registered(registry, m.queueStarts, err)
	m.queueWorkers, err = registered(registry, m.queueWorkers, err)
	m.queueMax, err = registered(registry, m.queueMax, err)
	m.counts, err = registered(registry, m.counts, err)
	// What has not happened yet is 0, not missing: the first callback that is given
	// up must show as an increase.
	for _, outcome := range []string{outcomeDelivered, outcomeRetry, outcomeDead} {
		m.deliveries.WithLabelValues(outcome)
	}
	m.skips = make(map[bodies.Reason]prometheus.Counter)
	for _, reason := range []bodies.Reason{
		bodies.ContentType, bodies.Stream, bodies.Coding, bodies.Encoded, bodies.NotJSON, bodies.TooLarge, bodies.NoSpool, hopsReached,
	} {
		m.skips[reason] = m.skipped.WithLabelValues(string(reason))
	}
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

// taskCounts asks the engine how many tasks stand in each state, whenever it is
// scraped. While the engine does not answer it says no more than that.
type taskCounts struct {
	desc   *prometheus.Desc
	queued *prometheus.Desc
	due    *prometheus.Desc
	ready  *prometheus.Desc
	app    atomic.Pointer[App] // nil while no generation of this registry runs
}

// countsTimeout keeps an engine that is away from holding up a scrape.
const countsTimeout = 2 * time.Second

// Describe implements [prometheus.Collector].
func (c *taskCounts) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.desc
	descs <- c.queued
	descs <- c.due
	descs <- c.ready
}

// Collect implements [prometheus.Collector].
func (c *taskCounts) Collect(found chan<- prometheus.Metric) {
	s, leave := c.use()
	ready := 0.0
	if s != nil && s.Ready() == nil {
		ready = 1
	}
	found <- prometheus.MustNewConstMetric(c.ready, prometheus.GaugeValue, ready)
	if s == nil {
		return
	}
	defer leave()
	ctx, cancel := context.WithTimeout(context.Background(), countsTimeout)
	defer cancel()
	stats, err := s.Stats(ctx)
	if err != nil {
		return
	}
	for _, state := range []task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead} {
		found <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(stats.Tasks[state]), string(state))
	}
	found <- prometheus.MustNewConstMetric(c.due, prometheus.GaugeValue, float64(stats.Due))
	queues, err := s.Queues(ctx)
	if err != nil {
		return
	}
	queued := c.configured() // an empty queue is 0, not missing
	for _, q := range queues {
		queued[q.Queue] = q.Queued
	}
	for queue, n := range queued {
		found <- prometheus.MustNewConstMetric(c.queued, prometheus.GaugeValue, float64(n), queue)
	}
}

// use keeps the store open until leave is called; it is nil if it is not open.
func (c *taskCounts) use() (s *sharedStore, leave func()) {
	a := c.app.Load()
	if a == nil || a.store.Load() == nil {
		return nil, nil
	}
	s, err := useStore(a.engine.storeKey())
	if err != nil {
		return nil, nil
	}
	return s, s.leave
}

// configured returns the queues of the configuration, each with 0.
func (c *taskCounts) configured() map[string]int64 {
	queues := make(map[string]int64)
	if a := c.app.Load(); a != nil {
		for name := range a.queues {
			queues[name] = 0
		}
	}
	return queues
}

// taskAccepted counts tasks; a negative number are some that turned out to be
// none.
func (m *metrics) taskAccepted(n int64) { nodeCounts.Add(web.Tally{Accepted: n}) }

// taskSkipped counts a request that could have been a task and is none. It allocates
// nothing.
func (m *metrics) taskSkipped(reason bodies.Reason) { m.skips[reason].Inc() }

func (m *metrics) taskEnded(rec *task.Record) {
	countEnded(rec)
	m.tasks.WithLabelValues(rec.Route, string(rec.Status)).Inc()
	m.taskDuration.Observe(rec.FinishedAt.Sub(rec.CreatedAt).Seconds())
	if rec.Queue != "" && !rec.StartedAt.IsZero() {
		m.queueRun.WithLabelValues(rec.Queue).Observe(rec.FinishedAt.Sub(rec.StartedAt).Seconds())
	}
}

// countCanceled counts the verdict of a task that was canceled: the engine gives
// it, so that no exchange does.
func (a *App) countCanceled(ctx context.Context, e engine.Engine, id string) {
	rec, err := e.Get(ctx, id)
	if err != nil || !rec.Ended() {
		a.log.Debug("canceled task not counted", zap.String("task_id", id), zap.Error(err))
		return
	}
	a.metrics.taskEnded(rec)
}

func (m *metrics) attempted(rec *task.Record, outcome string, at time.Time, took time.Duration) {
	countAttempt(rec, outcome)
	m.deliveries.WithLabelValues(outcome).Inc()
	m.deliveryDuration.Observe(took.Seconds())
	if rec.Tries == 1 && len(rec.Redelivered) == 0 {
		m.deliveryLag.Observe(at.Sub(rec.FinishedAt).Seconds())
	}
}

// expired notes that a callback was given up without an attempt.
func (m *metrics) expired() { m.deliveries.WithLabelValues(outcomeDead).Inc() }

// taskStarted notes that a queue's task was begun.
func (m *metrics) taskStarted(rec *task.Record) {
	m.queueWait.WithLabelValues(rec.Queue).Observe(rec.StartedAt.Sub(rec.CreatedAt).Seconds())
	m.queueStarts.WithLabelValues(rec.Queue).Inc()
}

// queueOpened notes what a queue's options are.
func (m *metrics) queueOpened(name string, opts *QueueOptions) {
	m.queueWorkers.WithLabelValues(name).Set(float64(opts.Workers))
	m.queueMax.WithLabelValues(name).Set(float64(opts.MaxQueued))
}
