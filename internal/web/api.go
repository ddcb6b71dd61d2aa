package web

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// APIConfig has the data sources and the callbacks of an API.
type APIConfig struct {
	// Open returns the engine and keeps it open until leave is called. If it fails, the
	// API answers with 503.
	Open func() (e engine.Engine, leave func(), err error)
	// Queues and Schedules return the queues and schedules of the configuration. They
	// are called while the engine is kept open. Of a queue they set the options. Of a
	// schedule they set all fields but LastRun; NextRun is the computed run time, used
	// if the engine does not know the schedule yet.
	Queues    func() []Queue
	Schedules func() ([]Schedule, error)
	// Node is this node's name, Counts its counters.
	Node   string
	Counts *NodeCounts
	// CheckURL checks a URL to which a callback is to be redelivered. It returns the
	// normalised URL with its host and port. trusted is set if the previous URL was the
	// operator's own. The client sees its errors. If CheckURL is nil, every URL is
	// refused.
	CheckURL func(raw string, trusted bool) (url, hostPort string, err error)
	// Run puts a task of the schedule into its queue now and returns its ID. created is
	// false if an earlier run is still queued; the ID is then that task's. Run is
	// called while e is kept open. It is nil if there are no schedules.
	Run func(ctx context.Context, e engine.Engine, schedule string) (id string, created bool, err error)
	// Canceled is called after a task was canceled. It may be nil.
	Canceled func(ctx context.Context, e engine.Engine, id string)
	// RateLimited reports whether the rate limit delays callbacks to a host on this
	// node. It is called while the engine is kept open. It is nil if there is no rate
	// limit.
	RateLimited func(hostPort string) bool
	// Failed is called with each error that caused a 503.
	Failed func(error)
}

// API is the JSON API of the dashboard and of the admin endpoint. openapi.json
// describes it. It does not authenticate clients; put authentication in front of it. It
// may be used from several goroutines at once.
type API struct {
	config  APIConfig
	viewers chan struct{} // one slot for each stream
	closed  chan struct{}
	close   sync.Once
	summary summary
	encoder *encode.Encoder // of callbacks for display
}

// NewAPI returns an API. It starts no goroutine.
func NewAPI(config APIConfig) *API {
	return &API{config: config, viewers: make(chan struct{}, maxViewers), closed: make(chan struct{}), encoder: newEncoder(config)}
}

// Close ends the streams and refuses new ones; see [Inbox.Close]. It may be called
// again.
func (a *API) Close() { a.close.Do(func() { close(a.closed) }) }

// route is an operation of the API.
type route struct {
	method  string
	pattern string // relative to the API's base; {id} is an ID or a name
	// params are the allowed query parameters. Others are refused: with a misspelt
	// filter, a request to delete a few tasks would delete all of them.
	params []string
	serve  func(*API, *call) (status int, answer any, err error)
}

// routes are in the order of openapi.json.
var routes = []route{
	{http.MethodGet, "tasks", append([]string{"after", "limit"}, filterParams...), (*API).list},
	{http.MethodPost, "tasks/retry", bulkParams, onMany(doRetry)},
	{http.MethodPost, "tasks/stop", bulkParams, onMany(doStop)},
	{http.MethodPost, "tasks/redeliver", bulkParams, onMany(doRedeliver)},
	{http.MethodPost, "tasks/cancel", bulkParams, onMany(doCancel)},
	{http.MethodPost, "tasks/delete", bulkParams, onMany(doDelete)},
	{http.MethodGet, "tasks/{id}", nil, (*API).show},
	{http.MethodDelete, "tasks/{id}", nil, (*API).delete},
	{http.MethodGet, "tasks/{id}/result", nil, (*API).result},
	{http.MethodGet, "tasks/{id}/callback", []string{"raw"}, (*API).callback},
	{http.MethodGet, "tasks/{id}/attempts", nil, (*API).attempts},
	{http.MethodPost, "tasks/{id}/retry", nil, (*API).retry},
	{http.MethodPost, "tasks/{id}/stop", nil, (*API).stop},
	{http.MethodPost, "tasks/{id}/redeliver", nil, (*API).redeliver},
	{http.MethodPost, "tasks/{id}/cancel", nil, (*API).cancel},
	{http.MethodGet, "overview", nil, (*API).overview},
	{http.MethodGet, "history", []string{"minutes"}, (*API).history},
	{http.MethodGet, "queues", nil, (*API).queues},
	{http.MethodPost, "queues/{id}/pause", nil, (*API).pauseQueue},
	{http.MethodPost, "queues/{id}/resume", nil, (*API).resumeQueue},
	{http.MethodGet, "hosts", []string{"limit"}, (*API).hosts},
	{http.MethodPost, "hosts/{id}/pause", nil, (*API).pauseHost},
	{http.MethodPost, "hosts/{id}/resume", nil, (*API).resumeHost},
	{http.MethodGet, "schedules", nil, (*API).schedules},
	{http.MethodPost, "schedules/{id}/run", nil, (*API).runSchedule},
	{http.MethodGet, "events", nil, (*API).events},
	{http.MethodGet, "openapi.json", nil, (*API).openAPI},
}

// call is a request to the API.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	id    string // of the task or schedule, or the name of the queue or host
	query url.Values
}

// maxID is an upper bound of the length of a task's ID.
const maxID = 100

// match reports whether path matches the route, and returns the value of {id}.
func (rt *route) match(path string) (id string, ok bool) {
	before, after, hasID := strings.Cut(rt.pattern, "{id}")
	if !hasID {
		return "", path == rt.pattern
	}
	id, ok = strings.CutPrefix(path, before)
	if ok {
		id, ok = strings.CutSuffix(id, after)
	}
	return id, ok && id != "" && !strings.Contains(id, "/")
}

// isID reports whether s can be a task's ID. It refuses characters that have a meaning
// in the names of an engine.
func isID(s string) bool {
	return s != "" && len(s) <= maxID && strings.IndexFunc(s, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_'
	}) < 0
}

// serves reports whether the API has an operation for a path relative to its base.
func (a *API) serves(path string) bool {
	for i := range routes {
		if _, ok := routes[i].match(path); ok {
			return true
		}
	}
	return false
}

// Serve answers a request. path is the request's path relative to the API's base,
// without a leading slash.
func (a *API) Serve(w http.ResponseWriter, r *http.Request, path string) {
	setSafeHeaders(w.Header())
	var allowed []string
	for i := range routes {
		rt := &routes[i]
		id, ok := rt.match(path)
		if !ok {
			continue
		}
		if r.Method == rt.method || r.Method == http.MethodHead && rt.method == http.MethodGet {
			a.answer(rt, &call{w: w, r: r, id: id})
			return
		}
		allowed = append(allowed, rt.method)
		if rt.method == http.MethodGet {
			allowed = append(allowed, http.MethodHead)
		}
	}
	if len(allowed) == 0 {
		writeProblem(w, http.StatusNotFound, "no such path; openapi.json lists the paths of the API")
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeProblem(w, http.StatusMethodNotAllowed, "it takes "+strings.Join(allowed, ", "))
}

func (a *API) answer(rt *route, c *call) {
	status, answer, err := 0, any(nil), c.parse(rt)
	if err == nil {
		status, answer, err = rt.serve(a, c)
	}
	switch {
	case err != nil:
		a.fail(c, err)
	case status == 0: // the response has been written
	case answer == nil:
		c.w.WriteHeader(status)
	default:
		c.w.Header().Set("Content-Type", "application/json")
		c.w.WriteHeader(status)
		// The encoder escapes <, > and &, and replaces invalid UTF-8: receivers and
		// clients wrote much of this text.
		_ = json.NewEncoder(c.w).Encode(answer) // an error means that the client disconnected
	}
}

// parse reads the query and the ID of the request.
func (c *call) parse(rt *route) (err error) {
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return badRequest("the query cannot be read: it is not encoded as application/x-www-form-urlencoded")
	}
	for name, values := range c.query {
		switch {
		case !contains(rt.params, name):
			known := "it has no parameters"
			if len(rt.params) > 0 {
				known = "expected one of " + strings.Join(rt.params, ", ")
			}
			return badRequest("%.40q is not a parameter of this request; %s", name, known)
		case len(values) > 1 && name != "state" && name != "status":
			return badRequest("%s is given twice", name)
		}
	}
	if strings.HasPrefix(rt.pattern, "tasks/{id}") && !isID(c.id) {
		return engine.ErrNotFound
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// apiError is an error that the client caused.
type apiError struct {
	status int
	detail string
}

func (e *apiError) Error() string { return e.detail }

func badRequest(format string, args ...any) error {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// retryAfter is the Retry-After header of a 503.
const retryAfter = 5 * time.Second

// fail writes the response for an error.
func (a *API) fail(c *call, err error) {
	var own *apiError
	switch {
	case errors.As(err, &own):
		writeProblem(c.w, own.status, own.detail)
	case errors.Is(err, engine.ErrCursor):
		writeProblem(c.w, http.StatusBadRequest, "after: not a cursor of this API")
	case errors.Is(err, engine.ErrNotFound):
		writeProblem(c.w, http.StatusNotFound, "no such task; finished tasks are removed after their retention")
	default:
		if a.config.Failed != nil && !errors.Is(err, context.Canceled) {
			a.config.Failed(err)
		}
		detail := "the store does not answer"
		if errors.Is(err, engine.ErrFull) {
			detail = "the store is full"
		}
		c.w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
		writeProblem(c.w, http.StatusServiceUnavailable, detail)
	}
}

// writeProblem writes a problem document (RFC 9457).
func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct { // an error means that the client disconnected
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
}

//go:embed openapi.json
var openAPIDocument []byte

func (a *API) openAPI(c *call) (int, any, error) {
	return http.StatusOK, json.RawMessage(openAPIDocument), nil
}
