// Package metrics records what Prometheus scrapes, and what the dashboard shows of this
// node. Labels have a bounded set of values: never a URL, a host or an ID.
package metrics

import (
	"cmp"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/poll"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// Metrics are the metrics of one generation of the configuration; Caddy gives each one a
// new registry. Metrics that are updated for each task are looked up by their labels once.
// The methods may be called from several goroutines at once, except QueueOpened.
type Metrics struct {
	node             *web.NodeCounts
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

const namespace, subsystem = "caddy", "callback"

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
		Namespace: namespace, Subsystem: subsystem, Name: name, Help: help,
	}, labels)
	r.register(c)
	return c
}

func (r *registrar) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: subsystem, Name: name, Help: help,
	}, labels)
	r.register(g)
	return g
}

func (r *registrar) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets,
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

// New returns metrics that are registered in a registry. node has the counts of this
// process, which outlive a generation.
func New(registry *prometheus.Registry, node *web.NodeCounts) (*Metrics, error) {
	r := &registrar{registry: registry}
	skipped := r.counter("skipped_total", "Requests that could have been tasks and were not, by reason.", "reason")
	deliveries := r.counter("deliveries_total", "Delivery attempts by outcome: delivered, retry or dead.", "outcome")
	m := &Metrics{
		node:             node,
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
		capture.ContentType, capture.Stream, capture.Coding, capture.Encoded, capture.NotJSON, capture.TooLarge, capture.NoSpool, capture.Hops,
	} {
		m.skips[reason] = skipped.WithLabelValues(string(reason))
	}
	return m, r.err
}

// TaskAccepted counts accepted tasks. A negative number subtracts released ones.
func (m *Metrics) TaskAccepted(n int64) { m.node.Add(web.Tally{Accepted: n}) }

// TaskSkipped counts a request that could have been a task and is not. It does not
// allocate.
func (m *Metrics) TaskSkipped(reason capture.Reason) { m.skips[reason].Inc() }

// TaskEnded counts a task that has got its verdict.
func (m *Metrics) TaskEnded(rec *task.Record) {
	m.countEnded(rec)
	m.tasks.WithLabelValues(rec.Route, string(rec.Status)).Inc()
	m.taskDuration.Observe(rec.FinishedAt.Sub(rec.CreatedAt).Seconds())
	if rec.Queue != "" && !rec.StartedAt.IsZero() {
		m.queue(rec.Queue).run.Observe(rec.FinishedAt.Sub(rec.StartedAt).Seconds())
	}
}

// Attempted counts an attempt to deliver a callback. at is when the attempt began.
func (m *Metrics) Attempted(rec *task.Record, outcome deliver.Outcome, at time.Time, took time.Duration) {
	m.countAttempt(rec, outcome)
	m.outcomes[outcome].Inc()
	m.deliveryDuration.Observe(took.Seconds())
	if rec.Tries == 1 && len(rec.Redelivered) == 0 {
		m.deliveryLag.Observe(at.Sub(rec.FinishedAt).Seconds())
	}
}

// Expired counts a callback whose delivery window has ended.
func (m *Metrics) Expired() { m.outcomes[deliver.Dead].Inc() }

// PollsOpened makes the counters of a queue's polls start at 0.
func (m *Metrics) PollsOpened(queue string) {
	for _, o := range []poll.Outcome{poll.Pending, poll.Retry, poll.Final, poll.Failed} {
		m.polls.WithLabelValues(queue, string(o))
	}
}

// Polled counts a poll. The outcome is empty if the endpoint named a location that is
// not followed.
func (m *Metrics) Polled(queue string, o poll.Outcome) {
	m.polls.WithLabelValues(queue, string(cmp.Or(o, poll.Failed))).Inc()
}

// TaskStarted counts the start of a queue's task. A poll is not a start.
func (m *Metrics) TaskStarted(rec *task.Record) {
	if rec.Poll != nil {
		return
	}
	q := m.queue(rec.Queue)
	q.wait.Observe(rec.StartedAt.Sub(rec.WaitsSince()).Seconds())
	q.starts.Inc()
}

// queue returns the metrics of a queue. The queue may be missing in this configuration,
// because a task of another gateway can be canceled here.
func (m *Metrics) queue(name string) queueMetrics {
	if q, ok := m.queues[name]; ok {
		return q
	}
	return queueMetrics{
		wait: m.queueWait.WithLabelValues(name), run: m.queueRun.WithLabelValues(name), starts: m.queueStarts.WithLabelValues(name),
	}
}

// QueueOpened sets the gauges of a queue's options. It is called before the queue gets
// tasks.
func (m *Metrics) QueueOpened(name string, workers, maxQueued int) {
	m.queues[name] = m.queue(name)
	m.queueWorkers.WithLabelValues(name).Set(float64(workers))
	m.queueMax.WithLabelValues(name).Set(float64(maxQueued))
}

// countEnded counts a task that has got its verdict, for the dashboard.
func (m *Metrics) countEnded(rec *task.Record) {
	var tally web.Tally
	switch rec.Status {
	case task.Complete:
		tally.Completed = 1
	case task.TimedOut:
		tally.TimedOut = 1
	default:
		tally.Failed = 1
	}
	m.node.Add(tally)
	m.node.TaskTook(rec.FinishedAt.Sub(rec.CreatedAt))
}

// countAttempt counts an attempt to deliver a callback, for the dashboard.
func (m *Metrics) countAttempt(rec *task.Record, outcome deliver.Outcome) {
	if outcome != deliver.Delivered {
		m.node.Add(web.Tally{AttemptsFailed: 1})
		return
	}
	m.node.Add(web.Tally{Delivered: 1})
	since := rec.FinishedAt
	if n := len(rec.Redelivered); n > 0 {
		since = rec.Redelivered[n-1]
	}
	m.node.DeliveryTook(rec.DeliveredAt.Sub(since))
}
