package callback

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/link"
	"github.com/caddy-callback/caddy-callback/internal/problem"
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
	module, err := ctx.App("callback")
	if err != nil {
		return fmt.Errorf("loading the callback app: %w", err)
	}
	app := module.(*App)
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
