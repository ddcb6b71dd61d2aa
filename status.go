package callback

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/link"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/taskapi"
)

// TaskStatus lets clients look up and cancel tasks by ID, those of waiting clients and of
// all queues: `GET …/<id>` returns the task document, `GET …/<id>/result` the result
// while it is kept, and `DELETE …/<id>` cancels the task. Every client that reaches the
// handler and knows an ID can do this. If that is not enough, put the handler behind
// authentication.
type TaskStatus struct {
	// The path of the handler as clients write it, for the links of `large_results`. In a
	// Caddyfile, the matcher's path sets it. Default: none; then `large_results` needs
	// the URL.
	Path string `json:"path,omitempty"`

	tasks *taskapi.Collection
}

// CaddyModule returns the Caddy module information.
func (*TaskStatus) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.task_status", New: func() caddy.Module { return new(TaskStatus) }}
}

// Provision loads the callback app.
func (t *TaskStatus) Provision(ctx caddy.Context) error {
	app, err := loadApp(ctx)
	if err != nil {
		return err
	}
	app.statusPaths = append(app.statusPaths, strings.TrimSuffix(t.Path, "/"))
	t.tasks = app.tasksOf("", ctx.Logger())
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		app.endWaitsOf(server)
	}
	return nil
}

// ServeHTTP answers every request. It responds with 404 to requests that are not about a
// task.
func (t *TaskStatus) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	claimOf(r).release() // an outer callback handler makes every request a task
	if look, ok := taskapi.ParseLookup(r.Method, r.URL.Path); ok {
		if query := r.URL.Query(); link.Signed(query) {
			return t.tasks.ServeLink(w, r, look, query)
		}
		return t.tasks.Serve(w, r, look)
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		return problem.Write(w, t.tasks.NotFound())
	}
	w.Header().Set("Allow", "GET, HEAD, DELETE")
	return problem.Write(w, problem.New(http.StatusMethodNotAllowed, "a task can be looked up with GET, and canceled with DELETE"))
}

// tasksOf returns the tasks of a queue, or, without a name, all tasks.
func (a *App) tasksOf(queue string, log *zap.Logger) *taskapi.Collection {
	return &taskapi.Collection{Queue: queue, Open: a.openEngine, Canceled: a.countCanceled, Waits: a.waits, Log: log}
}

// endWaitsOf ends the waits of clients when a server stops because the process exits.
// Without a grace_period, Caddy waits for their requests indefinitely.
func (a *App) endWaitsOf(server *caddyhttp.Server) {
	server.RegisterOnShutdown(func() {
		if caddy.Exiting() {
			a.endWaits()
		}
	})
}

// linkResults is the value of the option large_results that posts links.
const linkResults = "link"

const (
	defaultMaxKept = 1 << 30
	// mostKept bounds max_kept: one result must not be able to fill any disk.
	mostKept = 1 << 40
)

// validateLargeResults checks the options of large results.
func (h *Handler) validateLargeResults() error {
	switch {
	case h.LargeResults == "" && (h.ResultsURL != "" || h.written.MaxKept != 0):
		return errors.New("results_url and max_kept need large_results link")
	case h.LargeResults == "":
		return nil
	case h.LargeResults != linkResults:
		return fmt.Errorf("large_results: unknown value %q; expected link", h.LargeResults)
	case h.MaxKept < 0 || h.MaxKept > mostKept:
		return fmt.Errorf("max_kept must be from 0 to %d bytes", int64(mostKept))
	case !*h.app.KeepResults:
		return errors.New("large_results link needs keep_results on; with keep_results off, a result is removed once its link was posted")
	case h.ResultsURL != "":
		if err := link.CheckBase(h.ResultsURL); err != nil {
			return fmt.Errorf("results_url: %w", err)
		}
	}
	return nil
}

// linkOf returns how the callback of a request links to a large result, or nil if large
// results are truncated. repl has the request's placeholders.
func (h *Handler) linkOf(repl *caddy.Replacer) *task.Link {
	if h.LargeResults != linkResults {
		return nil
	}
	at := h.ResultsURL
	if at == "" {
		origin := originOf(repl)
		if origin == "" {
			return nil // no client named a host, as for a schedule
		}
		at = origin + h.app.statusPaths[0]
	}
	return &task.Link{URL: at, MaxKept: h.MaxKept, Valid: time.Duration(h.app.Retention)}
}

// keepLarge makes the capture of a response keep a large result whole, if the callback
// links to it. callback is nil if the task has none.
func (a *App) keepLarge(o *capture.ResponseOptions, callback *task.Callback) {
	if callback != nil && callback.Link != nil {
		o.MaxLarge, o.Folder = callback.Link.MaxKept, a.spool
	}
}

// originOf returns the scheme and the host of a request, or "" if there is no valid host.
func originOf(repl *caddy.Replacer) string {
	if repl == nil {
		return ""
	}
	scheme, _ := repl.GetString("http.request.scheme")
	host, _ := repl.GetString("http.request.hostport")
	return link.Origin(scheme, host)
}

// checkLinks checks that there is a task_status for the links of large results. Only
// after provisioning are all handlers known.
func (a *App) checkLinks() error {
	own := slices.ContainsFunc(a.linking, func(h *Handler) bool { return h.ResultsURL == "" })
	paths := slices.Compact(slices.Sorted(slices.Values(a.statusPaths)))
	const where = "write its URL: large_results link https://example.com/tasks"
	switch {
	case len(a.linking) == 0:
	case len(paths) == 0:
		return errors.New("large_results link: receivers fetch results from a task_status, and there is none; add one, such as task_status /tasks")
	case own && len(paths) > 1:
		return fmt.Errorf("large_results link: there is a task_status at %s; choose one and %s", strings.Join(paths, " and at "), where)
	case own && paths[0] == "":
		return fmt.Errorf("large_results link: the path of task_status is not known; %s", where)
	}
	return nil
}

// parseLargeResults parses
//
//	large_results link [<url>]
func (h *Handler) parseLargeResults(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) == 0:
		return d.Err("large_results takes link and, optionally, the URL of task_status")
	case args[0] != linkResults:
		return d.Errf("large_results: unknown value %q; expected link", args[0])
	case len(args) > 2:
		return d.Errf("large_results link takes one URL; unexpected %q", args[2])
	case len(args) == 2:
		h.ResultsURL = args[1]
		if err := link.CheckBase(args[1]); err != nil && !hasPlaceholder(args[1]) {
			return d.Errf("large_results: %v", err)
		}
	}
	h.LargeResults = linkResults
	return nil
}

// parseTaskStatus reads
//
//	task_status [<matcher>]
//
// A path matcher without `*` also matches the paths below it.
func parseTaskStatus(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	matchers, path, err := matchersBelow(h)
	if err != nil {
		return nil, err
	}
	t := &TaskStatus{Path: path}
	if err := t.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(matchers, t), nil
}

// UnmarshalCaddyfile reads the directive; see parseTaskStatus for its grammar.
func (*TaskStatus) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return parseBare(d, "task_status")
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TaskStatus)(nil)
	_ caddyfile.Unmarshaler       = (*TaskStatus)(nil)
	_ caddyhttp.MiddlewareHandler = (*TaskStatus)(nil)
)
