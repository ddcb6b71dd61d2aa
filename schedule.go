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
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/schedule"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

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
