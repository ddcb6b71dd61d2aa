package callback

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Handler gives the handlers after it callbacks: a request whose JSON body
// names a `callback_url`, or whose header does, is a task. The response goes to
// the client as it would without the handler, and to that URL.
type Handler struct {
	// The callback of every request on this route that names none itself. It
	// may point at private addresses and any port. Default: none; then only
	// requests that name one are tasks.
	URL string `json:"url,omitempty"`

	// How long a task may take, from forwarding to the end of the response;
	// then the client gets 504 and the callback says TIMEOUT. Default: `1h`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The service whose clients and receivers are served as they are: `openfaas`
	// (the URL in a header, the function's response as it is) or `beam2` (JSON,
	// with a signature of its own). It changes the defaults of other options.
	// Default: none.
	Profile string `json:"profile,omitempty"`

	// The member of the JSON body that names the callback's URL. Not together
	// with `from_header`. Default: `callback_url`.
	Field string `json:"field,omitempty"`

	// The header that names the callback's URL, in the place of a member of the
	// body. Requests with any body can be tasks then, and none is read for it. The
	// profile `openfaas` sets it to `X-Callback-Url`. Default: none.
	FromHeader string `json:"from_header,omitempty"`

	// Whether requests cannot name a URL: every request's callback goes to `url`,
	// which is then required. Not together with `field` or `from_header`.
	// Default: `false`.
	FromNone bool `json:"from_none,omitempty"`

	// What is posted: `form` (URL-encoded pairs), `json` (an envelope) or `raw`
	// (the body as the app sent it). The profile `openfaas` sets it to `raw`,
	// `beam2` posts `{"data": …}` and leaves no choice. Default: `form`.
	Format string `json:"format,omitempty"`

	// The header that carries the task's ID: upstream, to the client and to the
	// receiver. The profile `openfaas` sets it to `X-Call-Id`, `beam2` to
	// `X-Task-ID`. Default: `beam-task-id`.
	TaskHeader string `json:"task_header,omitempty"`

	// The header of the callback that carries the task's status. The profile
	// `beam2` sets it to `X-Task-Status`. Default: `x-beam-task-status`.
	StatusHeader string `json:"status_header,omitempty"`

	// Headers added to the callback. If there is a `url`, they go there only, and
	// not to a URL that a request names: they may hold a secret. Placeholders in
	// their values expand when the request is accepted; a request that makes more
	// than 16 KiB of them is refused. Default: none.
	Headers []HeaderField `json:"headers,omitempty"`

	// The largest body, in bytes, of a request that can be a task.
	// Default: `8388608` (8 MiB).
	MaxRequest int64 `json:"max_request,omitempty"`

	// The largest result, in bytes, that is posted whole; of a larger one the
	// beginning is posted. Default: `8388608` (8 MiB).
	MaxResult int64 `json:"max_result,omitempty"`

	app     *App
	log     *zap.Logger
	route   string
	fromKey string // FromHeader in canonical form
	own     string // host and port of URL
	// Known once the app starts: whether a task queue is among the handlers after
	// this one, and whether it is the very next, so that every request gets there.
	leads, hands atomic.Bool
}

// HeaderField is one header of a callback.
type HeaderField struct {
	// The name of the header. Required.
	Name string `json:"name"`

	// Its value; placeholders expand. Default: empty.
	Value string `json:"value,omitempty"`
}

// Defaults of the handler.
const (
	defaultTimeout      = time.Hour
	defaultField        = "callback_url"
	defaultTaskHeader   = "beam-task-id"
	defaultStatusHeader = "x-beam-task-status"
	defaultMaxBody      = 8 << 20
)

// The formats of a callback.
const (
	formatForm = encode.FormatForm
	formatJSON = encode.FormatJSON
	formatRaw  = encode.FormatRaw
	formatData = encode.FormatData
)

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.callback", New: func() caddy.Module { return new(Handler) }}
}

// Provision applies the defaults and finds the app.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.log = ctx.Logger()
	if err := h.applyProfile(); err != nil {
		return err
	}
	setDefault(&h.Timeout, caddy.Duration(defaultTimeout))
	setDefault(&h.Field, defaultField)
	setDefault(&h.Format, formatForm)
	setDefault(&h.TaskHeader, defaultTaskHeader)
	setDefault(&h.StatusHeader, defaultStatusHeader)
	setDefault(&h.MaxRequest, defaultMaxBody)
	setDefault(&h.MaxResult, defaultMaxBody)
	h.URL = caddy.NewReplacer().ReplaceKnown(h.URL, "")
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		h.route = server.Name()
	}
	app, err := ctx.App("callback")
	if err != nil {
		return fmt.Errorf("loading the callback app: %w", err)
	}
	h.app = app.(*App)
	return nil
}

// Validate checks what needs no I/O.
func (h *Handler) Validate() error {
	if h.URL != "" {
		u, err := h.app.Delivery.trusted.CheckURL(h.URL)
		if err != nil {
			return fmt.Errorf("url: %w", err)
		}
		h.URL, h.own = u.String(), safedial.HostPort(u)
	}
	switch {
	case h.Format == formatForm, h.Format == formatJSON, h.Format == formatRaw:
	case h.Format == formatData && h.Profile == profileBeam2:
	default:
		return fmt.Errorf("format: %q is none of form, json, raw", h.Format)
	}
	if err := h.validateProfile(); err != nil {
		return err
	}
	if h.Profile == profileBeam2 && !webhook.CanSignBeam(h.app.Delivery.keys) {
		h.log.Warn("the profile signs its callbacks, but there is no whsec_ key in delivery", zap.String("profile", h.Profile))
	}
	if h.Timeout < 0 {
		return fmt.Errorf("timeout: %v is negative", time.Duration(h.Timeout))
	}
	if min(h.MaxRequest, h.MaxResult) < 0 || max(h.MaxRequest, h.MaxResult) > maxSize {
		return fmt.Errorf("max_request and max_result can be %d bytes at most, and not negative", maxSize)
	}
	for _, name := range []string{h.TaskHeader, h.StatusHeader} {
		if !isToken(name) {
			return fmt.Errorf("%q is not a header name", name)
		}
		if profile.Reserved(name) {
			return fmt.Errorf("%s is set by the gateway; the task's ID and status need headers of their own", name)
		}
	}
	if strings.EqualFold(h.TaskHeader, h.StatusHeader) {
		return fmt.Errorf("task_header and status_header are both %s", h.TaskHeader)
	}
	for _, field := range h.Headers {
		if !isToken(field.Name) {
			return fmt.Errorf("header: %q is not a header name", field.Name)
		}
		if profile.Reserved(field.Name) || profile.Sets(h.Profile, field.Name) ||
			strings.EqualFold(field.Name, h.TaskHeader) || strings.EqualFold(field.Name, h.StatusHeader) {
			return fmt.Errorf("header: %s is set by the gateway", field.Name)
		}
	}
	return nil
}

// isToken says whether s can be a header's name (RFC 9110, section 5.1).
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// ServeHTTP passes the request on, as a task if it owes a callback. Of several
// handlers on the request's way the first makes it one.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if header, isTask := taskHeaderOf(r); isTask {
		if !strings.EqualFold(header, h.TaskHeader) {
			dropHeader(r.Header, h.TaskHeader)
		}
		return next.ServeHTTP(w, r)
	}
	// Only the gateway names tasks to the endpoint.
	dropHeader(r.Header, h.TaskHeader)
	if !mayBeTask(r) {
		return next.ServeHTTP(w, r)
	}
	callback, host, reason, err := h.callbackOf(w, r)
	body, _ := r.Body.(*bodies.Body)
	switch client := r.Context(); {
	case err != nil:
		err = writeProblem(w, err)
		release(client, body, nil)
		return err
	case callback == nil && reason != "":
		h.skipped(r, reason)
		fallthrough
	default:
		err = h.pass(w, r, next, callback, host)
		release(client, body, err)
		return err
	}
}

// pass passes on a request that is owed a callback, or none.
func (h *Handler) pass(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, callback *task.Callback, host string) error {
	if hands := h.hands.Load(); hands || callback == nil {
		if hands || h.leads.Load() {
			// The queue stores the task, callback and all. To claim it first would
			// cost a message, and hold what nobody was promised yet.
			t := newTicket(h)
			t.callback, t.host = callback, host
			ctx := &requestContext{client: r.Context(), task: context.WithValue(r.Context(), ticketKey{}, t)}
			defer ctx.over.Store(true)
			// In place, as exchange.serve does it.
			*r = *r.WithContext(ctx)
		}
		return next.ServeHTTP(w, r)
	}
	s, leave, err := h.app.enter()
	if err != nil {
		return unavailable(w, h.log, err)
	}
	defer leave()
	x, err := h.claim(s, callback, host, w, r)
	if err != nil {
		return unavailable(w, h.log, err)
	}
	x.upgradable = true
	return x.serve(r, next)
}

// taskHeaderOf returns the header of the ID of the task that the request belongs
// to already: a handler before this one has made it a task or has its callback for
// a queue, or the templates of a task's page have made the request.
func taskHeaderOf(r *http.Request) (header string, isTask bool) {
	ctx := r.Context()
	if x, ok := ctx.Value(claimedKey{}).(*exchange); ok {
		return x.h.TaskHeader, true
	}
	if t, ok := ctx.Value(ticketKey{}).(*ticket); ok && t.callback != nil {
		return t.header, true
	}
	return inFlight.headerOf(r)
}

// callbackOf returns what the request is owed, and the host and port that it
// goes to, or nil if the request is no task. reason says why one that may have
// wanted a callback is none. The error is a *problem.
func (h *Handler) callbackOf(w http.ResponseWriter, r *http.Request) (_ *task.Callback, host string, reason bodies.Reason, _ error) {
	target, host, trusted := h.URL, h.own, true
	hops, named, err := claimedHops(r), "", error(nil)
	if hops > maxHops {
		reason = hopsReached
	} else if named, reason, err = h.urlOf(w, r); err != nil {
		return nil, "", "", err
	}
	if named != "" {
		u, err := h.app.Delivery.policy.CheckURL(named)
		if err != nil {
			return nil, "", "", &problem{http.StatusBadRequest, fmt.Sprintf("%s: %v", h.source(), err)}
		}
		target, host, trusted = u.String(), safedial.HostPort(u), false
	}
	if target == "" {
		return nil, "", reason, nil
	}
	if trusted {
		if hops = h.app.provenHops(r); hops > maxHops {
			return nil, "", hopsReached, nil
		}
	}
	callback := h.newCallback(target, trusted, originalPath(r))
	if parent := r.Header.Get("Traceparent"); len(parent) <= maxTraceparent {
		callback.Traceparent = parent
	}
	if h.sendsHeaders(trusted) {
		callback.Header, err = h.callbackHeader(r)
	}
	addHops(callback, hops)
	return callback, host, "", err
}

// maxTraceparent is more than any version of Trace Context has had, in bytes.
const maxTraceparent = 128

// maxFields is how large the values may be, in bytes, that placeholders put into
// the header of a callback. The engine keeps them in the task's record, which
// must fit in a message; most receivers refuse more.
const maxFields = 16 << 10

// sendsHeaders says whether what the operator adds goes to a URL: to the operator's
// own, or where there is none, to the one that the request names. A client that
// names a URL of its own must not get a secret that is meant for the operator's.
func (h *Handler) sendsHeaders(own bool) bool { return own || h.URL == "" }

// callbackHeader returns what the operator adds to a callback, with what the
// request puts in the place of placeholders. The error is a *problem.
func (h *Handler) callbackHeader(r *http.Request) (header [][2]string, _ error) {
	if len(h.Headers) == 0 {
		return nil, nil
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	size := 0
	for _, field := range h.Headers {
		value := fieldValue(repl.ReplaceAll(field.Value, ""))
		if size += len(value); size > maxFields {
			return nil, &problem{http.StatusBadRequest,
				fmt.Sprintf("what the request gives the callback's header %s is too long: %d bytes at most", field.Name, maxFields)}
		}
		header = append(header, [2]string{field.Name, value})
	}
	return header, nil
}

// newCallback returns what is owed to a request for a path. All that the profile
// decides is in it: an accepted task keeps it, whatever the configuration says
// later.
func (h *Handler) newCallback(target string, trusted bool, path string) *task.Callback {
	callback := &task.Callback{
		URL: target, Trusted: trusted, Format: h.Format, Profile: h.Profile,
		TaskHeader: h.TaskHeader, StatusHeader: h.StatusHeader, MaxResult: h.MaxResult,
	}
	if h.Profile == profileOpenFaaS {
		callback.Function = functionOf(path)
	}
	return callback
}

// fieldValue removes the control characters from s: a placeholder may expand to
// what a client sent. Other bytes stay as they are, UTF-8 or not.
func fieldValue(s string) string {
	value := make([]byte, 0, len(s))
	for _, c := range []byte(s) {
		if c >= ' ' && c != 0x7f || c == '\t' {
			value = append(value, c)
		}
	}
	return string(value)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
