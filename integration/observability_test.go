package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// scraped is a metric in a scrape: its kind, and the values of each label.
type scraped struct {
	kind   string
	labels map[string][]string
}

var (
	typeLine   = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	seriesLine = regexp.MustCompile(`^([a-zA-Z_:]+)(?:\{(.*)\})? \S+$`)
	labelPair  = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
)

// scrapeAll reads all metrics of the module, by name. A histogram is listed under its own
// name and under the names of its series.
func scrapeAll(t *testing.T, g *gatewaytest.Gateway) map[string]*scraped {
	t.Helper()
	resp, text, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/metrics", http.NoBody)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("scraping: %v %v", resp, err)
	}
	found := make(map[string]*scraped)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.Contains(line, "caddy_callback_") {
			continue
		}
		if m := typeLine.FindStringSubmatch(line); m != nil {
			found[m[1]] = &scraped{m[2], make(map[string][]string)}
			if m[2] == "histogram" {
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					found[m[1]+suffix] = &scraped{"", make(map[string][]string)}
				}
			}
		} else if m := seriesLine.FindStringSubmatch(line); m != nil {
			for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
				labels := found[m[1]].labels
				labels[pair[1]] = append(labels[pair[1]], pair[2])
				base := found[strings.TrimSuffix(m[1], "_bucket")]
				if pair[1] != "le" && base != found[m[1]] {
					base.labels[pair[1]] = append(base.labels[pair[1]], pair[2])
				}
			}
		}
	}
	return found
}

// busyGateway returns a gateway that has a value for each metric: tasks with each
// verdict, attempts with each outcome, and a queue.
func busyGateway(t *testing.T) *gatewaytest.Gateway {
	t.Helper()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/fails":
			w.WriteHeader(http.StatusInternalServerError)
		case "/hangs":
			_, _ = io.Copy(io.Discard, r.Body) // the server notices a disconnect only after this
			<-r.Context().Done()
		}
	})
	rcv := failsFirst(t)
	gone := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1s"),
		"metrics /metrics\n@rest not path /hangs\ncallback @rest\ncallback /hangs {\ntimeout 1s\n}\ntask_queue /q* q {\ncallback\npoll\nreverse_proxy "+app+"\n}\nreverse_proxy "+app)
	for _, path := range []string{"/", "/fails", "/hangs"} {
		g.Post(path, fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	}
	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, gone.URL))
	reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Done)
	g.Metered(map[string]float64{`deliveries_total{outcome="delivered"}`: 3, `deliveries_total{outcome="retry"}`: 1,
		`deliveries_total{outcome="dead"}`: 1, `tasks_total{route="srv0",status="TIMEOUT"}`: 1, `due_deliveries`: 0, `engine_ready`: 1})
	return g
}

func TestMetricsShowUnreachableEngine(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "engine nats nats://"+freeaddr.New(t), "callback\nrespond ok")
	g.Metered(map[string]float64{"engine_ready": 0})
	if resp, _ := g.Post("/", `{"callback_url":"https://receiver.example/"}`); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a request for a callback got %s", resp.Status)
	}
}

// rowOfMetrics matches a row of the table of metrics.
var rowOfMetrics = regexp.MustCompile("(?m)^\\| `(caddy_callback_[a-z_]+)` \\| (\\w+)(?:, by ([^|]+))? \\| ")

func TestMetricsMatchDocsAndGrafana(t *testing.T) {
	t.Parallel()
	g := busyGateway(t)
	found := scrapeAll(t, g)
	if resp, text := g.Do(http.MethodGet, "/metrics", ""); !strings.Contains(text, "\ncaddy_callback_tasks{") {
		t.Errorf("a site of its own answers %s", resp.Status)
	}

	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, row := range rowOfMetrics.FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = true
		var labels []string
		for _, word := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(row[3], -1) {
			labels = append(labels, word[1])
		}
		if m := found[row[1]]; m == nil || m.kind != row[2] || !slices.Equal(slices.Sorted(maps.Keys(m.labels)), labels) {
			t.Errorf("the docs list a %s %s by %q, and it is %+v", row[2], row[1], labels, m)
		}
	}
	for name, m := range found {
		if m.kind != "" && !documented[name] {
			t.Errorf("the docs do not list %s", name)
		}
	}

	dashboard := expressions(t, "../examples/observability/dashboard.json")
	for name := range documented {
		if !strings.Contains(dashboard, name) {
			t.Errorf("no panel shows %s", name)
		}
	}
	checkSelectors(t, dashboard, found)
	alerts, err := os.ReadFile("../examples/observability/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	checkSelectors(t, string(alerts), found)
}

// expressions returns the PromQL expressions of a dashboard, one per line.
func expressions(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard any
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var all strings.Builder
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				if text, ok := inner.(string); ok && (name == "expr" || name == "definition") {
					all.WriteString(text + "\n")
				}
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(dashboard)
	return all.String()
}

var (
	selector = regexp.MustCompile(`(caddy_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
)

// checkSelectors checks that the metrics, labels and literal values in PromQL
// expressions were scraped.
func checkSelectors(t *testing.T, text string, found map[string]*scraped) {
	t.Helper()
	selectors := selector.FindAllStringSubmatch(text, -1)
	if len(selectors) < 5 {
		t.Fatalf("only %d selectors", len(selectors))
	}
	for _, s := range selectors {
		m := found[s[1]]
		if m == nil || m.kind == "histogram" {
			t.Errorf("%s was not scraped", s[0])
			continue
		}
		for _, pair := range matcher.FindAllStringSubmatch(s[2], -1) {
			values, ok := m.labels[pair[1]]
			if pair[1] == "job" && pair[3] == "$job" {
				continue // a label that Prometheus adds
			}
			if !ok || (pair[2] == "=" || pair[2] == "!=") && !slices.Contains(values, pair[3]) {
				t.Errorf("%s: %s has the values %q", s[0], pair[1], values)
			}
		}
	}
	for line := range strings.Lines(text) {
		for _, g := range grouping.FindAllStringSubmatch(line, -1) {
			for name := range strings.SplitSeq(g[1], ", ") {
				if !slices.ContainsFunc(selector.FindAllStringSubmatch(line, -1), func(s []string) bool {
					return found[s[1]] != nil && found[s[1]].labels[name] != nil
				}) {
					t.Errorf("%s: nothing in it has the label %s", strings.TrimSpace(line), name)
				}
			}
		}
	}
}

func TestDocsNameLogFields(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Logs\n")
	g := busyGateway(t)
	for _, message := range []string{"delivery attempted", "task run"} {
		logs(g, `"msg":"`+message+`"`)
	}
	for line := range strings.Lines(g.Log.String()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			continue
		}
		message, _ := fields["msg"].(string)
		if message != "delivery attempted" && message != "task run" {
			continue
		}
		_, described, _ := strings.Cut(section, "`"+message+"`")
		described, _, _ = strings.Cut(described, ". ")
		for name := range fields {
			if name != "msg" && name != "level" && name != "logger" && name != "ts" && !strings.Contains(described, "`"+name+"`") {
				t.Errorf("the docs do not list %s in %s", name, message)
			}
		}
	}
}
