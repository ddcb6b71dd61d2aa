package web

import (
	_ "embed"
	"net/http"
)

var (
	//go:embed dashboard/index.html
	dashboardHTML string
	//go:embed dashboard/style.css
	dashboardCSS string
	//go:embed dashboard/charts.js
	chartsJS string
	//go:embed dashboard/lists.js
	listsJS string
	//go:embed dashboard/actions.js
	actionsJS string
	//go:embed dashboard/tasks.js
	tasksJS string
	//go:embed dashboard/task.js
	taskJS string
	//go:embed dashboard/app.js
	appJS string
)

// DashboardPage serves the dashboard's page. It is one document, which reads
// all it shows from the API below the path that the page itself was read from:
// of a page at /dashboard, from /dashboard/api/. Where it stands in a view is
// in the fragment of its URL. It may be used from several goroutines at once.
func DashboardPage() http.Handler {
	// The order is that of the declarations that the script makes as it begins.
	script := baseJS + chartsJS + actionsJS + listsJS + tasksJS + taskJS + appJS
	page := newPage(dashboardHTML, baseCSS+dashboardCSS, script, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setSafeHeaders(w.Header())
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the dashboard's page can only be read", http.StatusMethodNotAllowed)
			return
		}
		page.serve(w)
	})
}
