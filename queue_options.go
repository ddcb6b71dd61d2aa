package callback

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // time zones work on machines without a zone database

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/schedule"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/task"
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

// Schedule adds a task to the queue at every run time. Gateways that share a schedule
// create one task per run. Runs that were missed while no gateway ran are replaced by
// one. A run is skipped while the task of the previous one has not started.
type Schedule struct {
	// When to run: five cron fields (minute, hour, day of month, month, day of week),
	// `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, or `@every` and a duration
	// of at least a second, such as `@every 1d`. At a change of daylight saving time, a
	// fixed hour that does not exist runs right after the change, and one that occurs
	// twice runs once. Required.
	Cron string `json:"cron"`

	// The time zone of the fields, such as `Europe/Paris`. It cannot be combined with
	// `@every`. Default: `UTC`.
	Zone string `json:"zone,omitempty"`

	// The request's method. Default: `POST`.
	Method string `json:"method,omitempty"`

	// The request's path and query. Default: `/`.
	URI string `json:"uri,omitempty"`

	// The request's headers. `Host` sets the request's host. Default: none; with a body,
	// `Content-Type: application/json`.
	Headers []HeaderField `json:"headers,omitempty"`

	// The request's body. If it is JSON, it can name a callback. Default: none.
	Body string `json:"body,omitempty"`
}

// times returns the run times of the schedule.
func (s *Schedule) times() (*schedule.Schedule, error) {
	return schedule.New(s.Cron, s.Zone, caddy.ParseDuration)
}

// expand expands placeholders such as {env.NAME}. A schedule has no request, so
// placeholders of requests do not expand.
func (s *Schedule) expand() {
	expand(&s.Cron, &s.Zone, &s.Method, &s.URI, &s.Body)
	s.Headers = slices.Clone(s.Headers)
	for i := range s.Headers {
		expand(&s.Headers[i].Name, &s.Headers[i].Value)
	}
}

// hasPlaceholders reports whether the schedule can only be checked after expansion.
func (s *Schedule) hasPlaceholders() bool {
	return slices.ContainsFunc([]string{s.Cron, s.Zone, s.Method, s.URI}, hasPlaceholder) ||
		slices.ContainsFunc(s.Headers, func(f HeaderField) bool { return hasPlaceholder(f.Name) })
}

func (s *Schedule) validate() error {
	if _, err := s.times(); err != nil {
		return err
	}
	if s.Method != "" && !httpguts.ValidHeaderFieldName(s.Method) {
		return fmt.Errorf("%q is not a method", s.Method)
	}
	if _, err := url.ParseRequestURI(s.uri()); err != nil || !strings.HasPrefix(s.uri(), "/") {
		return fmt.Errorf("uri: %q is not a path", s.URI)
	}
	for _, field := range s.Headers {
		if err := field.check(); err != nil {
			return fmt.Errorf("header: %w", err)
		}
	}
	return nil
}

// validateSchedules checks the schedules of a queue. Two equal ones are refused,
// because they would have the same ID.
func (o *QueueOptions) validateSchedules() error { return validateSchedules(o.Schedules) }

// checkSchedules is validateSchedules for the Caddyfile. It leaves out schedules with
// placeholders.
func (o *QueueOptions) checkSchedules() error {
	return validateSchedules(slices.DeleteFunc(slices.Clone(o.Schedules), (*Schedule).hasPlaceholders))
}

func validateSchedules(schedules []*Schedule) error {
	known := make(map[string]bool)
	for _, s := range schedules {
		if err := s.validate(); err != nil {
			return fmt.Errorf("schedule: %w", err)
		}
		id := s.id("")
		if known[id] {
			return fmt.Errorf("schedule: %q is given twice with the same request", s.Cron)
		}
		known[id] = true
	}
	return nil
}

// id identifies a schedule of a queue in the store. It is a hash of the content, so
// that reordering schedules keeps their run times.
func (s *Schedule) id(queue string) string {
	words := []string{strings.Join(strings.Fields(s.Cron), " "), cmp.Or(s.Zone, "UTC"), cmp.Or(s.Method, http.MethodPost), s.uri(), s.Body}
	for _, field := range s.Headers {
		words = append(words, strings.ToLower(field.Name), field.Value)
	}
	return queue + "-" + engine.HashOf(words...)[:16]
}

func (s *Schedule) uri() string {
	if s.URI == "" {
		return "/"
	}
	return s.URI
}

// request returns the request that a run sends.
func (s *Schedule) request() *task.Request {
	stored := &task.Request{
		Method: s.Method, URI: s.uri(), Proto: "HTTP/1.1", Host: "localhost",
		Header: make(http.Header), RemoteAddr: "127.0.0.1:0", Size: int64(len(s.Body)),
	}
	if stored.Method == "" {
		stored.Method = http.MethodPost
	}
	for _, field := range s.Headers {
		if strings.EqualFold(field.Name, "Host") {
			stored.Host = field.Value
			continue
		}
		stored.Header.Add(field.Name, fieldValue(field.Value))
	}
	if s.Body != "" && stored.Header.Get("Content-Type") == "" {
		stored.Header.Set("Content-Type", "application/json")
	}
	return stored
}

// newPlans prepares the schedules of the queue for their runs.
func (q *TaskQueue) newPlans() (plans []*scheduler.Plan, err error) {
	for _, s := range q.opts.Schedules {
		p, err := q.newPlan(s)
		if err != nil {
			return nil, fmt.Errorf("schedule %q: %w", s.Cron, err)
		}
		plans = append(plans, p)
	}
	return plans, nil
}

func (q *TaskQueue) newPlan(s *Schedule) (*scheduler.Plan, error) {
	times, err := s.times()
	if err != nil {
		return nil, err
	}
	p := &scheduler.Plan{ID: s.id(q.Name), Cron: s.Cron, Zone: cmp.Or(s.Zone, "UTC"), Times: times, Body: s.Body}
	p.Record = task.Record{
		Task: task.Task{Queue: q.Name}, Route: q.Name, Request: s.request(), Timeout: time.Duration(q.callback.Timeout), Schedule: p.ID,
	}
	if uri := profile.Of(q.callback.Profile).BlockURI(p.Record.Request.URI); uri != p.Record.Request.URI {
		p.Record.Request.Path = uri
	}
	if !q.NoCallback {
		p.Record.Callback, p.Record.CallbackHost, err = q.callback.callbackOfSchedule(s, p.Record.Request)
	}
	p.TaskHeader = q.headerOf(&p.Record)
	return p, err
}

// callbackOfSchedule returns the callback of a scheduled request: the URL that its body
// names, or else that of the handler.
func (h *Handler) callbackOfSchedule(s *Schedule, stored *task.Request) (*task.Callback, string, error) {
	r, err := http.NewRequest(stored.Method, stored.URI, strings.NewReader(s.Body))
	if err != nil {
		return nil, "", err
	}
	r.Header = stored.Header
	target, host, trusted, own := h.URL, h.own, true, true
	named, _, err := h.urlOf(nil, r)
	if err != nil {
		return nil, "", err
	}
	if named != "" {
		// The operator wrote the body.
		u, err := h.app.Delivery.trusted.CheckURL(named)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", h.source(), err)
		}
		target, host, own = u.String(), safedial.HostPort(u), false
	}
	if target == "" {
		return nil, "", nil
	}
	repl := caddy.NewReplacer() // there is no request whose placeholders could expand
	callback, err := h.newCallback(target, trusted, r.URL.Path, repl)
	switch {
	case err != nil:
		return nil, "", err
	case callback.Link == nil && h.LargeResults == linkResults:
		return nil, "", errors.New("large_results link: no client names a host for the link; write its URL: large_results link https://example.com/tasks")
	}
	if !h.sendsHeaders(own) {
		return callback, host, nil
	}
	for _, field := range h.Headers {
		callback.Header = append(callback.Header, [2]string{field.Name, fieldValue(repl.ReplaceAll(field.Value, ""))})
	}
	return callback, host, nil
}
