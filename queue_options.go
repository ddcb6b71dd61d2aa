package callback

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// QueueOptions say how the tasks of one queue are run.
type QueueOptions struct {
	// How many of its tasks run at once, on this node. Default: `8`.
	Workers int `json:"workers,omitempty"`

	// How often a task is begun before it is FAILED: again after a crash, and
	// after one of the statuses in retry_status. Default: `3`.
	Attempts int `json:"attempts,omitempty"`

	// The upstream statuses after which a task is begun again.
	// Default: `502 503 504`.
	RetryStatus []int `json:"retry_status,omitempty"`

	// How many tasks can wait; more are refused with 429. Default: `100000`.
	MaxQueued int `json:"max_queued,omitempty"`

	// How long clients can delay a task with the headers `task-delay` and
	// `task-not-before`, 3650 days at most. Default: `30d`.
	MaxDelay caddy.Duration `json:"max_delay,omitempty"`

	// What an idempotency key is scoped to, beside the queue, the method and the
	// URI: requests for which the placeholders in it expand to different values
	// have keys of their own. Default: `{http.auth.user.id}`; clients that do not
	// authenticate share their keys.
	IdempotencyScope string `json:"idempotency_scope,omitempty"`

	// Clocks that put tasks into the queue. Default: none.
	Schedules []*Schedule `json:"schedules,omitempty"`
}

// Defaults of a queue.
const (
	defaultWorkers   = 8
	defaultAttempts  = 3
	defaultMaxQueued = 100_000
	defaultMaxDelay  = 30 * 24 * time.Hour
	defaultScope     = "{http.auth.user.id}"
)

// longestMaxDelay keeps the time of a start within what engines can store.
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

func (o *QueueOptions) validate() error {
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

// addQueue makes a queue known to the app, while the configuration is
// provisioned, and returns its options.
func (a *App) addQueue(q *TaskQueue) (*QueueOptions, error) {
	if first := a.queues[q.Name]; first != nil && first.written == q.written {
		// One site block that two servers serve, with and without encryption: both
		// accept tasks, and the first runs them.
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

// startQueues makes plans of the schedules of all queues, and says which queues
// there are.
func (a *App) startQueues() error {
	for _, q := range a.queues {
		a.metrics.queueOpened(q.Name, q.opts)
	}
	a.warnOfIdleQueues()
	return a.setSchedules()
}

// warnOfIdleQueues tells the operator of queues whose tasks nobody runs.
func (a *App) warnOfIdleQueues() {
	for name, opts := range a.Queues {
		if a.queues[name] == nil {
			a.log.Warn("queue has no task_queue; none of its tasks or schedules run",
				zap.String("queue", name), zap.Int("schedules", len(opts.Schedules)))
		}
	}
}
