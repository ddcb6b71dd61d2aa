package callback

import (
	"net/http"
	"strings"

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

// noAPI answers while no configuration has the app. Caddy sets the admin endpoint
// up before it starts the apps of the same configuration, and leaves it as it is if
// they do not start; so each request looks for the generation that is alive.
var noAPI = web.NewAPI(web.APIConfig{Open: openNothing})

// Interface guards
var _ caddy.AdminRouter = (*AdminAPI)(nil)
