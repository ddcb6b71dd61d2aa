package callback

import (
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// Dashboard is the operator's page and its JSON API: tasks by state, queue and host,
// each task with its attempts, redelivery, cancellation, counts and rates. Put it
// behind authentication: every client that reaches it has full access.
type Dashboard struct {
	dashboard *web.Dashboard
}

// CaddyModule returns the Caddy module information.
func (*Dashboard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.task_dashboard", New: func() caddy.Module { return new(Dashboard) }}
}

// Provision connects the dashboard to the app's API.
func (d *Dashboard) Provision(ctx caddy.Context) error {
	module, err := ctx.App("callback")
	if err != nil {
		return fmt.Errorf("loading the callback app: %w", err)
	}
	app := module.(*App)
	d.dashboard = web.NewDashboard(app.api, web.DashboardPage())
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		// The server waits for open event streams before it cleans up its modules, so the
		// streams must end first.
		server.RegisterOnShutdown(app.api.Close)
	}
	return nil
}

func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	d.dashboard.ServeHTTP(w, r)
	return nil
}

// parseDashboard reads
//
//	task_dashboard [<matcher>]
func parseDashboard(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := new(Dashboard)
	return d, d.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; see parseDashboard for its grammar.
func (d *Dashboard) UnmarshalCaddyfile(disp *caddyfile.Dispenser) error {
	return parseBare(disp, "task_dashboard")
}

// parseBare parses a directive that takes nothing but a matcher.
func parseBare(d *caddyfile.Dispenser, directive string) error {
	d.Next() // its name
	if d.NextArg() {
		return d.Errf("%s takes no value; unexpected %q", directive, d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("%s has no options; unexpected %q", directive, d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Dashboard)(nil)
	_ caddyfile.Unmarshaler       = (*Dashboard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Dashboard)(nil)
)
