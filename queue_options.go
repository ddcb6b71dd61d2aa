package callback

import "fmt"

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
	return o.validateSchedules()
}
