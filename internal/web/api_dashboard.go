package web

import (
	"net/http"
	"strings"
)

// Dashboard is the operator's page, and the API that it reads, below wherever
// it is mounted: a path that ends with /api/ and something that the API has is
// the API's, every other is the page. It may be used from several goroutines at
// once.
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
	// A page of another site that the operator has open could otherwise cancel and
	// purge: their browser would send the request, with their credentials.
	if err := d.foreign.Check(r); err != nil {
		setSafeHeaders(w.Header())
		writeProblem(w, http.StatusForbidden, "another site may not do that")
		return
	}
	d.api.Serve(w, r, path)
}

// apiPath returns the path relative to the API's base if the request is for the
// API. The page may be mounted below a path that has /api/ in it too.
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
