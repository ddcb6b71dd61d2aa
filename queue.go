package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// TaskQueue accepts requests at once, with 202 and a task ID, and runs its
// handlers on them later: durably, by any node that has the queue. A `callback`
// before it in the route gives its tasks their callback; without one they are
// polled under the queue's path.
type TaskQueue struct {
	// The queue's name: letters, digits, `-` and `_`. Required.
	Name string `json:"name"`

	// The service whose clients are served as they are: `openfaas` or `beam2`.
	// With `openfaas` the 202 has no body, and the block sees `/function/…` in the
	// place of `/async-function/…`. Default: that of the `callback` before the
	// queue, or none.
	Profile string `json:"profile,omitempty"`

	// The routes that are the task. Required.
	Routes caddyhttp.RouteList `json:"routes"`

	app    *App
	opts   *QueueOptions
	log    *zap.Logger
	server *caddyhttp.Server
	block  caddyhttp.Handler
	// front is the callback handler that stands before the queue, if one does. It
	// is known once the app starts.
	front *Handler
	told  string // what the configuration says of the queue
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
	if q.Profile != "" && !slices.Contains(profileNames, q.Profile) {
		return fmt.Errorf("profile: %q is none of %s", q.Profile, strings.Join(profileNames, ", "))
	}
	told, err := json.Marshal([]any{q.Profile, q.Routes})
	if err != nil {
		return fmt.Errorf("reading the block of the queue %s: %w", q.Name, err)
	}
	q.told = string(told)
	if err := q.Routes.Provision(ctx); err != nil {
		return fmt.Errorf("setting up the block of the queue %s: %w", q.Name, err)
	}
	if holdsCallback(q.Routes) {
		return fmt.Errorf("the queue %s has a callback in its block: its requests are tasks already, and get theirs from a callback in front of task_queue", q.Name)
	}
	end := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	q.block = q.Routes.Compile(end)
	app, err := ctx.App("callback")
	if err != nil {
		return fmt.Errorf("loading the callback app: %w", err)
	}
	q.app = app.(*App)
	q.opts, err = q.app.addQueue(q)
	return err
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
// it.
func (q *TaskQueue) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	original := originalURL(r)
	s, leave, err := q.app.enter()
	ticket, _ := r.Context().Value(ticketKey{}).(*ticket)
	if err != nil {
		ticket.refuse()
		return unavailable(w, q.log, err)
	}
	defer leave()
	if ticket == nil {
		ticket = q.newTicket()
	}
	if look, ok := lookupOf(r.Method, original.Path); ok {
		ticket.refuse() // the request is about a task, not one
		ticket.rename(look.id)
		return q.answer(w, r, s, look)
	}
	a, err := q.accept(s, ticket, w, r)
	if err != nil {
		ticket.refuse()
		var p *problem
		if !errors.As(err, &p) {
			return unavailable(w, q.log, err)
		}
		if p.status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		}
		return writeProblem(w, p)
	}
	ticket.rename(a.id) // a key may stand for another task
	if ticket.client != nil {
		// Nobody waits for a client that has left. The copy is for us only: no handler
		// follows whose placeholders would read another request.
		r = r.WithContext(ticket.client)
	}
	return q.acknowledge(w, r, s, original, a)
}

// originalURL is the request's URL as the client wrote it, before rewrites.
func originalURL(r *http.Request) *url.URL {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL
	}
	return r.URL
}

func originalPath(r *http.Request) string { return originalURL(r).Path }

// ticket is what a callback handler hands to a queue after it.
type ticket struct {
	exchange *exchange       // claimed for the request; nil if it was not
	callback *task.Callback  // owed to a request that was not claimed, or nil
	host     string          // of callback, with its port
	client   context.Context // ends when the client leaves; nil without an exchange
	limit    int64           // largest body
	timeout  time.Duration
	header   string // of the task's ID
	profile  string
}

type ticketKey struct{}

// newTicket makes the ticket of a callback handler.
func newTicket(h *Handler) *ticket {
	return &ticket{limit: h.MaxRequest, timeout: time.Duration(h.Timeout), header: h.TaskHeader, profile: h.Profile}
}

// newTicket makes the ticket of a request that has none: there is no callback
// handler before the queue, or it did not know yet that it leads here.
func (q *TaskQueue) newTicket() *ticket {
	if q.front != nil {
		return newTicket(q.front)
	}
	return &ticket{limit: defaultMaxBody, timeout: defaultTimeout, header: q.taskHeader(), profile: q.Profile}
}

// taskHeader is the header of the IDs of tasks that are owed no callback.
func (q *TaskQueue) taskHeader() string {
	if q.front != nil {
		return q.front.TaskHeader
	}
	if header := profile.Of(q.Profile).Traits().TaskHeader; header != "" {
		return header
	}
	return defaultTaskHeader
}

// refuse gives up the task that was claimed for a request which is not accepted.
func (t *ticket) refuse() {
	if t != nil && t.exchange != nil {
		t.exchange.dissolve()
	}
}

// rename changes the task ID in the response from the one that was claimed for the
// request.
func (t *ticket) rename(id string) {
	if t.exchange != nil {
		t.exchange.capture.taskHeader[1] = id
	}
}

// acceptance is what became of a request that was accepted.
type acceptance struct {
	id      string
	header  string
	profile string
}

// accept stores the request as a task. The error is a *problem if the request
// must be refused for what it is.
func (q *TaskQueue) accept(s *sharedStore, t *ticket, w http.ResponseWriter, r *http.Request) (*acceptance, error) {
	ctx := context.WithoutCancel(r.Context()) // a client that leaves now is accepted all the same
	if len(r.Header["Idempotency-Key"]) > 1 {
		return nil, &problem{http.StatusBadRequest, "Idempotency-Key: the header is there twice, and servers disagree on which one counts"}
	}
	rec, err := q.newRecord(t, r)
	if err != nil {
		return nil, err
	}
	if err := q.spool(t, w, r); err != nil {
		return nil, err
	}
	if spooled, ok := r.Body.(*bodies.Body); ok {
		defer spooled.Release()
	}
	body := newBoundedBody(r.Body, t.limit)
	opts := engine.EnqueueOptions{Key: q.keyOf(r, body), MaxQueued: q.opts.MaxQueued}
	enqueue := s.Enqueue
	if t.exchange != nil {
		enqueue = t.exchange.enqueue
	}
	id, created, err := enqueue(ctx, rec, body, opts)
	if err != nil {
		return nil, refusalOf(err, body)
	}
	switch claimed := t.exchange != nil; {
	case created && !claimed:
		q.app.metrics.taskAccepted(1)
	case !created && claimed:
		q.app.metrics.taskAccepted(-1) // it was counted when it was claimed
	}
	return &acceptance{id, t.header, t.profile}, nil
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

// acknowledge answers a request that was accepted: with the task's own response
// if the client waits for it and it comes in time, else with 202.
func (q *TaskQueue) acknowledge(w http.ResponseWriter, r *http.Request, s *sharedStore, original *url.URL, a *acceptance) error {
	w.Header().Set(a.header, a.id)
	if wait, ok := preferredWait(r.Header); ok {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		if rec, err := awaitVerdict(ctx, s, a.id); err == nil {
			return q.writeResult(w, r, s, rec)
		}
	}
	// Two slashes in front would name another host.
	path := strings.Trim(original.EscapedPath(), "/")
	w.Header().Set("Location", strings.TrimSuffix("/"+path, "/")+"/"+a.id)
	if a.profile == profileOpenFaaS {
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, err := io.WriteString(w, `{"task_id":"`+a.id+"\"}\n")
	return err
}

// awaitVerdict waits until a task has its verdict.
func awaitVerdict(ctx context.Context, e engine.Tasks, id string) (rec *task.Record, err error) {
	var version uint64
	for rec == nil || !rec.Ended() {
		if rec, err = e.Wait(ctx, id, version); err != nil {
			return nil, err
		}
		version = rec.Version
	}
	return rec, nil
}

// maxWait bounds how long a client can keep a connection open with Prefer.
const maxWait = time.Hour

// preferredWait reads "Prefer: wait=N" (RFC 7240, section 4.3), N in seconds.
func preferredWait(h http.Header) (time.Duration, bool) {
	for _, line := range h.Values("Prefer") {
		for _, preference := range splitList(line) { // as takePreferences does
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 32)
			if err != nil {
				return 0, false
			}
			return min(time.Duration(n)*time.Second, maxWait), true
		}
	}
	return 0, false
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TaskQueue)(nil)
	_ caddyhttp.MiddlewareHandler = (*TaskQueue)(nil)
)
