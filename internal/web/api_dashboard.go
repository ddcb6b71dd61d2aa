package web

import (
	"net/http"
	"strings"
)

// Dashboard serves the operator's page and its API below the path where it is mounted.
// A path that has /api/ followed by an operation of the API goes to the API; any other
// path goes to the page. It may be used from several goroutines at once.
type Dashboard struct {
	api     *API
	page    http.Handler
	foreign *http.CrossOriginProtection
}

// NewDashboard returns a dashboard.
func NewDashboard(api *API, page http.Handler) *Dashboard {
	return &Dashboard{api: api, page: page, foreign: http.NewCrossOriginProtection()}
}

func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, isAPI := d.apiPath(r)
	if !isAPI {
		d.page.ServeHTTP(w, r)
		return
	}
	// Without this check, a page of another site that the operator has open could
	// cancel and delete tasks: the browser would send the request with the operator's
	// credentials.
	if err := d.foreign.Check(r); err != nil {
		setSafeHeaders(w.Header())
		writeProblem(w, http.StatusForbidden, "requests from other sites are refused")
		return
	}
	d.api.Serve(w, r, path)
}

// apiPath returns the path relative to the API's base, and whether the request is for
// the API. The path that the page is mounted at may contain /api/ too.
func (d *Dashboard) apiPath(r *http.Request) (string, bool) {
	i := strings.LastIndex(r.URL.Path, "/api/")
	if i < 0 {
		return "", false
	}
	path := r.URL.Path[i+len("/api/"):]
	if d.api.serves(path) {
		return path, true
	}
	return path, r.Method != http.MethodGet && r.Method != http.MethodHead || !accepts(r, "text/html")
}
