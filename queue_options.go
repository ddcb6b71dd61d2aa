package callback

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/scheduler"
)

// QueueOptions configure how the tasks of a queue run.
type QueueOptions struct {
	// How many tasks of the queue run at once on this node. Default: `8`.
	Workers int `json:"workers,omitempty"`

	// How often a task is started before it is FAILED. It is started again after a crash,
	// and after one of the statuses in retry_status. Default: `3`.
	Attempts int `json:"attempts,omitempty"`

	// The upstream statuses after which a task is started again. Default: `502 503 504`.
	RetryStatus []int `json:"retry_status,omitempty"`

	// How many tasks can wait. Further tasks are refused with 429. Default: `100000`.
	MaxQueued int `json:"max_queued,omitempty"`

	// How many tasks of the queue may start in a period, evenly spread: `10/1s`, or
	// `600/1m` for the same rate. Retries and polls count too. Each gateway counts its own. Default:
	// none; only workers limits the queue.
	Rate string `json:"rate,omitempty"`

	// How long clients can delay a task with the headers `task-delay` and
	// `task-not-before`, 3650 days at most. Default: `30d`.
	MaxDelay caddy.Duration `json:"max_delay,omitempty"`

	// The scope of idempotency keys, in addition to the queue, the method and the URI.
	// Requests for which its placeholders expand to different values do not share keys.
	// Default: `{http.auth.user.id}`; clients that do not authenticate share their keys.
	IdempotencyScope string `json:"idempotency_scope,omitempty"`

	// Schedules that add tasks to the queue. Default: none.
	Schedules []*Schedule `json:"schedules,omitempty"`

	interval time.Duration // between two starts; 0 if there is no rate
}

// Defaults of a queue.
const (
	defaultWorkers   = 8
	defaultAttempts  = 3
	defaultMaxQueued = 100_000
	defaultMaxDelay  = 30 * 24 * time.Hour
	defaultScope     = "{http.auth.user.id}"
)

// longestMaxDelay keeps start times within the range that engines can store.
const longestMaxDelay = 3650 * 24 * time.Hour

var defaultRetryStatus = []int{502, 503, 504}

func (o *QueueOptions) provision() {
	setDefault(&o.Workers, defaultWorkers)
	setDefault(&o.Attempts, defaultAttempts)
	setDefault(&o.MaxQueued, defaultMaxQueued)
	setDefault(&o.MaxDelay, caddy.Duration(defaultMaxDelay))
	setDefault(&o.IdempotencyScope, defaultScope)
	if o.RetryStatus == nil {
		o.RetryStatus = defaultRetryStatus
	}
	for _, s := range o.Schedules {
		s.expand()
	}
}

func (o *QueueOptions) validate() (err error) {
	if o.interval, err = parseRate(o.Rate); err != nil {
		return fmt.Errorf("rate: %w", err)
	}
	switch {
	case o.Workers < 1:
		return fmt.Errorf("workers: %d is less than 1", o.Workers)
	case o.Attempts < 1:
		return fmt.Errorf("attempts: %d is less than 1", o.Attempts)
	case o.MaxQueued < 1:
		return fmt.Errorf("max_queued: %d is less than 1", o.MaxQueued)
	case o.MaxDelay < 0:
		return fmt.Errorf("max_delay: %v is negative", time.Duration(o.MaxDelay))
	case time.Duration(o.MaxDelay) > longestMaxDelay:
		return fmt.Errorf("max_delay: %v is more than 3650 days", time.Duration(o.MaxDelay))
	}
	for _, status := range o.RetryStatus {
		if status < 400 || status > 599 {
			return fmt.Errorf("attempts: %d is not a status from 400 to 599", status)
		}
	}
	return o.validateSchedules()
}

// addQueue adds a queue to the app during provisioning and returns its options. It
// returns an error if another queue has the same name and a different block.
func (a *App) addQueue(q *TaskQueue) (*QueueOptions, error) {
	if first := a.queues[q.Name]; first != nil && first.written == q.written {
		// Two servers serve one site block, with and without TLS. Both accept tasks, and
		// the first one runs them.
		return first.opts, nil
	} else if first != nil {
		return nil, fmt.Errorf("the queue %s is defined twice, with different blocks; give one of them another name", q.Name)
	}
	a.queues[q.Name] = q
	opts := a.Queues[q.Name]
	if opts == nil {
		opts = new(QueueOptions)
		opts.provision()
	}
	return opts, nil
}

// startQueues sets the gauges of all queues, and warns of those that nothing runs.
func (a *App) startQueues() {
	for _, q := range a.queues {
		a.metrics.QueueOpened(q.Name, q.opts.Workers, q.opts.MaxQueued)
		if q.Poll != nil {
			a.metrics.PollsOpened(q.Name)
		}
	}
	a.warnOfIdleQueues()
}

// plans returns the schedules of all queues.
func (a *App) plans() (plans []*scheduler.Plan) {
	for _, q := range a.queues {
		plans = append(plans, q.plans...)
	}
	return plans
}

// warnOfIdleQueues warns of configured queues that no task_queue runs.
func (a *App) warnOfIdleQueues() {
	for name, opts := range a.Queues {
		if a.queues[name] == nil {
			a.log.Warn("queue has no task_queue; none of its tasks or schedules run",
				zap.String("queue", name), zap.Int("schedules", len(opts.Schedules)))
		}
	}
}
