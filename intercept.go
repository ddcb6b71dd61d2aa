package callback

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/header"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Handler adds callbacks to the handlers after it. A request that names a
// `callback_url`, in its JSON body or in a header, becomes a task. The response goes to
// the client unchanged, and is posted to that URL.
type Handler struct {
	// The callback URL of requests that do not name one. It may have a private address
	// and any port. Default: none; then only requests that name a URL are tasks.
	URL string `json:"url,omitempty"`

	// How long a task may take, from forwarding the request to the end of the
	// response. After that the client gets 504 and the callback says TIMEOUT.
	// Default: `1h`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The service to be compatible with: `openfaas` (URL in a header, the function's
	// response unchanged) or `beam2` (JSON, with its own signature). It changes the
	// defaults of other options. Default: none.
	Profile string `json:"profile,omitempty"`

	// The member of the JSON body that names the callback URL. It cannot be combined
	// with `from_header`. Default: `callback_url`.
	Field string `json:"field,omitempty"`

	// The header that names the callback URL, instead of a member of the body. Requests
	// with any body can then be tasks, because bodies are not parsed. The profile
	// `openfaas` sets it to `X-Callback-Url`. Default: none.
	FromHeader string `json:"from_header,omitempty"`

	// Ignore URLs in requests: every callback goes to `url`, which is required. It
	// cannot be combined with `field` or `from_header`. Default: `false`.
	FromNone bool `json:"from_none,omitempty"`

	// What is posted: `form` (URL-encoded pairs), `json` (an envelope), `raw` (the
	// body as the app sent it) or `cloudevents` (a structured CloudEvent 1.0). The
	// profile `openfaas` sets it to `raw`, `beam2` posts `{"data": …}` and leaves no
	// choice. Default: `form`.
	Format string `json:"format,omitempty"`

	// The header that carries the task's ID to the endpoint, the client and the
	// receiver. The profile `openfaas` sets it to `X-Call-Id`, `beam2` to `X-Task-ID`.
	// Default: `beam-task-id`.
	TaskHeader string `json:"task_header,omitempty"`

	// The header of the callback that carries the task's status. The profile
	// `beam2` sets it to `X-Task-Status`. Default: `x-beam-task-status`.
	StatusHeader string `json:"status_header,omitempty"`

	// Headers added to the callback. If there is a `url`, they are sent only there, not
	// to a URL that a request names, because they may contain a secret. Placeholders in
	// their values expand when the request is accepted. A request whose values are
	// larger than 16 KiB is refused. Default: none.
	Headers []HeaderField `json:"headers,omitempty"`

	// The largest body of a request that can be a task, in bytes. Default: `8388608` (8
	// MiB).
	MaxRequest int64 `json:"max_request,omitempty"`

	// The largest result that is posted whole, in bytes. A larger one is truncated.
	// Default: `8388608` (8 MiB).
	MaxResult int64 `json:"max_result,omitempty"`

	// What happens to a larger result: with `link` it is kept whole, and the callback has
	// a signed link to it that expires after `retention`. It needs a `task_status`
	// handler. Default: none; the result is truncated.
	LargeResults string `json:"large_results,omitempty"`

	// The URL of the `task_status` handler as receivers reach it, such as
	// `https://example.com/tasks`. Default: the scheme and host of the client's request,
	// and the path of the handler.
	ResultsURL string `json:"results_url,omitempty"`

	// The largest result that is kept whole with `large_results`, in bytes. A larger one
	// is truncated. Default: `1073741824` (1 GiB).
	MaxKept int64 `json:"max_kept,omitempty"`

	app     *App
	log     *zap.Logger
	route   string
	fromKey string   // FromHeader, in canonical form
	own     string   // host and port of URL
	written *Handler // the options as configured, without defaults
}

// HeaderField is one header of a callback.
type HeaderField struct {
	// The name of the header. Required.
	Name string `json:"name"`

	// Its value. Placeholders expand. Default: empty.
	Value string `json:"value,omitempty"`
}

func (f HeaderField) check() error {
	switch {
	case !httpguts.ValidHeaderFieldName(f.Name):
		return fmt.Errorf("%q is not a header name", f.Name)
	case !httpguts.ValidHeaderFieldValue(f.Value):
		return fmt.Errorf("the value of %s contains a control character", f.Name)
	}
	return nil
}

// Defaults of the handler.
const (
	defaultTimeout      = time.Hour
	defaultField        = "callback_url"
	defaultTaskHeader   = "beam-task-id"
	defaultStatusHeader = "x-beam-task-status"
	defaultMaxBody      = 8 << 20
)

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.callback", New: func() caddy.Module { return new(Handler) }}
}

// Provision applies the defaults and finds the app.
func (h *Handler) Provision(ctx caddy.Context) error {
	var err error
	if h.app, err = loadApp(ctx); err != nil {
		return err
	}
	h.log = ctx.Logger()
	if h.LargeResults != "" {
		h.app.linking = append(h.app.linking, h)
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		h.route = server.Name()
	}
	return h.applyDefaults()
}

// applyDefaults sets the options that were left out.
func (h *Handler) applyDefaults() error {
	written := *h
	h.written = &written
	if err := h.applyProfile(); err != nil {
		return err
	}
	setDefault(&h.Timeout, caddy.Duration(defaultTimeout))
	setDefault(&h.Format, encode.FormatForm)
	setDefault(&h.MaxRequest, defaultMaxBody)
	setDefault(&h.MaxResult, defaultMaxBody)
	setDefault(&h.MaxKept, defaultMaxKept)
	expand(&h.ResultsURL)
	if h.URL == "" {
		return nil
	}
	if expand(&h.URL); h.URL == "" {
		return errors.New("url: its placeholders expand to nothing; set them, or remove the URL")
	}
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
	own := profile.Of(h.Profile).Traits().OwnFormat && h.Format == profile.Of(h.Profile).Traits().Format
	if formats := encode.Formats(); !own && !slices.Contains(formats, h.Format) {
		return fmt.Errorf("format: unknown format %q; expected one of %s", h.Format, strings.Join(formats, ", "))
	}
	if err := cmp.Or(h.checkNames(), h.validateLargeResults()); err != nil {
		return err
	}
	if h.Profile == profile.Beam2 && !webhook.CanSignBeam(h.app.Delivery.keys) {
		h.log.Warn("the profile signs its callbacks, but there is no whsec_ key in delivery", zap.String("profile", h.Profile))
	}
	if h.Timeout < 0 {
		return fmt.Errorf("timeout: %v is negative", time.Duration(h.Timeout))
	}
	if min(h.MaxRequest, h.MaxResult) < 0 || max(h.MaxRequest, h.MaxResult) > maxSize {
		return fmt.Errorf("max_request and max_result must be from 0 to %d bytes", maxSize)
	}
	return nil
}

// checkNames checks the names of headers, after defaults: whether they are names, and
// whether two of them, or one of the gateway's own, collide.
func (h *Handler) checkNames() error {
	switch {
	case h.FromNone && h.URL == "":
		return errors.New("from none needs a URL; write callback <url>")
	case h.FromHeader == "":
	case !httpguts.ValidHeaderFieldName(h.FromHeader):
		return fmt.Errorf("from header: %q is not a header name", h.FromHeader)
	case profile.Reserved(h.FromHeader), strings.EqualFold(h.FromHeader, h.TaskHeader):
		return fmt.Errorf("from header: %s is set by the gateway", h.FromHeader)
	}
	for _, name := range []string{h.TaskHeader, h.StatusHeader} {
		if err := checkTaskHeader(name); err != nil {
			return err
		}
		if profile.Sets(h.Profile, name) {
			return fmt.Errorf("%s is set by the profile %s; the task's ID and status need headers of their own", name, h.Profile)
		}
	}
	if strings.EqualFold(h.TaskHeader, h.StatusHeader) {
		return fmt.Errorf("task_header and status_header are both %s", h.TaskHeader)
	}
	for _, field := range h.Headers {
		if err := field.check(); err != nil {
			return fmt.Errorf("header: %w", err)
		}
		if profile.Reserved(field.Name) || profile.Sets(h.Profile, field.Name) ||
			strings.EqualFold(field.Name, h.TaskHeader) || strings.EqualFold(field.Name, h.StatusHeader) {
			return fmt.Errorf("header: %s is set by the gateway", field.Name)
		}
	}
	// In the form that net/http wants, which would otherwise convert them for each task.
	h.TaskHeader, h.StatusHeader = http.CanonicalHeaderKey(h.TaskHeader), http.CanonicalHeaderKey(h.StatusHeader)
	return nil
}

// checkTaskHeader checks the name of a header with a task's ID or status.
func checkTaskHeader(name string) error {
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		return fmt.Errorf("%q is not a header name", name)
	case profile.Reserved(name):
		return fmt.Errorf("%s is set by the gateway; the task's ID and status need headers of their own", name)
	}
	return nil
}

// conflict returns an error if two options exclude each other. It checks them as
// configured, before defaults. A Caddyfile is checked after each option, so that the
// error has the line of the second one.
func (h *Handler) conflict() error {
	p := profile.Of(h.Profile).Traits()
	switch {
	case h.FromNone && (h.Field != "" || h.FromHeader != ""):
		return errors.New("from none cannot be combined with field or from header; remove them")
	case h.Field != "" && h.FromHeader != "":
		return fmt.Errorf("field %s and from header %s cannot be combined; remove one of them", h.Field, h.FromHeader)
	case h.Field != "" && p.FromHeader != "":
		return fmt.Errorf("field %s: the profile %s reads the URL from the header %s; use from header to change it", h.Field, h.Profile, p.FromHeader)
	case h.Format != "" && p.OwnFormat:
		return fmt.Errorf("format %s: the profile %s has a fixed format", h.Format, h.Profile)
	}
	return nil
}

// applyProfile sets the names that were left out, and the defaults that the profile
// changes.
func (h *Handler) applyProfile() error {
	if h.Profile != "" && !slices.Contains(profile.Names(), h.Profile) {
		return fmt.Errorf("profile: unknown profile %q; expected one of %s", h.Profile, strings.Join(profile.Names(), ", "))
	}
	if err := h.conflict(); err != nil {
		return err
	}
	p := profile.Of(h.Profile).Traits()
	if !h.FromNone {
		setDefault(&h.FromHeader, p.FromHeader)
	}
	setDefault(&h.Format, p.Format)
	setDefault(&h.TaskHeader, p.TaskHeader)
	setDefault(&h.StatusHeader, p.StatusHeader)
	setDefault(&h.Field, defaultField)
	setDefault(&h.TaskHeader, defaultTaskHeader)
	setDefault(&h.StatusHeader, defaultStatusHeader)
	h.fromKey = http.CanonicalHeaderKey(h.FromHeader)
	return nil
}

// ServeHTTP forwards the request, as a task if it has a callback. If a request passes
// several of these handlers, the first one makes it a task.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if name, isTask := taskHeaderOf(r); isTask {
		if !strings.EqualFold(name, h.TaskHeader) {
			header.Drop(r.Header, h.TaskHeader)
		}
		return next.ServeHTTP(w, r)
	}
	// Only the gateway tells the endpoint a task's ID.
	header.Drop(r.Header, h.TaskHeader)
	if !mayBeTask(r) {
		return next.ServeHTTP(w, r)
	}
	callback, host, err := h.callbackOf(w, r)
	body, _ := r.Body.(*capture.Body)
	client := r.Context()
	switch {
	case err != nil:
		err = problem.Write(w, err)
		release(client, body, nil)
		return err
	case callback == nil:
		err = next.ServeHTTP(w, r)
	default:
		err = h.serve(w, r, next, callback, host)
	}
	release(client, body, err)
	return err
}

// serve makes the request a task and forwards it.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, callback *task.Callback, host string) error {
	s, err := h.app.enter()
	if err != nil {
		return problem.WriteUnavailable(w, h.log, err)
	}
	defer s.leave()
	x, err := h.claim(s, callback, host, w, r)
	if err != nil {
		return problem.WriteUnavailable(w, h.log, err)
	}
	return x.serve(r, next)
}

// claim stores a task for the request. From then on its callback is guaranteed.
func (h *Handler) claim(s *sharedStore, callback *task.Callback, host string, w http.ResponseWriter, r *http.Request) (*execution, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a task ID: %w", err)
	}
	now := time.Now().UTC()
	rec := task.Record{
		Task:  task.Task{ID: id.String(), CreatedAt: now, StartedAt: now, CallbackHost: host},
		Route: h.route, Callback: callback, CallbackDomain: quotaDomain(callback, host), Span: tracing.ParentOf(r.Context()),
		RequestMethod: r.Method, RequestPath: pathForOperators(r), RequestSize: max(0, r.ContentLength),
	}
	set := settings{timeout: time.Duration(h.Timeout), taskHeader: h.TaskHeader, kept: capture.ResponseOptions{
		Limit: h.MaxResult, AsSent: h.Format == encode.FormatRaw, KeepHeader: profile.Of(h.Profile).Traits().KeepHeader,
		ToHEAD: r.Method == http.MethodHead, // from the command line only
	}}
	h.app.keepLarge(&set.kept, callback)
	x := h.app.newExecution(r.Context(), s, set, &rec, w)
	x.claimedBy = h
	if x.lease, err = s.Claim(x.ctx, &x.rec); err != nil {
		x.cancel(err)
		return nil, err
	}
	x.lease.OnLost(x.supersede)
	h.app.metrics.TaskAccepted(1)
	return x, nil
}

// maxPathKept bounds the path that is stored of each request, in bytes.
const maxPathKept = 2048

// pathForOperators returns the request's path as the client wrote it, without the
// query, which may contain a secret.
func pathForOperators(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path[:min(len(path), maxPathKept)]
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
