package callback

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/poll"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// metrics are the metrics of one generation; Caddy gives each generation a new
// registry. Labels have a bounded set of values: never a URL, a host or an ID. Metrics
// that are updated for each task are looked up by their labels once.
type metrics struct {
	tasks            *prometheus.CounterVec
	skips            map[capture.Reason]prometheus.Counter
	taskDuration     prometheus.Observer
	outcomes         map[deliver.Outcome]prometheus.Counter
	deliveryDuration prometheus.Observer
	deliveryLag      prometheus.Observer
	queueWait        *prometheus.HistogramVec
	queueRun         *prometheus.HistogramVec
	queueStarts      *prometheus.CounterVec
	polls            *prometheus.CounterVec
	queueWorkers     *prometheus.GaugeVec
	queueMax         *prometheus.GaugeVec
	queues           map[string]queueMetrics // of the configured queues
}

// queueMetrics are the metrics of one queue.
type queueMetrics struct {
	wait, run prometheus.Observer
	starts    prometheus.Counter
}

const metricsNamespace, metricsSubsystem = "caddy", "callback"

// registrar creates and registers metrics; err is the first error.
type registrar struct {
	registry *prometheus.Registry
	err      error
}

func (r *registrar) register(c prometheus.Collector) {
	if err := r.registry.Register(c); err != nil && r.err == nil {
		r.err = fmt.Errorf("registering metrics: %w", err)
	}
}

func (r *registrar) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help,
	}, labels)
	r.register(c)
	return c
}

func (r *registrar) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help,
	}, labels)
	r.register(g)
	return g
}

func (r *registrar) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help, Buckets: buckets,
	}, labels)
	r.register(h)
	return h
}

// Buckets, in seconds: tasks take milliseconds to hours, waits less.
var (
	taskBuckets     = prometheus.ExponentialBuckets(0.005, 4, 11)
	lagBuckets      = prometheus.ExponentialBuckets(0.0005, 4, 11)
	waitBuckets     = prometheus.ExponentialBuckets(0.0005, 4, 13)
	deliveryBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 60}
)

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	r := &registrar{registry: registry}
	skipped := r.counter("skipped_total", "Requests that could have been tasks and were not, by reason.", "reason")
	deliveries := r.counter("deliveries_total", "Delivery attempts by outcome: delivered, retry or dead.", "outcome")
	m := &metrics{
		tasks:            r.counter("tasks_total", "Finished tasks by status.", "route", "status"),
		skips:            make(map[capture.Reason]prometheus.Counter),
		taskDuration:     r.histogram("task_duration_seconds", "Time from accepting a task to its verdict.", taskBuckets).WithLabelValues(),
		outcomes:         make(map[deliver.Outcome]prometheus.Counter),
		deliveryDuration: r.histogram("delivery_duration_seconds", "Duration of a delivery attempt.", deliveryBuckets).WithLabelValues(),
		deliveryLag:      r.histogram("delivery_lag_seconds", "Time from a task's verdict to its first delivery attempt.", lagBuckets).WithLabelValues(),
		queueWait:        r.histogram("queue_wait_seconds", "Time from accepting a queued task, or from the end of its delay, to each of its starts.", waitBuckets, "queue"),
		queueRun:         r.histogram("queue_run_seconds", "Time from starting a queued task to its verdict.", taskBuckets, "queue"),
		queueStarts:      r.counter("queue_starts_total", "Starts of queued tasks.", "queue"),
		polls:            r.counter("polls_total", "Polls of endpoints that answer later, by outcome: pending, retry, final or failed.", "queue", "outcome"),
		queueWorkers:     r.gauge("queue_workers", "Tasks of a queue that can run at once on this node.", "queue"),
		queueMax:         r.gauge("queue_max_tasks", "Tasks that can wait in a queue before more are refused.", "queue"),
		queues:           make(map[string]queueMetrics),
	}
	// Counters start at 0, so that an alert sees the first dead callback as an increase.
	for _, outcome := range []deliver.Outcome{deliver.Delivered, deliver.Retry, deliver.Dead} {
		m.outcomes[outcome] = deliveries.WithLabelValues(string(outcome))
	}
	for _, reason := range []capture.Reason{
		capture.ContentType, capture.Stream, capture.Coding, capture.Encoded, capture.NotJSON, capture.TooLarge, capture.NoSpool, hopsReached,
	} {
		m.skips[reason] = skipped.WithLabelValues(string(reason))
	}
	return m, r.err
}

// provisionMetrics registers the metrics of this generation.
func (a *App) provisionMetrics(registry *prometheus.Registry) (err error) {
	if a.metrics, err = newMetrics(registry); err != nil {
		return err
	}
	r := &registrar{registry: registry}
	r.register(newStoreGauges(a))
	return r.err
}

// storeGauges asks the engine for the counts of its tasks, queues and hosts at every
// scrape. While the engine is unavailable, it reports only that.
type storeGauges struct {
	app                                                       *App
	tasks, queued, delayed, oldest, paused, due, hosts, ready *prometheus.Desc
	used, limit                                               *prometheus.Desc
}

func newStoreGauges(a *App) *storeGauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, name), help, labels, nil)
	}
	return &storeGauges{
		app:     a,
		tasks:   desc("tasks", "Tasks by state: queued, running, delivering, done or dead.", "state"),
		queued:  desc("queued_tasks", "Tasks that wait in a queue.", "queue"),
		delayed: desc("delayed_tasks", "Tasks that wait in a queue and are ready later: delayed, or before a retry or a poll.", "queue"),
		oldest:  desc("queue_oldest_seconds", "Age of the task that waits for a worker for the longest time, or 0.", "queue"),
		paused:  desc("queue_paused", "Whether a queue is paused: 1 or 0.", "queue"),
		due:     desc("due_deliveries", "Deliveries that are due: in flight, or waiting for the dispatcher."),
		hosts:   desc("hosts", "Hosts with pending callbacks that are failing, and hosts that are paused.", "state"),
		used:    desc("store_used_bytes", "Bytes that the store uses."),
		limit:   desc("store_limit_bytes", "Bytes at which the store is full, because of its limit or of its disk."),
		ready:   desc("engine_ready", "Whether the engine accepts tasks: 1, or 0 while requests for callbacks are refused."),
	}
}

const (
	// countsTimeout bounds how long an unresponsive engine delays a scrape.
	countsTimeout = 2 * time.Second
	// hostsCounted bounds the work of a scrape: of more hosts, those with the most
	// pending callbacks count.
	hostsCounted = 1000
)

// Describe implements [prometheus.Collector].
func (c *storeGauges) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		c.tasks, c.queued, c.delayed, c.oldest, c.paused, c.due, c.hosts, c.used, c.limit, c.ready,
	} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (c *storeGauges) Collect(found chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		found <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	s, leave := c.use()
	gauge(c.ready, oneIf(s != nil && s.Ready() == nil))
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
		gauge(c.tasks, float64(stats.Tasks[state]), string(state))
	}
	gauge(c.due, float64(stats.Due))
	gauge(c.used, float64(stats.Used))
	if stats.Limit > 0 {
		gauge(c.limit, float64(stats.Limit))
	}
	queues, err := s.Queues(ctx)
	if err != nil {
		return
	}
	counts := c.configured() // an empty queue is 0, not missing
	for _, q := range queues {
		counts[q.Queue] = q
	}
	now := time.Now()
	for queue, n := range counts {
		gauge(c.queued, float64(n.Queued), queue)
		gauge(c.delayed, float64(n.Delayed), queue)
		gauge(c.paused, oneIf(n.Paused), queue)
		age := 0.0
		if !n.Oldest.IsZero() {
			age = max(0, now.Sub(n.Oldest).Seconds())
		}
		gauge(c.oldest, age, queue)
	}
	hosts, _, err := s.Hosts(ctx, "", hostsCounted)
	if err != nil {
		return
	}
	failing, paused := 0.0, 0.0
	for _, h := range hosts {
		failing += oneIf(h.Failures > 0 && h.Pending > 0)
		paused += oneIf(h.Paused)
	}
	gauge(c.hosts, failing, "failing")
	gauge(c.hosts, paused, "paused")
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// use returns the open store, which stays open until leave, or nil.
func (c *storeGauges) use() (s *sharedStore, leave func()) {
	if c.app.store.Load() == nil {
		return nil, nil
	}
	s, err := useStore(c.app.engine.storeKey())
	if err != nil {
		return nil, nil
	}
	return s, s.leave
}

// configured returns the queues of the configuration, without tasks.
func (c *storeGauges) configured() map[string]engine.QueueStats {
	queues := make(map[string]engine.QueueStats)
	for name := range c.app.queues {
		queues[name] = engine.QueueStats{}
	}
	return queues
}

// taskAccepted counts accepted tasks. A negative number uncounts released ones.
func (m *metrics) taskAccepted(n int64) { nodeCounts.Add(web.Tally{Accepted: n}) }

// taskSkipped counts a request that could have been a task and is not. It does not
// allocate.
func (m *metrics) taskSkipped(reason capture.Reason) { m.skips[reason].Inc() }

func (m *metrics) taskEnded(rec *task.Record) {
	countEnded(rec)
	m.tasks.WithLabelValues(rec.Route, string(rec.Status)).Inc()
	m.taskDuration.Observe(rec.FinishedAt.Sub(rec.CreatedAt).Seconds())
	if rec.Queue != "" && !rec.StartedAt.IsZero() {
		m.queue(rec.Queue).run.Observe(rec.FinishedAt.Sub(rec.StartedAt).Seconds())
	}
}

// countCanceled counts a canceled task. No execution counts it, because the engine
// decides its verdict.
func (a *App) countCanceled(ctx context.Context, e engine.Engine, id string) {
	rec, err := e.Get(ctx, id)
	if err != nil || !rec.Ended() {
		a.log.Debug("canceled task not counted", zap.String("task_id", id), zap.Error(err))
		return
	}
	a.metrics.taskEnded(rec)
}

func (m *metrics) attempted(rec *task.Record, outcome deliver.Outcome, at time.Time, took time.Duration) {
	countAttempt(rec, outcome)
	m.outcomes[outcome].Inc()
	m.deliveryDuration.Observe(took.Seconds())
	if rec.Tries == 1 && len(rec.Redelivered) == 0 {
		m.deliveryLag.Observe(at.Sub(rec.FinishedAt).Seconds())
	}
}

// expired counts a callback whose delivery window has ended.
func (m *metrics) expired() { m.outcomes[deliver.Dead].Inc() }

// pollsOpened makes the counters of a queue's polls start at 0.
func (m *metrics) pollsOpened(queue string) {
	for _, o := range []poll.Outcome{poll.Pending, poll.Retry, poll.Final, poll.Failed} {
		m.polls.WithLabelValues(queue, string(o))
	}
}

// polled counts a poll. The outcome is empty if the endpoint named a location that is
// not followed.
func (m *metrics) polled(queue string, o poll.Outcome) {
	m.polls.WithLabelValues(queue, string(cmp.Or(o, poll.Failed))).Inc()
}

// taskStarted counts the start of a queue's task. A poll is none.
func (m *metrics) taskStarted(rec *task.Record) {
	if rec.Poll != nil {
		return
	}
	q := m.queue(rec.Queue)
	q.wait.Observe(rec.StartedAt.Sub(rec.WaitsSince()).Seconds())
	q.starts.Inc()
}

// queue returns the metrics of a queue. The queue may be missing in this configuration,
// because a task of another gateway can be canceled here.
func (m *metrics) queue(name string) queueMetrics {
	if q, ok := m.queues[name]; ok {
		return q
	}
	return queueMetrics{
		wait: m.queueWait.WithLabelValues(name), run: m.queueRun.WithLabelValues(name), starts: m.queueStarts.WithLabelValues(name),
	}
}

// queueOpened sets the gauges of a queue's options. It is called before the queue gets
// tasks.
func (m *metrics) queueOpened(name string, opts *QueueOptions) {
	m.queues[name] = m.queue(name)
	m.queueWorkers.WithLabelValues(name).Set(float64(opts.Workers))
	m.queueMax.WithLabelValues(name).Set(float64(opts.MaxQueued))
}
