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
	"strconv"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/header"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// TaskQueue accepts requests at once, with 202 and a task ID, and runs its
// handlers on them later: durably, by any node that has the queue. Its tasks get
// callbacks as those of the `callback` handler do, and can be polled under the
// queue's path.
type TaskQueue struct {
	// The queue's name: letters, digits, `-` and `_`. Required.
	Name string `json:"name"`

	// The callbacks of the queue's tasks, with the options of the `callback` handler.
	// If a `callback` handler further out has claimed the request, the options of
	// that handler hold where these leave one out. Default: the defaults of the
	// options.
	Callback *Handler `json:"callback,omitempty"`

	// Whether no task of the queue gets a callback. Not together with `callback`.
	// Default: `false`.
	NoCallback bool `json:"no_callback,omitempty"`

	// The service whose clients are served as they are: `openfaas` or `beam2`. It is
	// the `profile` of the callback options. With `openfaas` the 202 has no body, and
	// the block sees `/function/…` in the place of `/async-function/…`. Default: that
	// of `callback`.
	Profile string `json:"profile,omitempty"`

	// The routes that are the task. Required.
	Routes caddyhttp.RouteList `json:"routes"`

	app      *App
	opts     *QueueOptions
	log      *zap.Logger
	server   *caddyhttp.Server
	block    caddyhttp.Handler
	callback *Handler // the options that hold
	tasks    collection
	within   sync.Map // *Handler, by the *Handler further out: callback within it
	written  string   // what the configuration says of the queue
}

// CaddyModule returns the Caddy module information.
func (*TaskQueue) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.task_queue", New: func() caddy.Module { return new(TaskQueue) }}
}

// Provision sets up the handlers of the block and tells the app of the queue.
func (q *TaskQueue) Provision(ctx caddy.Context) error {
	q.log = ctx.Logger()
	q.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if q.server == nil {
		return errors.New("a task queue needs an HTTP server around it")
	}
	if !isQueueName(q.Name) {
		return fmt.Errorf("name: %q is not made of letters, digits, - and _ (at most %d)", q.Name, maxQueueName)
	}
	written, err := json.Marshal([]any{q.Callback, q.NoCallback, q.Profile, q.Routes})
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
	q.tasks = collection{app: q.app, log: q.log, queue: q.Name}
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
		return errors.New("callback and no_callback exclude each other")
	case q.Profile != "" && own != "" && own != q.Profile:
		return fmt.Errorf("profile: %s is not that of the callback, %s; one of them is enough", q.Profile, own)
	case q.Profile != "":
		q.callback.Profile = q.Profile
	}
	return q.callback.Provision(ctx)
}

// Validate checks the callback options.
func (q *TaskQueue) Validate() error {
	if err := q.callback.Validate(); err != nil {
		return fmt.Errorf("callback: %w", err)
	}
	return nil
}

// maxQueueName keeps what an engine names after a queue below the 255 characters
// that NATS allows.
const maxQueueName = 100

func isQueueName(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= maxQueueName
}

// ServeHTTP accepts a request into the queue, or answers one about a task in
// it. If a callback handler further out has claimed the request, the claim is taken
// over with the task, or released before the client gets its answer.
func (q *TaskQueue) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	claim := claimOf(r)
	if look, ok := lookupOf(r.Method, originalPath(r)); ok {
		claim.release() // the request is about a task, not one
		return q.tasks.serve(w, r, look)
	}
	s, leave, err := q.app.enter()
	if err != nil {
		claim.release()
		return unavailable(w, q.log, err)
	}
	defer leave()
	id, start, h, err := q.accept(s, claim, w, r)
	if err != nil {
		claim.release()
		var p *problem
		if !errors.As(err, &p) {
			return unavailable(w, q.log, err)
		}
		if p.status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		}
		return writeProblem(w, p)
	}
	return q.acknowledge(w, r, s, h, id, start)
}

// originalURL is the request's URL as the client wrote it, before rewrites.
func originalURL(r *http.Request) *url.URL {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL
	}
	return r.URL
}

func originalPath(r *http.Request) string { return originalURL(r).Path }

// callbackOf returns what the task of a request is owed, nil if nothing, the host
// and port that it goes to, and the options that hold for the task. claim is nil if
// nobody has claimed the request. The error is a *problem.
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

// callbackWithin returns the queue's options with those of a handler further out in
// the place of what the queue leaves out.
func (q *TaskQueue) callbackWithin(outer *Handler) *Handler {
	if merged, ok := q.within.Load(outer); ok {
		return merged.(*Handler)
	}
	merged, err := q.callback.within(outer)
	if err != nil {
		q.log.Warn("the options of the callback further out do not fit those of the queue, and are not used",
			zap.String("queue", q.Name), zap.Error(err))
		merged = q.callback
	}
	q.within.Store(outer, merged)
	return merged
}

// accept stores the request as a task and returns its ID, when it can start, and the
// options that hold for it. The error is a *problem if the request must be refused for what it is.
func (q *TaskQueue) accept(s *sharedStore, claim *execution, w http.ResponseWriter, r *http.Request) (id string, start time.Time, h *Handler, err error) {
	ctx := context.WithoutCancel(r.Context()) // a client that leaves now is accepted all the same
	if len(r.Header["Idempotency-Key"]) > 1 {
		return "", time.Time{}, nil, &problem{http.StatusBadRequest, "Idempotency-Key: the header is there twice, and servers disagree on which one counts"}
	}
	start, err = startTime(r.Header, time.Now(), time.Duration(q.opts.MaxDelay))
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
	err = problemOf(capture.Spool(r, capture.Options{Limit: h.MaxRequest, Folder: q.app.spool, Response: w}))
	defer releaseBody(r.Body)
	if err != nil {
		return "", time.Time{}, nil, err
	}
	body := newBoundedBody(r.Body, h.MaxRequest)
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
		q.app.metrics.taskAccepted(1)
	case !created && claim != nil:
		q.app.metrics.taskAccepted(-1) // it was counted when it was claimed
	}
	return id, start, h, nil
}

// releaseBody frees what is kept of a body that was read ahead.
func releaseBody(body io.ReadCloser) {
	if read, ok := body.(*capture.Body); ok {
		read.Release()
	}
}

// newRecord makes the record of a request as it stands now, after what comes
// before the queue in the route. Its callback is not set. claim is nil if nobody has
// claimed the request.
func (q *TaskQueue) newRecord(claim *execution, h *Handler, r *http.Request) (*task.Record, error) {
	rec := new(task.Record)
	if claim != nil {
		// The deadline may give the verdict at this moment, and change the rest.
		rec.ID, rec.CreatedAt = claim.rec.ID, claim.rec.CreatedAt
	} else {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making a task ID: %w", err)
		}
		rec.ID, rec.CreatedAt = id.String(), time.Now().UTC()
	}
	rec.Queue, rec.Route, rec.Timeout, rec.Span = q.Name, q.Name, time.Duration(h.Timeout), spanOf(r.Context())
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
	dropDelay(rec.Request.Header)
	rec.Request.Header.Del("Expect")
	return rec, nil
}

// refusalOf returns the *problem of a request that could not be stored for what it
// is; any other error as it is.
func refusalOf(err error, body *boundedBody) error {
	switch {
	case body.err != nil:
		return body.problem()
	case errors.Is(err, engine.ErrQueueFull):
		return &problem{http.StatusTooManyRequests, "the queue is full"}
	case errors.Is(err, engine.ErrKeyReused):
		return &problem{http.StatusUnprocessableEntity, "Idempotency-Key: it was used with another body"}
	case errors.Is(err, engine.ErrTooLarge):
		return &problem{http.StatusRequestHeaderFieldsTooLarge, "the request's header is too large for a task"}
	}
	return err
}

// keyOf returns the request's idempotency key, hashed with what it is scoped to, or
// nil if there is none. Its digest is that of the body. Clients choose keys, "1" for
// example: without a scope one would get another's task ID, and with it the result.
func (q *TaskQueue) keyOf(r *http.Request, body *boundedBody) *engine.Key {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return nil
	}
	scope := q.opts.IdempotencyScope
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		scope = repl.ReplaceAll(scope, "")
	}
	body.hash = sha256.New()
	return &engine.Key{
		Hash:   hashOf(q.Name, key, r.Method, r.RequestURI, scope),
		Digest: func() string { return hex.EncodeToString(body.hash.Sum(nil)) },
	}
}

// hashOf returns a digest of some words, and of where one ends and the next begins.
func hashOf(words ...string) string {
	sum := sha256.New()
	for _, word := range words {
		part := sha256.Sum256([]byte(word))
		sum.Write(part[:])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TaskQueue)(nil)
	_ caddyhttp.MiddlewareHandler = (*TaskQueue)(nil)
)
