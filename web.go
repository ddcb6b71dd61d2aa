package callback

import (
	"cmp"
	"context"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// AdminAPI serves the dashboard's API on Caddy's admin endpoint, under /callback/, for
// the command line. Caddy's own checks decide who has access. It has no options.
type AdminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*AdminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.callback", New: func() caddy.Module { return new(AdminAPI) }}
}

// adminPath is the path of the API on the admin endpoint.
const adminPath = "/callback/"

// Routes implements [caddy.AdminRouter].
func (m *AdminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(m.serve)}}
}

func (*AdminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	api := noAPI
	if app := generations.Newest(); app != nil {
		api = app.api
	}
	api.Serve(w, r, strings.TrimPrefix(r.URL.Path, adminPath))
	return nil
}

// noAPI answers while no configuration has the app. Caddy provisions the admin endpoint
// before it starts the apps, and keeps it if they fail to start. So each request looks
// up the generation that is alive.
var noAPI = web.NewAPI(web.APIConfig{Open: openNothing})

// newAPI returns the API of this generation.
func (a *App) newAPI() *web.API {
	node, err := os.Hostname()
	if err != nil {
		node = "localhost"
	}
	return web.NewAPI(web.APIConfig{
		Open: a.openEngine, Queues: a.queueInfos, Schedules: a.scheduleInfos,
		Node: node, Counts: &nodeCounts, Canceled: a.countCanceled, CheckURL: a.checkURL, Run: a.runNow,
		RateLimited: a.rateLimited,
		Failed:      func(err error) { a.log.Warn("request to the API refused", zap.Error(err)) },
	})
}

// checkURL checks a URL for redelivery, and returns it with its host and port.
func (a *App) checkURL(raw string, trusted bool) (string, string, error) {
	policy := a.Delivery.policy
	if trusted {
		policy = a.Delivery.trusted
	}
	u, err := policy.CheckURL(raw)
	if err != nil {
		return "", "", err
	}
	return u.String(), safedial.HostPort(u), nil
}

// rateLimited reports whether the rate holds back callbacks to a host.
func (a *App) rateLimited(hostPort string) bool {
	s := a.store.Load()
	return s != nil && s.deliverer.RateLimited(hostPort)
}

// runNow enqueues a task of a schedule. It does not change the next run time.
func (a *App) runNow(ctx context.Context, e engine.Engine, id string) (string, bool, error) {
	plans := a.plans()
	i := slices.IndexFunc(plans, func(p *scheduler.Plan) bool { return p.ID == id })
	if i < 0 {
		return "", false, engine.ErrNotFound
	}
	id, created, err := plans[i].Enqueue(ctx, e, time.Now(), nil)
	if created {
		a.metrics.TaskAccepted(1)
	}
	return id, created, err
}

// openEngine returns the engine of the store, which stays open until the returned
// function is called.
func (a *App) openEngine() (engine.Engine, func(), error) {
	s, err := a.look()
	if err != nil {
		return nil, nil, err // not a nil *sharedStore in the interface
	}
	return s, s.leave, nil
}

// Pause implements [engine.Tasks]. A host is resumed through the deliverer, which
// otherwise saves its failures again.
func (s *sharedStore) Pause(ctx context.Context, t engine.Target, paused bool) error {
	if t.Host != "" && !paused {
		return s.deliverer.Resume(ctx, t.Host)
	}
	return s.Engine.Pause(ctx, t, paused)
}

func openNothing() (engine.Engine, func(), error) { return nil, nil, errNotOpen }

// queueInfos describes the configured queues.
func (a *App) queueInfos() (list []web.Queue) {
	s := a.store.Load()
	for name, q := range a.queues {
		list = append(list, web.Queue{
			Name: name, Workers: q.opts.Workers, MaxQueued: q.opts.MaxQueued, Attempts: q.opts.Attempts,
			Rate: q.opts.Rate, RateLimited: s != nil && s.slotsOf(name).Pace.Waiting(),
		})
	}
	return list
}

// scheduleInfos describes the configured schedules, sorted by queue.
func (a *App) scheduleInfos() (list []web.Schedule, _ error) {
	now := time.Now()
	for _, p := range a.plans() {
		request := p.Record.Request
		path, _, _ := strings.Cut(request.URI, "?")
		list = append(list, web.Schedule{
			Queue: p.Record.Queue, Schedule: p.Cron, Timezone: p.Zone, Method: request.Method, URI: path,
			ID: p.ID, NextRun: p.Times.Next(now),
		})
	}
	slices.SortStableFunc(list, func(a, b web.Schedule) int { return cmp.Compare(a.Queue, b.Queue) })
	return list, nil
}

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
	app, err := loadApp(ctx)
	if err != nil {
		return err
	}
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

// Interface guards
var (
	_ caddy.AdminRouter           = (*AdminAPI)(nil)
	_ caddy.Provisioner           = (*Dashboard)(nil)
	_ caddyfile.Unmarshaler       = (*Dashboard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Dashboard)(nil)
)
