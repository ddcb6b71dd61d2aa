package web

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Queue has the options of a queue and the counts of its tasks.
type Queue struct {
	Name string `json:"name"`
	// Queued, Delayed, Running and Oldest cover all gateways of the store. Delayed
	// counts the queued tasks that become ready later. Oldest is when the task that is
	// ready for the longest time was accepted.
	Queued  int64     `json:"queued"`
	Delayed int64     `json:"delayed"`
	Running int64     `json:"running"`
	Oldest  time.Time `json:"oldest,omitzero"`
	Paused  bool      `json:"paused"`
	// Workers is how many tasks of the queue this node runs at once. It is 0 if the
	// node's configuration does not have the queue.
	Workers   int `json:"workers"`
	MaxQueued int `json:"max_queued"`
	Attempts  int `json:"attempts"`
	// Rate is how many tasks this node starts in a period, "10/1s", or empty.
	// RateLimited is set while tasks that are ready wait because of it.
	Rate        string `json:"rate,omitempty"`
	RateLimited bool   `json:"rate_limited,omitempty"`
}

// set sets the counts of the engine.
func (q *Queue) set(s engine.QueueStats) {
	q.Queued, q.Delayed, q.Running, q.Oldest, q.Paused = s.Queued, s.Delayed, s.Running, s.Oldest, s.Paused
}

// Schedule is a schedule of a queue. URI has no query: it may hold a secret.
type Schedule struct {
	Queue    string    `json:"queue"`
	Schedule string    `json:"schedule"`
	Timezone string    `json:"timezone"`
	Method   string    `json:"method"`
	URI      string    `json:"uri"`
	LastRun  time.Time `json:"last_run,omitzero"`
	NextRun  time.Time `json:"next_run,omitzero"`
	// ID is the schedule's name in the engine.
	ID string `json:"id"`
}

// host is a host that has callbacks pending, is failing or is paused.
type host struct {
	Host          string    `json:"host"`
	Pending       int64     `json:"pending"`
	InFlight      int64     `json:"in_flight"`
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	Failures      int       `json:"failures"`
	FailingSince  time.Time `json:"failing_since,omitzero"`
	LastStatus    int       `json:"last_status,omitempty"`
	LastError     string    `json:"last_error,omitempty"`
	Paused        bool      `json:"paused"`
	RateLimited   bool      `json:"rate_limited,omitempty"`
}

// overview has the number of tasks by state, and the counters of this node.
type overview struct {
	Node    string               `json:"node"`
	At      time.Time            `json:"at"`
	Tasks   map[task.State]int64 `json:"tasks"`
	Rates   rates                `json:"rates"`
	Latency latency              `json:"latency"`
	History []point              `json:"history"`
}

const (
	// summaryAge is how long an overview is reused. All viewers share it, so that the
	// engine is asked once a second however many viewers there are.
	summaryAge = 900 * time.Millisecond
	// summaryTimeout bounds how long viewers wait for an engine that does not answer.
	summaryTimeout = 2 * time.Second
)

// summary caches the latest overview or error. Otherwise, if the engine does not
// answer, viewers would wait for it one after the other: the last one, and a reload,
// would wait for minutes.
type summary struct {
	mu     sync.Mutex
	made   time.Time
	state  json.RawMessage
	failed error
}

// summarize returns an overview that is at most summaryAge old.
func (a *API) summarize() (json.RawMessage, error) {
	s := &a.summary
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made.IsZero() || time.Since(s.made) >= summaryAge {
		s.state, s.failed = a.newSummary()
		s.made = time.Now()
	}
	return s.state, s.failed
}

func (a *API) newSummary() (json.RawMessage, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(context.Background(), summaryTimeout)
	defer cancel()
	o := overview{Node: a.config.Node, At: time.Now().UTC()}
	stats, err := e.Stats(ctx)
	if err != nil {
		return nil, err
	}
	o.Tasks = make(map[task.State]int64, len(states))
	for _, state := range states {
		o.Tasks[state] = stats.Tasks[state]
	}
	o.Rates, o.Latency, o.History = a.config.Counts.read(o.At)
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encoding the overview: %w", err)
	}
	return text, nil
}

func (a *API) overview(*call) (int, any, error) {
	state, err := a.summarize()
	return http.StatusOK, state, err
}

// queues lists the queues of the configuration, and other queues that have tasks or are
// paused.
func (a *API) queues(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	list, err := a.allQueues(c.r.Context(), e)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, orEmpty(list), nil
}

func (a *API) allQueues(ctx context.Context, e engine.Engine) ([]Queue, error) {
	found, err := e.Queues(ctx)
	if err != nil {
		return nil, err
	}
	list := a.config.Queues()
	for _, stats := range found {
		i := slices.IndexFunc(list, func(q Queue) bool { return q.Name == stats.Queue })
		if i < 0 {
			i, list = len(list), append(list, Queue{Name: stats.Queue})
		}
		list[i].set(stats)
	}
	for i := range list {
		q := &list[i]
		q.RateLimited = q.RateLimited && q.Queued > q.Delayed && !q.Paused
	}
	slices.SortFunc(list, func(a, b Queue) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// hosts lists the hosts that have callbacks pending, are failing or are paused. Hosts
// with the most pending callbacks come first.
func (a *API) hosts(c *call) (int, any, error) {
	limit, err := c.limit(defaultLimit)
	if err != nil {
		return 0, nil, err
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	list, cursor := make([]host, 0, limit), engine.Cursor("")
	for len(list) < limit {
		found, next, err := e.Hosts(c.r.Context(), cursor, limit-len(list))
		if err != nil {
			return 0, nil, err
		}
		for _, h := range found {
			list = append(list, host{
				Host: h.Host, Pending: h.Pending, InFlight: h.InFlight, NextAttemptAt: h.Next, Failures: h.Failures,
				FailingSince: h.FailingSince, LastStatus: h.LastStatus, LastError: h.LastError, Paused: h.Paused,
				RateLimited: h.Pending > h.InFlight && a.config.RateLimited != nil && a.config.RateLimited(h.Host),
			})
		}
		if next == "" {
			break
		}
		cursor = next
	}
	return http.StatusOK, list, nil
}

// schedules lists the schedules of the configuration with the run times of the engine.
func (a *API) schedules(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	list, err := a.config.Schedules()
	if err != nil {
		return 0, nil, err
	}
	runs, err := e.Runs(c.r.Context())
	if err != nil {
		return 0, nil, err
	}
	for i := range list {
		if run, ok := runs[list[i].ID]; ok {
			list[i].LastRun, list[i].NextRun = run.Last, run.Next
		}
	}
	return http.StatusOK, orEmpty(list), nil
}

// orEmpty returns an empty list for nil, which JSON would encode as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
