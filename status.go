package callback

import (
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// TaskStatus lets clients look up and cancel tasks by their IDs, those of waiting
// clients and of every queue: `GET …/<id>` is the task document, `GET …/<id>/result`
// the result while it is kept, `DELETE …/<id>` cancels the task. Every client that
// reaches it and knows an ID can do that: if that is not enough, put it behind
// authentication.
type TaskStatus struct {
	tasks collection
}

// CaddyModule returns the Caddy module information.
func (*TaskStatus) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.task_status", New: func() caddy.Module { return new(TaskStatus) }}
}

// Provision finds the app.
func (t *TaskStatus) Provision(ctx caddy.Context) error {
	module, err := ctx.App("callback")
	if err != nil {
		return fmt.Errorf("loading the callback app: %w", err)
	}
	app := module.(*App)
	t.tasks = collection{app: app, log: ctx.Logger()}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		app.endWaitsOf(server)
	}
	return nil
}

// ServeHTTP answers every request that it gets: one that is not about a task has 404.
func (t *TaskStatus) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	claimOf(r).release() // a callback further out takes every request for a task
	if look, ok := lookupOf(r.Method, r.URL.Path); ok {
		return t.tasks.serve(w, r, look)
	}
	w.Header().Set("Cache-Control", "no-store")
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		return writeProblem(w, t.tasks.notFound())
	}
	w.Header().Set("Allow", "GET, HEAD, DELETE")
	return writeProblem(w, &problem{http.StatusMethodNotAllowed, "a task can be looked up with GET, and canceled with DELETE"})
}

// parseTaskStatus reads
//
//	task_status [<matcher>]
//
// A matcher that is a path without `*` matches what is under the path, too.
func parseTaskStatus(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	matchers, _, err := matchersBelow(h)
	if err != nil {
		return nil, err
	}
	t := new(TaskStatus)
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
