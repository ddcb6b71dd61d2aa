package callback

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// AdminAPI puts the dashboard's API on Caddy's admin endpoint, under /callback/:
// the command line asks it. Who may, Caddy's own checks say. It is not
// configurable.
type AdminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*AdminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.callback", New: func() caddy.Module { return new(AdminAPI) }}
}

// adminPath is where the API stands on the admin endpoint.
const adminPath = "/callback/"

// Routes implements [caddy.AdminRouter].
func (m *AdminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(m.serve)}}
}

func (*AdminAPI) serve(w http.ResponseWriter, r *http.Request) error {
	api := noAPI
	if app := generations.newest(); app != nil {
		api = app.api
	}
	api.Serve(w, r, strings.TrimPrefix(r.URL.Path, adminPath))
	return nil
}

// noAPI answers while no configuration has the app, or none has it open.
var noAPI = web.NewAPI(web.APIConfig{Open: openNothing})

// generations are the apps that are open. Caddy sets the admin endpoint up before
// it starts the apps of the same configuration, and leaves it as it is if they do
// not start; so the endpoint cannot be told once which app is the one.
var generations appList

// appList is a list of apps. All its methods may be called at once.
type appList struct {
	mu   sync.Mutex
	apps []*App // the last to come last
}

func (l *appList) add(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = append(l.apps, a)
}

// remove takes out an app; it may not be in it.
func (l *appList) remove(a *App) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps = slices.DeleteFunc(l.apps, func(other *App) bool { return other == a })
}

// all returns the apps that are in it now.
func (l *appList) all() []*App {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.apps)
}

// newest returns the app that was added last, nil if there is none.
func (l *appList) newest() *App {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.apps) == 0 {
		return nil
	}
	return l.apps[len(l.apps)-1]
}

// endAPI ends what the app's API streams and lets the admin endpoint use the next
// app. It may be called twice, and before the app was opened.
func (a *App) endAPI() {
	generations.remove(a)
	if a.api != nil {
		a.api.Close()
	}
}

// Interface guards
var _ caddy.AdminRouter = (*AdminAPI)(nil)
