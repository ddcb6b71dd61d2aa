package callback

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/hop"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// mayBeTask reports whether requests with this method can be tasks.
func mayBeTask(r *http.Request) bool {
	switch r.Method {
	case http.MethodHead, http.MethodOptions, http.MethodConnect:
		return false
	}
	return true
}

// release frees the stored part of a request's body, if any, once its handlers have
// returned. After an error, handle_errors may still read it, until the client's request
// ends.
func release(client context.Context, body *capture.Body, err error) {
	switch {
	case body == nil:
	case err == nil:
		body.Release()
	default:
		context.AfterFunc(client, body.Release)
	}
}

// taskHeaderOf returns the name of the header with the task's ID if the request belongs
// to a task already: an earlier handler made it a task, or the task's own templates
// made the request.
func taskHeaderOf(r *http.Request) (name string, isTask bool) {
	if x := executionOf(r); x != nil {
		return x.taskHeader, true
	}
	return inFlight.headerOf(r)
}

// inFlight are the tasks whose handlers run in this process.
var inFlight = flights{tasks: make(map[string]*execution)}

type flights struct {
	mu    sync.Mutex
	tasks map[string]*execution // by task ID
}

// add registers a task until remove is called.
func (f *flights) add(x *execution) {
	f.mu.Lock()
	f.tasks[x.rec.ID] = x
	f.mu.Unlock()
	if x.stopping.Err() != nil {
		go x.abandon()
	}
}

func (f *flights) remove(x *execution) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tasks[x.rec.ID] == x { // after its lease was lost, a task may run a second time
		delete(f.tasks, x.rec.ID)
	}
}

// abandon ends the tasks that must be given up when the context ends.
func (f *flights) abandon(stopping context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.tasks {
		if x.stopping == stopping {
			go x.abandon()
		}
	}
}

// headerOf returns the name of the header with the task's ID if a task's own handlers
// made the request: httpInclude of Caddy's templates copies the header of the request
// that is being answered. Clients cannot pretend that, because the server sets the
// local address of their connections.
func (f *flights) headerOf(r *http.Request) (header string, ok bool) {
	if r.Context().Value(http.LocalAddrContextKey) != nil {
		return "", false
	}
	for name, values := range r.Header {
		if len(values) != 1 || len(values[0]) != taskIDLength {
			continue
		}
		f.mu.Lock()
		x := f.tasks[values[0]]
		f.mu.Unlock()
		if x != nil && strings.EqualFold(name, x.taskHeader) {
			return x.taskHeader, true
		}
	}
	return "", false
}

// taskIDLength is the length of a task's ID in bytes.
const taskIDLength = 36

// callbackOf returns the request's callback, with its host and port, or nil if it has
// none. It counts requests that may have meant to name a callback. The error is a
// *problem.Problem.
func (h *Handler) callbackOf(w http.ResponseWriter, r *http.Request) (*task.Callback, string, error) {
	callback, host, reason, err := h.findCallback(w, r)
	if callback == nil && err == nil && reason != "" {
		h.skipped(r, reason)
	}
	return callback, host, err
}

// findCallback is callbackOf that also returns the reason why there is no callback.
func (h *Handler) findCallback(w http.ResponseWriter, r *http.Request) (_ *task.Callback, host string, reason capture.Reason, _ error) {
	target, host, trusted := h.URL, h.own, true
	hops, named, err := hop.Claimed(r.Header), "", error(nil)
	if hops > hop.Max {
		reason = capture.Hops
	} else if named, reason, err = h.urlOf(w, r); err != nil {
		return nil, "", "", err
	}
	if named != "" {
		u, err := h.app.Delivery.policy.CheckURL(named)
		if err != nil {
			return nil, "", "", problem.New(http.StatusBadRequest, fmt.Sprintf("%s: %v", h.source(), err))
		}
		target, host, trusted = u.String(), safedial.HostPort(u), false
	}
	if target == "" {
		return nil, "", reason, nil
	}
	if trusted {
		if hops = h.app.provenHops(r); hops > hop.Max {
			return nil, "", capture.Hops, nil
		}
	}
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	callback, err := h.newCallback(target, trusted, originalPath(r), repl)
	if err != nil {
		return nil, "", "", err
	}
	if parent := r.Header.Get("Traceparent"); len(parent) <= maxTraceparent {
		callback.Traceparent = parent
	}
	if h.sendsHeaders(trusted) {
		callback.Header, err = h.callbackHeader(r)
	}
	if field, ok := hop.Next(hops); ok {
		callback.Header = append(callback.Header, field)
	}
	return callback, host, "", err
}

// maxTraceparent is longer than a traceparent of any version of Trace Context, in
// bytes.
const maxTraceparent = 128

// maxFields bounds the values, in bytes, that placeholders add to the header of a
// callback. They are part of the task's record, which must fit in a message of the
// engine; most receivers refuse more.
const maxFields = 16 << 10

// sendsHeaders reports whether the operator's headers are sent to a URL: to the
// operator's own or, if there is none, to the one that the request names. Otherwise a
// client could name a URL and receive a secret that is meant for the operator's.
func (h *Handler) sendsHeaders(own bool) bool { return own || h.URL == "" }

// callbackHeader returns the headers that the operator adds to a callback, with
// placeholders expanded from the request. The error is a *problem.Problem.
func (h *Handler) callbackHeader(r *http.Request) (header [][2]string, _ error) {
	if len(h.Headers) == 0 {
		return nil, nil
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	size := 0
	for _, field := range h.Headers {
		value := fieldValue(repl.ReplaceAll(field.Value, ""))
		if size += len(value); size > maxFields {
			return nil, problem.New(http.StatusBadRequest,
				fmt.Sprintf("the request makes the callback's header %s too large; the limit is %d bytes", field.Name, maxFields))
		}
		header = append(header, [2]string{field.Name, value})
	}
	return header, nil
}

// within returns h, with unset options taken from the outer handler that has claimed
// the request. Two groups are taken only as a whole: the headers with the URL that they
// are meant for, and the profile with the options whose defaults it changes.
func (h *Handler) within(outer *Handler) (*Handler, error) {
	merged, from := *h.written, outer.written
	if merged.URL == "" {
		merged.URL = from.URL
		if merged.Headers == nil {
			merged.Headers = from.Headers
		}
	}
	if merged.Profile == "" || merged.Profile == from.Profile {
		merged.Profile = from.Profile
		if merged.Field == "" && merged.FromHeader == "" && !merged.FromNone {
			merged.Field, merged.FromHeader, merged.FromNone = from.Field, from.FromHeader, from.FromNone
		}
		setDefault(&merged.Format, from.Format)
		setDefault(&merged.TaskHeader, from.TaskHeader)
		setDefault(&merged.StatusHeader, from.StatusHeader)
	}
	setDefault(&merged.Timeout, from.Timeout)
	setDefault(&merged.MaxRequest, from.MaxRequest)
	setDefault(&merged.MaxResult, from.MaxResult)
	if merged.LargeResults == "" {
		merged.LargeResults, merged.ResultsURL, merged.MaxKept = from.LargeResults, from.ResultsURL, from.MaxKept
	}
	if err := merged.applyDefaults(); err != nil {
		return nil, err
	}
	return &merged, merged.Validate()
}

// maxKeyFor bounds the value that keys are derived from, in bytes: it is stored with
// the task, and a client may choose it.
const maxKeyFor = 1 << 10

// newCallback returns the callback of a request for a path; repl has the request's
// placeholders. It includes the settings of the profile and of derive_keys, so that a
// reload does not change accepted tasks. The error is a *problem.Problem.
func (h *Handler) newCallback(target string, trusted bool, path string, repl *caddy.Replacer) (*task.Callback, error) {
	keyFor := h.app.Delivery.keyFor(repl)
	if keyFor != nil && len(*keyFor) > maxKeyFor {
		return nil, problem.New(http.StatusBadRequest,
			fmt.Sprintf("the value of derive_keys for this request is too long; the limit is %d bytes", maxKeyFor))
	}
	return &task.Callback{
		URL: target, Trusted: trusted, Format: h.Format, Profile: h.Profile,
		TaskHeader: h.TaskHeader, StatusHeader: h.StatusHeader, MaxResult: h.MaxResult,
		Function: profile.Of(h.Profile).Function(path), KeyFor: keyFor, Link: h.linkOf(repl),
	}, nil
}

// quotaDomain returns the domain that a callback counts against in the store's quota:
// the registrable domain or the network of a URL that the request named. The operator's
// own URL has no quota.
func quotaDomain(callback *task.Callback, hostPort string) string {
	if callback == nil || callback.Trusted {
		return ""
	}
	return dispatch.Group(hostPort)
}

// fieldValue removes the control characters from s, because placeholders may expand to
// what a client sent. It keeps all other bytes, even if they are not UTF-8.
func fieldValue(s string) string {
	value := make([]byte, 0, len(s))
	for _, c := range []byte(s) {
		if c >= ' ' && c != 0x7f || c == '\t' {
			value = append(value, c)
		}
	}
	return string(value)
}

// findURL returns the URL that the request's body names, or "". It restores the body
// byte for byte. The error is a *problem.Problem. w is the response to the request, or nil
// for the request of a schedule, which is in memory.
func (h *Handler) findURL(w http.ResponseWriter, r *http.Request) (string, capture.Reason, error) {
	o := capture.Options{Field: h.Field, Limit: h.MaxRequest}
	if w != nil {
		o.Folder, o.Response = h.app.spool, w
	}
	return capture.Find(r, o)
}

// skipped counts a request that could have been a task and is not.
func (h *Handler) skipped(r *http.Request, reason capture.Reason) {
	h.app.metrics.TaskSkipped(reason)
	if c := h.log.Check(zap.DebugLevel, "request is not a task"); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.String("method", r.Method), zap.String("path", r.URL.Path))
	}
}

// urlOf returns the URL that the request names, or "". It also returns the reason if
// the request may have meant to name one. The error is a *problem.Problem. w is the
// response to the request, or nil.
func (h *Handler) urlOf(w http.ResponseWriter, r *http.Request) (string, capture.Reason, error) {
	switch {
	case h.FromNone:
		return "", "", nil
	case h.fromKey != "":
		named, err := headerURL(r.Header[h.fromKey], h.FromHeader)
		return named, "", err
	}
	return h.findURL(w, r)
}

// source returns the name of the field or header that has the URL.
func (h *Handler) source() string {
	if h.FromHeader != "" {
		return h.FromHeader
	}
	return h.Field
}

// headerURL returns the URL in a header. Every request passes here, so it does not
// allocate unless it refuses the request.
func headerURL(values []string, name string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", problem.New(http.StatusBadRequest, name+": the header occurs twice; send it once")
	}
}

// provenHops returns the number of callbacks that led to a request, if a gateway of this
// store has sent it, and to this URL. Otherwise it returns 0.
func (a *App) provenHops(r *http.Request) int {
	if hop.Claimed(r.Header) == 0 {
		return 0
	}
	return a.hopKey(r.Context()).Proven(r.Header, r.Host, originalURL(r).RequestURI())
}
