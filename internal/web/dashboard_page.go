package web

import (
	"embed"
	"net/http"
	"strings"
)

//go:embed dashboard
var dashboardFiles embed.FS

// dashboardScripts are in the order of the declarations that they make as they begin.
var dashboardScripts = []string{
	"format.js", "api.js", "charts.js", "tables.js", "actions.js", "filters.js", "tasks.js", "attempts.js", "sent.js",
	"task.js", "overview.js", "lists.js", "keys.js", "app.js",
}

// dashboardText joins files of the dashboard.
func dashboardText(names ...string) string {
	var text strings.Builder
	for _, name := range names {
		content, err := dashboardFiles.ReadFile("dashboard/" + name)
		if err != nil {
			panic(err) // the file is embedded: this cannot happen in a build whose tests pass
		}
		text.Write(content)
	}
	return text.String()
}

// DashboardPage serves the dashboard's page. It is one document, which reads
// all it shows from the API below the path that the page itself was read from:
// of a page at /dashboard, from /dashboard/api/. Where it stands in a view is
// in the fragment of its URL. It may be used from several goroutines at once.
func DashboardPage() http.Handler {
	style, script := baseCSS+dashboardText("style.css", "task.css", "narrow.css"), baseJS+dashboardText(dashboardScripts...)
	page := newPage(dashboardText("index.html"), style, script, nil)
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
