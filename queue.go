package callback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/header"
	"github.com/caddy-callback/caddy-callback/internal/poll"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/taskapi"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
)

// TaskQueue accepts requests at once, with 202 and a task ID, and runs its handlers on
// them later: durably, on any node that has the queue. Its tasks get callbacks like those
// of the `callback` handler. Clients can poll a task under the queue's path.
type TaskQueue struct {
	// The queue's name: letters, digits, `-` and `_`. Required.
	Name string `json:"name"`

	// The callbacks of the queue's tasks, with the options of the `callback` handler. If
	// an outer `callback` handler has claimed the request, its options apply where these
	// are unset. Default: the defaults of the options.
	Callback *Handler `json:"callback,omitempty"`

	// Whether the queue's tasks get no callback. It cannot be combined with `callback`.
	// Default: `false`.
	NoCallback bool `json:"no_callback,omitempty"`

	// The service whose clients can use the queue unchanged: `openfaas` or `beam2`. It
	// sets the `profile` of the callback options. With `openfaas`, the 202 has no body,
	// and the block sees `/function/…` instead of `/async-function/…`. Default: that of
	// `callback`.
	Profile string `json:"profile,omitempty"`

	// How to poll an endpoint that accepts a request and answers it later. Default: none;
	// the answer to the request is the result.
	Poll *PollOptions `json:"poll,omitempty"`

	// The routes that run a task. Required.
	Routes caddyhttp.RouteList `json:"routes"`

	app      *App
	opts     *QueueOptions
	log      *zap.Logger
	server   *caddyhttp.Server
	block    caddyhttp.Handler
	callback *Handler // the callback options with their defaults
	rules    *poll.Rules
	tasks    *taskapi.Collection
	plans    []*scheduler.Plan // of the schedules; set by Validate
	within   sync.Map          // *Handler, by the outer *Handler: the merged options
	written  string            // the configuration of the queue as JSON, to compare with others
}

// CaddyModule returns the Caddy module information.
func (*TaskQueue) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.task_queue", New: func() caddy.Module { return new(TaskQueue) }}
}

// Provision sets up the handlers of the block and adds the queue to the app.
func (q *TaskQueue) Provision(ctx caddy.Context) error {
	q.log = ctx.Logger()
	q.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if q.server == nil {
		return errors.New("a task queue needs an HTTP server around it")
	}
	if !isQueueName(q.Name) {
		return fmt.Errorf("name: %q is not made of letters, digits, - and _ (at most %d)", q.Name, maxQueueName)
	}
	written, err := json.Marshal([]any{q.Callback, q.NoCallback, q.Profile, q.Poll, q.Routes})
	if err != nil {
		return fmt.Errorf("reading the block of the queue %s: %w", q.Name, err)
	}
	q.written = string(written)
	if err := q.provisionCallback(ctx); err != nil {
		return err
	}
	if err := q.Routes.Provision(ctx); err != nil {
		return fmt.Errorf("setting up the block of the queue %s: %w", q.Name, err)
	}
	end := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	q.block = q.Routes.Compile(end)
	q.app = q.callback.app
	q.rules = q.Poll.rules()
	q.tasks = q.app.tasksOf(q.Name, q.log)
	q.app.endWaitsOf(q.server)
	q.opts, err = q.app.addQueue(q)
	return err
}

// provisionCallback applies the defaults of the callback options.
func (q *TaskQueue) provisionCallback(ctx caddy.Context) error {
	q.callback = new(Handler)
	if q.Callback != nil {
		*q.callback = *q.Callback
	}
	switch own := q.callback.Profile; {
	case q.NoCallback && q.Callback != nil:
		return errors.New("callback and no_callback cannot be combined; remove one of them")
	case q.Profile != "" && own != "" && own != q.Profile:
		return fmt.Errorf("profile: %s is not that of the callback, %s; one of them is enough", q.Profile, own)
	case q.Profile != "":
		q.callback.Profile = q.Profile
	}
	return q.callback.Provision(ctx)
}

// Validate checks the callback options, those of polls, and the schedules, whose callbacks depend on
// the callback options.
func (q *TaskQueue) Validate() (err error) {
	if err := q.callback.Validate(); err != nil {
		return fmt.Errorf("callback: %w", err)
	}
	if err := q.Poll.validate(); err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	if q.plans, err = q.newPlans(); err != nil {
		return fmt.Errorf("queue %s: %w", q.Name, err)
	}
	return nil
}

// maxQueueName keeps the names that an engine derives from a queue below the 255
// characters that NATS allows.
const maxQueueName = 100

func isQueueName(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= maxQueueName
}

// ServeHTTP accepts a request into the queue, or answers a request about one of its
// tasks. If an outer callback handler has claimed the request, the queue takes the claim
// over with the task, or releases it before the client gets a response.
func (q *TaskQueue) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	claim := claimOf(r)
	if look, ok := taskapi.ParseLookup(r.Method, originalPath(r)); ok {
		claim.release() // a request about a task is not a task
		return q.tasks.Serve(w, r, look)
	}
	s, err := q.app.enter()
	if err != nil {
		claim.release()
		return problem.WriteUnavailable(w, q.log, err)
	}
	defer s.leave()
	id, start, h, err := q.accept(s, claim, w, r)
	if err != nil {
		claim.release()
		var p *problem.Problem
		if !errors.As(err, &p) {
			return problem.WriteUnavailable(w, q.log, err)
		}
		if p.Status == http.StatusTooManyRequests {
			problem.SetRetryAfter(w.Header())
		}
		return problem.Write(w, p)
	}
	return q.tasks.Acknowledge(w, r, s, taskapi.Accepted{
		ID: id, Header: h.TaskHeader, Path: originalURL(r).EscapedPath(), Start: start,
		NoBody: profile.Of(h.Profile).Traits().EmptyAccepted,
	})
}

// originalURL returns the URL of the request before rewrites.
func originalURL(r *http.Request) *url.URL {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL
	}
	return r.URL
}

func originalPath(r *http.Request) string { return originalURL(r).Path }

// callbackOf returns the callback of a request's task, or nil if it has none, with its
// host and port, and the callback options of the task. claim is nil if no handler has
// claimed the request. The error is a *problem.Problem.
func (q *TaskQueue) callbackOf(claim *execution, w http.ResponseWriter, r *http.Request) (*task.Callback, string, *Handler, error) {
	h := q.callback
	switch _, isTask := taskHeaderOf(r); {
	case q.NoCallback:
		return nil, "", h, nil
	case claim == nil && (isTask || !mayBeTask(r)):
		return nil, "", h, nil
	case claim != nil && q.Callback == nil && q.Profile == "":
		return claim.rec.Callback, claim.rec.CallbackHost, claim.claimedBy, nil
	case claim != nil:
		h = q.callbackWithin(claim.claimedBy)
	}
	callback, host, err := h.callbackOf(w, r)
	return callback, host, h, err
}

// callbackWithin returns the queue's options, with unset ones taken from an outer
// handler.
func (q *TaskQueue) callbackWithin(outer *Handler) *Handler {
	if merged, ok := q.within.Load(outer); ok {
		return merged.(*Handler)
	}
	merged, err := q.callback.within(outer)
	if err != nil {
		q.log.Warn("options of the outer callback conflict with those of the queue and are ignored",
			zap.String("queue", q.Name), zap.Error(err))
		merged = q.callback
	}
	q.within.Store(outer, merged)
	return merged
}

// accept stores the request as a task. It returns the task's ID, the time at which it can
// start, and its callback options. The error is a *problem.Problem if the request is
// refused.
func (q *TaskQueue) accept(s *sharedStore, claim *execution, w http.ResponseWriter, r *http.Request) (id string, start time.Time, h *Handler, err error) {
	ctx := context.WithoutCancel(r.Context()) // accept the task even if the client disconnects
	if len(r.Header["Idempotency-Key"]) > 1 {
		return "", time.Time{}, nil, problem.New(http.StatusBadRequest, "Idempotency-Key: the header occurs twice; send it once")
	}
	start, err = header.StartTime(r.Header, time.Now(), time.Duration(q.opts.MaxDelay), caddy.ParseDuration)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	callback, host, h, err := q.callbackOf(claim, w, r)
	defer releaseBody(r.Body)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	if callback == nil {
		claim.release()
		claim = nil
	}
	rec, err := q.newRecord(claim, h, r)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	rec.Callback, rec.CallbackHost, rec.CallbackDomain = callback, host, quotaDomain(callback, host)
	rec.NotBefore, rec.NextAttemptAt = start, start
	err = capture.Spool(r, capture.Options{Limit: h.MaxRequest, Folder: q.app.spool, Response: w})
	defer releaseBody(r.Body)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	body := capture.NewBounded(r.Body, h.MaxRequest)
	opts := engine.EnqueueOptions{Key: q.keyOf(r, body), MaxQueued: q.opts.MaxQueued}
	enqueue := s.Enqueue
	if claim != nil {
		enqueue = claim.enqueue
	}
	id, created, err := enqueue(ctx, rec, body, opts)
	if err != nil {
		return "", time.Time{}, nil, refusalOf(err, body)
	}
	switch {
	case created && claim == nil:
		q.app.metrics.TaskAccepted(1)
	case !created && claim != nil:
		q.app.metrics.TaskAccepted(-1) // the claim has counted it
	}
	return id, start, h, nil
}

// releaseBody frees the buffer of a body that was read ahead.
func releaseBody(body io.ReadCloser) {
	if read, ok := body.(*capture.Body); ok {
		read.Release()
	}
}

// newRecord returns the record of a request, as changed by the handlers before the queue.
// It does not set the callback. claim is nil if no handler has claimed the request.
func (q *TaskQueue) newRecord(claim *execution, h *Handler, r *http.Request) (*task.Record, error) {
	rec := new(task.Record)
	if claim != nil {
		// Only these fields: the deadline may decide the verdict now and change the rest.
		rec.ID, rec.CreatedAt = claim.rec.ID, claim.rec.CreatedAt
	} else {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making a task ID: %w", err)
		}
		rec.ID, rec.CreatedAt = id.String(), time.Now().UTC()
	}
	rec.Queue, rec.Route, rec.Timeout, rec.Span = q.Name, q.Name, time.Duration(h.Timeout), tracing.ParentOf(r.Context())
	rec.Request = storedRequest(r)
	if uri := profile.Of(h.Profile).BlockURI(r.URL.RequestURI()); uri != rec.Request.URI {
		rec.Request.Path = uri
	}
	if claim != nil {
		header.Drop(rec.Request.Header, claim.taskHeader)
	}
	header.Drop(rec.Request.Header, h.TaskHeader)
	rec.Request.Header.Set(h.TaskHeader, rec.ID)
	header.TakePreferences(rec.Request.Header)
	header.DropDelay(rec.Request.Header)
	rec.Request.Header.Del("Expect")
	return rec, nil
}

// storedRequest returns the parts of a request that are stored.
func storedRequest(r *http.Request) *task.Request {
	stored := &task.Request{
		Method: r.Method, URI: r.RequestURI, Proto: r.Proto, Host: r.Host,
		Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr, TLS: r.TLS != nil,
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for name, value := range vars {
		if name == caddyhttp.ClientIPVarKey || name == caddyhttp.TrustedProxyVarKey {
			continue // derived again from the address and the headers
		}
		switch value.(type) {
		case string, bool, int, int64, float64: // the types of the vars directive
			if stored.Vars == nil {
				stored.Vars = make(map[string]string)
			}
			stored.Vars[name] = fmt.Sprint(value)
		}
	}
	return stored
}

// refusalOf returns a *problem.Problem if the request must be refused, and any other
// error unchanged.
func refusalOf(err error, body *capture.Bounded) error {
	if refusal := body.Refusal(); refusal != nil {
		return refusal
	}
	switch {
	case errors.Is(err, engine.ErrQueueFull):
		return problem.New(http.StatusTooManyRequests, "the queue is full")
	case errors.Is(err, engine.ErrKeyReused):
		return problem.New(http.StatusUnprocessableEntity, "Idempotency-Key: it was used with another body")
	case errors.Is(err, engine.ErrTooLarge):
		return problem.New(http.StatusRequestHeaderFieldsTooLarge, "the request's header is too large for a task")
	}
	return err
}

// keyOf returns the request's idempotency key, hashed with its scope, or nil if it has
// none. The key's digest is that of the body. Clients choose keys such as "1": without a
// scope, one client would get the task ID of another, and with it the result.
func (q *TaskQueue) keyOf(r *http.Request, body *capture.Bounded) *engine.Key {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return nil
	}
	scope := q.opts.IdempotencyScope
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		scope = repl.ReplaceAll(scope, "")
	}
	body.Hash = sha256.New()
	return &engine.Key{
		Hash:   engine.HashOf(q.Name, key, r.Method, r.RequestURI, scope),
		Digest: func() string { return hex.EncodeToString(body.Hash.Sum(nil)) },
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TaskQueue)(nil)
	_ caddy.Validator             = (*TaskQueue)(nil)
	_ caddyhttp.MiddlewareHandler = (*TaskQueue)(nil)
)
