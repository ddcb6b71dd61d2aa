package callback

import (
	"context"
	"fmt"
	"sync"
	"time"
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
	defaultScope     = "{http.auth.user.id}"
)

var defaultRetryStatus = []int{502, 503, 504}

func (o *QueueOptions) provision() {
	setDefault(&o.Workers, defaultWorkers)
	setDefault(&o.Attempts, defaultAttempts)
	setDefault(&o.MaxQueued, defaultMaxQueued)
	setDefault(&o.IdempotencyScope, defaultScope)
	if o.RetryStatus == nil {
		o.RetryStatus = defaultRetryStatus
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
	}
	for _, status := range o.RetryStatus {
		if status < 400 || status > 599 {
			return fmt.Errorf("attempts: %d is not a status from 400 to 599", status)
		}
	}
	for _, s := range o.Schedules {
		if err := s.validate(); err != nil {
			return fmt.Errorf("schedule: %w", err)
		}
	}
	return nil
}

// depth counts the tasks that wait in a queue. To ask the engine takes about as
// long as to store a task, so what was accepted since it was last asked is
// added up, and the engine asked anew only when that count is old or the queue
// seems full. A queue may exceed max_queued by what is accepted at the same moment,
// and by what several nodes accept within depthAge.
type depth struct {
	mu    sync.Mutex
	n     int
	asked time.Time
}

// depthAge is how old the count may be.
const depthAge = time.Second

func (d *depth) full(ctx context.Context, q *TaskQueue) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n < q.opts.MaxQueued && time.Since(d.asked) < depthAge {
		return false, nil
	}
	n, err := q.queue.Waiting(ctx)
	if err != nil {
		return false, err
	}
	d.n, d.asked = n, time.Now()
	return n >= q.opts.MaxQueued, nil
}

func (d *depth) add() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
}
