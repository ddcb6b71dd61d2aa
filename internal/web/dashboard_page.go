package web

import (
	"embed"
	"net/http"
	"strings"
)

//go:embed dashboard
var dashboardFiles embed.FS

// dashboardScripts are ordered so that each script follows those whose declarations it
// uses when it starts.
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
			panic(err) // cannot happen: the file is embedded
		}
		text.Write(content)
	}
	return text.String()
}

// DashboardPage serves the dashboard's page. The page is one document. It reads all its
// data from the API below its own path: a page at /dashboard reads from
// /dashboard/api/. The fragment of its URL has the state of the view. It may be used
// from several goroutines at once.
func DashboardPage() http.Handler {
	style, script := baseCSS+dashboardText("style.css", "task.css", "narrow.css"), baseJS+dashboardText(dashboardScripts...)
	page := newPage(dashboardText("index.html"), style, script, nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setSafeHeaders(w.Header())
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the dashboard accepts only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		page.serve(w)
	})
}
