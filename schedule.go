package callback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // time zones work on machines without a zone database

	"github.com/caddyserver/caddy/v2"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/schedule"
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
	if every, ok := strings.CutPrefix(s.Cron, "@every "); ok {
		interval, err := caddy.ParseDuration(strings.TrimSpace(every))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not a duration such as 90s, 10m or 1d", every)
		case s.Zone != "":
			return nil, errors.New("@every has no time zone")
		}
		return schedule.Every(interval)
	}
	zone, err := s.location()
	if err != nil {
		return nil, err
	}
	return schedule.Parse(s.Cron, zone)
}

// location returns the time zone. Local is refused, because gateways that share the
// schedule may have different ones.
func (s *Schedule) location() (*time.Location, error) {
	if s.Zone == "Local" {
		return nil, errors.New(`the time zone "Local" differs between machines; name it, such as Europe/Paris`)
	}
	zone, err := time.LoadLocation(s.Zone)
	if err != nil {
		return nil, fmt.Errorf("%q is not a time zone", s.Zone)
	}
	return zone, nil
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
	if s.Method != "" && !isToken(s.Method) {
		return fmt.Errorf("%q is not a method", s.Method)
	}
	if _, err := url.ParseRequestURI(s.uri()); err != nil || !strings.HasPrefix(s.uri(), "/") {
		return fmt.Errorf("uri: %q is not a path", s.URI)
	}
	for _, field := range s.Headers {
		if !isToken(field.Name) {
			return fmt.Errorf("header: %q is not a header name", field.Name)
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
	return queue + "-" + hashOf(words...)[:16]
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

// plan is a configured schedule, prepared for its runs.
type plan struct {
	id       string
	queue    *TaskQueue
	schedule *Schedule
	times    *schedule.Schedule
	record   task.Record // without an ID and times
	next     time.Time   // as stored; zero if unknown
}

// setSchedules makes a plan for each schedule of all queues.
func (a *App) setSchedules() error {
	for _, q := range a.queues {
		for _, s := range q.opts.Schedules {
			p, err := q.newPlan(s)
			if err != nil {
				return fmt.Errorf("schedule of the queue %s: %w", q.Name, err)
			}
			a.plans = append(a.plans, p)
		}
	}
	return nil
}

func (q *TaskQueue) newPlan(s *Schedule) (*plan, error) {
	times, err := s.times()
	if err != nil {
		return nil, err
	}
	p := &plan{id: s.id(q.Name), queue: q, schedule: s, times: times}
	p.record = task.Record{
		Task: task.Task{Queue: q.Name}, Route: q.Name, Request: s.request(), Timeout: time.Duration(q.callback.Timeout), Schedule: p.id,
	}
	if uri := profile.Of(q.callback.Profile).BlockURI(p.record.Request.URI); uri != p.record.Request.URI {
		p.record.Request.Path = uri
	}
	if !q.NoCallback {
		p.record.Callback, p.record.CallbackHost, err = q.callback.callbackOfSchedule(s, p.record.Request)
	}
	return p, err
}

// newRecord returns a task for one run.
func (p *plan) newRecord(now time.Time) (*task.Record, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a task ID: %w", err)
	}
	rec := p.record
	rec.ID, rec.CreatedAt = id.String(), now.UTC()
	request := *rec.Request
	request.Header = request.Header.Clone()
	request.Header.Set(p.queue.headerOf(&rec), rec.ID)
	rec.Request = &request
	return &rec, nil
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
	if err != nil {
		return nil, "", err
	}
	if !h.sendsHeaders(own) {
		return callback, host, nil
	}
	for _, field := range h.Headers {
		callback.Header = append(callback.Header, [2]string{field.Name, fieldValue(repl.ReplaceAll(field.Value, ""))})
	}
	return callback, host, nil
}

// scheduler enqueues the runs of schedules in a store. The store has the next run time
// of each schedule. The idempotency key of a run is the schedule and the run time, so
// that gateways that share the store create one task.
type scheduler struct {
	store  engine.Engine
	now    func() time.Time   // the wall clock, which may be set
	cancel context.CancelFunc // nil while no schedules run
	loop   sync.WaitGroup
}

func newScheduler(e engine.Engine) *scheduler { return &scheduler{store: e, now: time.Now} }

// start runs the schedules of a generation. It is called after stop.
func (s *scheduler) start(owner *App) {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.loop.Go(func() { s.run(ctx, owner) })
}

// stop returns when no more runs are enqueued. It may be called twice, and before
// start.
func (s *scheduler) stop() {
	if s.cancel != nil {
		s.cancel()
		s.loop.Wait()
		s.cancel = nil
	}
}

const (
	// maxSleep bounds the delay of a run after the wall clock was set forward.
	maxSleep = 10 * time.Second
	// runRetry is the wait after a run could not be stored.
	runRetry = time.Second
)

// run waits for the next run time of each schedule, until ctx ends.
func (s *scheduler) run(ctx context.Context, owner *App) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, p := range owner.plans {
		p.next = time.Time{}
	}
	for ctx.Err() == nil && len(owner.plans) > 0 {
		sleep := maxSleep
		for _, p := range owner.plans {
			if err := s.advance(ctx, owner, p); err != nil {
				sleep = min(sleep, runRetry)
				if ctx.Err() == nil {
					owner.log.Warn("schedule delayed", zap.String("schedule", p.id), zap.Error(err))
				}
				continue
			}
			sleep = min(sleep, max(p.next.Sub(s.now()), 0))
		}
		timer.Reset(sleep)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// advance enqueues the run that is due, if any, and sets p.next.
func (s *scheduler) advance(ctx context.Context, owner *App, p *plan) error {
	if p.next.IsZero() {
		known, err := s.store.NextRun(ctx, p.id, p.times.Next(s.now()))
		if err != nil {
			return err
		}
		p.next = known.Next
	}
	now := s.now()
	if p.next.After(now) {
		return nil
	}
	if err := s.enqueue(ctx, owner, p); err != nil {
		return err
	}
	next := p.times.Following(p.next, now)
	err := s.store.Advance(ctx, p.id, p.next, next)
	switch {
	case err == nil:
		p.next = next
	case errors.Is(err, engine.ErrLost): // another gateway was first
		p.next, err = time.Time{}, nil
	}
	return err
}

// enqueue enqueues the run that is due, once.
func (s *scheduler) enqueue(ctx context.Context, owner *App, p *plan) error {
	rec, err := p.newRecord(s.now())
	if err != nil {
		return err
	}
	key := &engine.Key{
		Hash:   hashOf("schedule", p.id, p.next.UTC().Format(time.RFC3339Nano)),
		Digest: func() string { return "" },
	}
	id, created, err := s.store.Enqueue(ctx, rec, strings.NewReader(p.schedule.Body), engine.EnqueueOptions{Key: key})
	switch {
	case errors.Is(err, engine.ErrTooLarge): // every run will fail
		owner.log.Error("schedule skipped", zap.String("schedule", p.id), zap.Time("run_time", p.next), zap.Error(err))
		return nil
	case err != nil:
		return err
	case created:
		owner.metrics.taskAccepted(1)
	default:
		owner.log.Debug("schedule skipped: already enqueued, or the previous run has not started",
			zap.String("schedule", p.id), zap.Time("run_time", p.next), zap.String("task_id", id))
	}
	return nil
}
