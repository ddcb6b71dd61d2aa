package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Store is the store whose tasks are counted at every scrape.
type Store struct {
	// Open returns the engine, which stays open until leave is called. It returns an error
	// at once if the store is not open.
	Open func() (e engine.Engine, leave func(), err error)
	// Queues returns the names of the configured queues.
	Queues func() []string
}

// RegisterStore registers the gauges of a store.
func RegisterStore(registry *prometheus.Registry, s Store) error {
	r := &registrar{registry: registry}
	r.register(newStoreGauges(s))
	return r.err
}

// storeGauges asks the engine for the counts of its tasks, queues and hosts at every
// scrape. While the engine is unavailable, it reports only that.
type storeGauges struct {
	store                                                     Store
	tasks, queued, delayed, oldest, paused, due, hosts, ready *prometheus.Desc
	used, limit                                               *prometheus.Desc
}

func newStoreGauges(s Store) *storeGauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil)
	}
	return &storeGauges{
		store:   s,
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
	// scrapeTimeout bounds how long an unresponsive engine delays a scrape.
	scrapeTimeout = 2 * time.Second
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
	s, leave, err := c.store.Open()
	gauge(c.ready, oneIf(err == nil && s.Ready() == nil))
	if err != nil {
		return
	}
	defer leave()
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
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

// configured returns the queues of the configuration, without tasks.
func (c *storeGauges) configured() map[string]engine.QueueStats {
	queues := make(map[string]engine.QueueStats)
	for _, name := range c.store.Queues() {
		queues[name] = engine.QueueStats{}
	}
	return queues
}
