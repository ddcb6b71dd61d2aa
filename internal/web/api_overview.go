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

// Queue is a queue as it is configured, and what stands in it.
type Queue struct {
	Name   string `json:"name"`
	Queued uint64 `json:"queued"`
	// Running counts the tasks of the queue on this node. Workers is how many
	// there can be; 0 if this configuration does not have the queue.
	Running   int `json:"running"`
	Workers   int `json:"workers"`
	MaxQueued int `json:"max_queued"`
	Attempts  int `json:"attempts"`
}

// Schedule is a schedule of a queue. URI is without its query, which may hold a
// secret.
type Schedule struct {
	Queue    string    `json:"queue"`
	Schedule string    `json:"schedule"`
	Timezone string    `json:"timezone"`
	Method   string    `json:"method"`
	URI      string    `json:"uri"`
	LastTick time.Time `json:"last_tick,omitzero"`
	NextTick time.Time `json:"next_tick,omitzero"`
	// Name is the engine's name of the schedule.
	Name string `json:"-"`
}

// host is what waits for a host.
type host struct {
	Host       string `json:"host"`
	Due        uint64 `json:"due"`
	Held       uint64 `json:"held"`
	Attempting int    `json:"attempting"`
}

// overview is how things stand.
type overview struct {
	Node    string                `json:"node"`
	At      time.Time             `json:"at"`
	Tasks   map[task.State]uint64 `json:"tasks"`
	Rates   rates                 `json:"rates"`
	Latency latency               `json:"latency"`
	History []point               `json:"history"`
}

const (
	// summaryAge is how old an overview may be: all who look share one, so that
	// the engine is asked once a second however many they are.
	summaryAge = 900 * time.Millisecond
	// summaryTimeout keeps an engine that is away from holding them up.
	summaryTimeout = 2 * time.Second
)

// summary remembers the latest overview, or why there was none: if each who looks
// waited in turn for an engine that is away, the last of them would wait for
// minutes, and a reload for all of them.
type summary struct {
	mu     sync.Mutex
	made   time.Time
	state  json.RawMessage
	failed error
}

// summarize returns an overview, made a moment ago at most.
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
	if o.Tasks, err = e.Counts(ctx); err != nil {
		return nil, err
	}
	for _, state := range states {
		o.Tasks[state] += 0 // all are there
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

// queues lists the queues of the configuration and those that still have tasks.
func (a *API) queues(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	lengths, err := e.QueueLengths(c.r.Context())
	if err != nil {
		return 0, nil, err
	}
	running := e.Held()
	list := a.config.Queues()
	for i := range list {
		q := &list[i]
		q.Queued, q.Running = lengths[q.Name], running[q.Name]
		delete(lengths, q.Name)
	}
	for name, n := range lengths {
		if n > 0 {
			list = append(list, Queue{Name: name, Queued: n, Running: running[name]})
		}
	}
	slices.SortFunc(list, func(a, b Queue) int { return cmp.Compare(a.Name, b.Name) })
	return http.StatusOK, orEmpty(list), nil
}

// hosts lists the hosts that something waits for, or that are being called,
// those with the most first.
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
	loads, err := e.HostLoads(c.r.Context())
	if err != nil {
		return 0, nil, err
	}
	attempting := a.config.Attempting()
	list := make([]host, 0, len(loads))
	for token, load := range loads {
		list = append(list, host{engine.HostOfToken(token), load.Due, load.Held, attempting[token]})
		delete(attempting, token)
	}
	for token, n := range attempting {
		list = append(list, host{Host: engine.HostOfToken(token), Attempting: n})
	}
	slices.SortFunc(list, func(a, b host) int {
		return cmp.Or(cmp.Compare(b.Due+b.Held, a.Due+a.Held), cmp.Compare(b.Attempting, a.Attempting), cmp.Compare(a.Host, b.Host))
	})
	return http.StatusOK, list[:min(limit, len(list))], nil
}

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
	for i := range list {
		s := &list[i]
		last, next, err := e.Ticks(c.r.Context(), s.Queue, s.Name)
		if err != nil {
			return 0, nil, err
		}
		s.LastTick = last
		// What is remembered is what the last tick to be claimed said. One that waits
		// in its queue, or waited there while no gateway ran, leaves a time that is over.
		if next.After(time.Now()) {
			s.NextTick = next
		}
	}
	return http.StatusOK, orEmpty(list), nil
}

// orEmpty keeps an empty list from being null in JSON.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
