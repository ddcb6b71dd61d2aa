package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web/openapitest"
)

func TestDocumentListsRoutes(t *testing.T) {
	t.Parallel()
	doc, err := openapitest.Load(openAPIDocument)
	if err != nil {
		t.Fatal(err)
	}
	described := doc.Operations()
	for _, rt := range routes {
		operation := rt.method + " /" + rt.pattern
		var want []string
		for _, name := range rt.params {
			want = append(want, "query "+name)
		}
		if strings.Contains(rt.pattern, "{id}") {
			want = append(want, "path id")
		}
		slices.Sort(want)
		if got, ok := described[operation]; !ok {
			t.Errorf("%s is not in the document", operation)
		} else if !slices.Equal(got, want) {
			t.Errorf("%s takes %v; the document has %v", operation, want, got)
		}
		delete(described, operation)
	}
	for operation := range described {
		t.Errorf("the document has %s, the API does not", operation)
	}
}

func TestRoutesMatchDocument(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	queued, dead, done := g.enqueue(nil), g.finish(task.Dead, nil), g.finish(task.Done, nil)
	delivering := g.finish(task.Delivering, nil)
	for _, path := range []string{
		"tasks", "tasks?limit=1", "tasks?state=dead&state=done&status=COMPLETE", "tasks/" + queued, "tasks/" + dead, "tasks/" + done,
		"overview", "queues", "hosts", "hosts?limit=1", "schedules", "openapi.json",
	} {
		g.askRaw(http.MethodGet, path, http.StatusOK)
	}
	g.ask(http.MethodPost, "tasks/"+done+"/redeliver", http.StatusConflict) // its result is no longer kept
	g.ask(http.MethodPost, "tasks/"+done+"/cancel", http.StatusConflict)
	g.askRaw(http.MethodGet, "tasks/"+dead+"/result", http.StatusOK)
	g.askRaw(http.MethodGet, "tasks/"+done+"/result", http.StatusNotFound)
	g.askRaw(http.MethodGet, "tasks/"+dead+"/callback", http.StatusOK)
	g.askRaw(http.MethodGet, "tasks/"+dead+"/callback?raw=true", http.StatusOK)
	g.askRaw(http.MethodGet, "tasks/"+queued+"/callback", http.StatusNotFound)
	g.askRaw(http.MethodGet, "tasks/"+dead+"/attempts", http.StatusOK)
	g.ask(http.MethodPost, "queues/q/pause", http.StatusOK)
	g.ask(http.MethodPost, "queues/q/resume", http.StatusOK)
	g.ask(http.MethodPost, "queues/none/pause", http.StatusNotFound)
	g.ask(http.MethodPost, "hosts/c.example:443/pause", http.StatusOK)
	g.ask(http.MethodPost, "hosts/c.example:443/resume", http.StatusOK)
	for _, host := range []string{"c.example", "c.example:99999", "c.example:0", ":443", "c..example:443", "u@c.example:443", "a%20b:443", "127.1:443"} {
		g.ask(http.MethodPost, "hosts/"+host+"/pause", http.StatusBadRequest)
	}
	g.ask(http.MethodPost, "schedules/new/run", http.StatusAccepted)
	g.ask(http.MethodPost, "schedules/none/run", http.StatusNotFound)
	g.ask(http.MethodPost, "tasks/"+delivering+"/retry", http.StatusAccepted)
	g.ask(http.MethodPost, "tasks/"+delivering+"/stop", http.StatusAccepted)
	g.ask(http.MethodPost, "tasks/"+delivering+"/stop", http.StatusConflict)
	g.ask(http.MethodDelete, "tasks/"+queued, http.StatusConflict)
	g.ask(http.MethodDelete, "tasks/"+done, http.StatusNoContent)
	g.ask(http.MethodGet, "tasks/"+done, http.StatusNotFound)
	g.ask(http.MethodPost, "tasks/"+dead+"/redeliver", http.StatusAccepted)
	g.ask(http.MethodPost, "tasks/"+queued+"/cancel", http.StatusAccepted)
	for _, path := range []string{"tasks/retry", "tasks/stop", "tasks/redeliver", "tasks/cancel", "tasks/delete"} {
		g.ask(http.MethodPost, path+"?queue=other", http.StatusOK)
		g.ask(http.MethodPost, path, http.StatusBadRequest)
	}
	g.ask(http.MethodGet, "nothing", http.StatusNotFound)
	g.ask(http.MethodDelete, "tasks", http.StatusMethodNotAllowed)
	g.unavailable.Store(true)
	for _, rt := range routes {
		if rt.pattern != "openapi.json" && rt.pattern != "events" && rt.pattern != "overview" {
			path := strings.ReplaceAll(rt.pattern, "{id}", queued)
			if strings.HasPrefix(path, "hosts/") {
				path = strings.ReplaceAll(rt.pattern, "{id}", "c.example:443")
			}
			if slices.Contains(rt.params, "state") && rt.method == http.MethodPost {
				path += "?queue=q"
			}
			g.ask(rt.method, path, http.StatusServiceUnavailable)
		}
	}
}

func TestBadRequestsNameParameter(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for path, want := range map[string]string{
		"tasks?stat=dead":            "stat",
		"tasks?state=dying":          "dying",
		"tasks?status=complete":      "complete",
		"tasks?limit=0":              "limit",
		"tasks?limit=1001":           "limit",
		"tasks?limit=x":              "limit",
		"tasks?older_than=yesterday": "yesterday",
		"tasks?newer_than=-1h":       "-1h",
		"tasks?newer_than=NaNd":      "NaNd",
		"tasks?older_than=1e9d":      "1e9d",
		"tasks?before=yesterday":     "yesterday",
		"tasks?last_status_code=ok":  "last_status_code",
		"tasks?id=a*":                "id",
		"tasks?after=%00%27":         "after",

		"tasks?after=" + strings.Repeat("a", 10_000): "after",
		"tasks?queue=a&queue=b":                      "twice",
		"tasks?%zz":                                  "query",
		"overview?x=1":                               "no parameters",
		"hosts?limit=-1":                             "limit",
	} {
		detail := g.ask(http.MethodGet, path, http.StatusBadRequest)["detail"].(string)
		if !strings.Contains(detail, want) {
			t.Errorf("%s: %q does not say %q", path, detail, want)
		}
	}
	for path, want := range map[string]string{
		"tasks/redeliver":              "no filter",
		"tasks/redeliver?queue=":       "no filter",
		"tasks/redeliver?state=queued": "queued",
		"tasks/cancel?state=dead":      "dead",
		"tasks/delete?state=running":   "running",
		"tasks/delete?limit=5":         "limit",
		"tasks/delete?dry_run=1":       "dry_run",
	} {
		detail := g.ask(http.MethodPost, path, http.StatusBadRequest)["detail"].(string)
		if !strings.Contains(detail, want) {
			t.Errorf("%s: %q does not say %q", path, detail, want)
		}
	}
	for _, id := range []string{"*", "%3E", "a.b", "%00", "x%0d", strings.Repeat("a", 200), "..%2f"} {
		req := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		w := httptest.NewRecorder()
		g.api.Serve(w, req, "tasks/"+id)
		if w.Code != http.StatusNotFound {
			t.Errorf("a task %q gets %d", id, w.Code)
		}
	}
}

func TestListsHaveNoBodies(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.enqueue(nil)
	for _, state := range []task.State{task.Dead, task.Done, task.Delivering} {
		g.finish(state, nil)
	}
	for _, path := range []string{"tasks", "overview", "queues", "hosts", "schedules"} {
		body := g.askRaw(http.MethodGet, path, http.StatusOK)
		for _, secret := range []string{"geheim", "hook", "token", "key", "<b>"} {
			if bytes.Contains(body, []byte(secret)) {
				t.Errorf("%s tells %s: %s", path, secret, body)
			}
		}
	}
}

func TestTaskTimeline(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.finish(task.Delivering, nil)
	doc := g.ask(http.MethodGet, "tasks/"+id, http.StatusOK)
	timeline := doc["timeline"].([]any)
	if last := timeline[len(timeline)-1].(map[string]any); last["event"] != "next_attempt" {
		t.Errorf("it ends with %v", last)
	}
	if attempt := doc["attempts"].([]any)[0].(map[string]any); attempt["response"] != "the <b>answer</b>" {
		t.Errorf("the attempt is %v", attempt)
	}
	id = g.finish(task.Dead, nil)
	g.ask(http.MethodPost, "tasks/"+id+"/redeliver", http.StatusAccepted)
	var events []string
	for _, event := range g.ask(http.MethodGet, "tasks/"+id, http.StatusOK)["timeline"].([]any) {
		events = append(events, event.(map[string]any)["event"].(string))
	}
	if want := []string{"accepted", "started", "verdict", "attempt", "redelivered"}; !slices.Equal(events, want) {
		t.Errorf("it is %v, want %v", events, want)
	}
}

func TestAttemptNumbersMatchCallbacks(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	rec := new(task.Record)
	for i := range 3 {
		rec.AddAttempt(task.Attempt{At: at(i)})
	}
	rec.Redeliver(at(10))
	for i := range 2 {
		rec.AddAttempt(task.Attempt{At: at(11 + i)})
	}
	if got := attemptNumbers(rec); !slices.Equal(got, []int{1, 2, 3, 1, 2}) {
		t.Errorf("they are numbered %v", got)
	}
	long := new(task.Record)
	for i := range 60 {
		long.AddAttempt(task.Attempt{At: at(i)})
	}
	if got := attemptNumbers(long); got[0] != 11 || got[len(got)-1] != 60 {
		t.Errorf("of 60 attempts those kept are numbered %v", got)
	}
}

func TestBulkActionsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	other := g.enqueue(func(r *task.Record) { r.Queue = "other" })
	const n = 1500
	for range n {
		g.enqueue(nil)
	}
	matched, changed, calls := 0, 0, 0
	for next := ""; ; calls++ {
		part := g.ask(http.MethodPost, "tasks/cancel?queue=q&after="+next, http.StatusOK)
		matched += int(part["matched"].(float64))
		changed += int(part["changed"].(float64))
		if part["matched"].(float64) > bulkMatched+bulkPage {
			t.Errorf("one request changed %v", part["matched"])
		}
		next, _ = part["next"].(string)
		if next == "" {
			break
		}
	}
	if matched != n || changed != n || calls < 1 {
		t.Errorf("matched %d, changed %d of %d, in %d calls more", matched, changed, n, calls)
	}
	if got := g.ids("tasks?state=queued"); !slices.Equal(got, []string{other}) {
		t.Errorf("there wait %v", got)
	}
}

func TestBulkActionsCountFailures(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	kept := g.finish(task.Done, func(r *task.Record) { r.Queue = "q" })
	g.finish(task.Done, nil)
	part := g.ask(http.MethodPost, "tasks/redeliver?state=done", http.StatusOK)
	if part["matched"] != 2.0 || part["changed"] != 1.0 || part["failed"] != 1.0 || !strings.Contains(fmt.Sprint(part["reason"]), "not kept") {
		t.Errorf("it says %v", part)
	}
	if got := g.ids("tasks?state=delivering"); !slices.Equal(got, []string{kept}) {
		t.Errorf("delivered again are %v", got)
	}
}

func TestRedeliverAllSkipsDelivered(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		query      string
		dead, done int // how many are redelivered
	}{
		{"queue=q", 1, 0},
		{"host=c.example", 1, 0},
		{"status=COMPLETE", 1, 0},
		{"newer_than=1h", 1, 0},
		{"state=&queue=q", 1, 0},
		{"state=dead", 1, 0},
		{"state=done", 0, 1},
		{"state=dead&state=done", 1, 1},
	} {
		t.Run(tt.query, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			ofQueue := func(r *task.Record) { r.Queue = "q" }
			dead, done := g.finish(task.Dead, ofQueue), g.finish(task.Done, ofQueue)
			part := g.ask(http.MethodPost, "tasks/redeliver?"+tt.query, http.StatusOK)
			if want := float64(tt.dead + tt.done); part["matched"] != want || part["changed"] != want {
				t.Errorf("it says %v; expected %v", part, want)
			}
			again := g.ids("tasks?state=delivering")
			if got := slices.Contains(again, dead); got != (tt.dead == 1) {
				t.Errorf("the dead letter is delivered again: %v", got)
			}
			if got := slices.Contains(again, done); got != (tt.done == 1) {
				t.Errorf("the delivered callback is delivered again: %v", got)
			}
		})
	}
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.enqueue(nil)
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"},
	} {
		g.ask(http.MethodPost, "tasks/"+id+"/cancel", http.StatusForbidden, header...)
		g.ask(http.MethodPost, "tasks/cancel?queue=q", http.StatusForbidden, header...)
	}
	g.ask(http.MethodPost, "tasks/"+id+"/cancel", http.StatusAccepted, "Sec-Fetch-Site", "same-origin")
}

func TestPageIsServedOutsideAPI(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	base := strings.TrimSuffix(g.url, "ops/api/")
	for path, isPage := range map[string]bool{
		"": true, "ops": true, "ops/": true, "ops/api": true, "ops/api/queues": false, "api/ops/api/queues": false,
		"api/ops/": true, "ops/api/nothing": false,
	} {
		accept := "*/*"
		if path == "api/ops/" {
			accept = "text/html" // a browser, for a dashboard below /api/
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || (string(body) == "the page") != isPage {
			t.Errorf("/%s: %s %s %v", path, resp.Status, body, err)
		}
	}
}

func TestFailingHostsAreListed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	since := time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
	for range 3 {
		g.finish(task.Delivering, nil) // waits an hour for its retry
	}
	err := g.engine.SaveHosts(t.Context(), []engine.HostState{{
		Host: "c.example:443", Failures: 3, FailingSince: since, LastStatus: 503, LastError: "try <later>",
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.finish(task.Delivering, func(r *task.Record) { r.CallbackHost = "paused.example:443" })
	if err := g.engine.Pause(t.Context(), engine.Target{Host: "paused.example:443"}, true); err != nil {
		t.Fatal(err)
	}
	var hosts []host
	if err := json.Unmarshal(g.askRaw(http.MethodGet, "hosts", http.StatusOK), &hosts); err != nil {
		t.Fatal(err)
	}
	if len(hosts) != 2 {
		t.Fatalf("the hosts are %+v", hosts)
	}
	if h := hosts[0]; h.Host != "c.example:443" || h.Pending != 3 || h.InFlight != 0 || !h.FailingSince.Equal(since) ||
		h.Failures != 3 || h.LastStatus != 503 || h.LastError != "try <later>" || h.Paused || time.Until(h.NextAttemptAt) < time.Minute {
		t.Errorf("the failing host is %+v", h)
	}
	if h := hosts[1]; h.Host != "paused.example:443" || h.Pending != 1 || !h.Paused {
		t.Errorf("the paused host is %+v", h)
	}
	if err := json.Unmarshal(g.askRaw(http.MethodGet, "hosts?limit=1", http.StatusOK), &hosts); err != nil || len(hosts) != 1 {
		t.Errorf("the first host alone is %+v: %v", hosts, err)
	}
}

func TestConfiguredAndStoredQueuesAreListed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.enqueue(nil)
	g.enqueue(func(r *task.Record) { r.NextAttemptAt = time.Now().Add(time.Hour).UTC() })
	g.enqueue(func(r *task.Record) { r.Queue = "old" })
	if err := g.engine.Pause(t.Context(), engine.Target{Queue: "old"}, true); err != nil {
		t.Fatal(err)
	}
	jobs, err := g.engine.Jobs("q").Next(t.Context(), 1, 3)
	if err != nil || len(jobs) != 1 {
		t.Fatal(len(jobs), err)
	}
	var queues []Queue
	if err := json.Unmarshal(g.askRaw(http.MethodGet, "queues", http.StatusOK), &queues); err != nil {
		t.Fatal(err)
	}
	if len(queues) != 2 {
		t.Fatalf("the queues are %+v", queues)
	}
	if q := queues[0]; q.Name != "old" || q.Queued != 1 || q.Workers != 0 || !q.Paused || q.Oldest.IsZero() {
		t.Errorf("the queue without a configuration is %+v", q)
	}
	if q := queues[1]; q.Name != "q" || q.Queued != 1 || q.Delayed != 1 || q.Running != 1 || q.Workers != 8 || q.Paused {
		t.Errorf("the configured queue is %+v", q)
	}
}

func TestSchedulesShowRunTimes(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	last := time.Now().UTC().Truncate(time.Second)
	next := last.Add(time.Hour)
	if _, err := g.engine.NextRun(t.Context(), "known", last); err != nil {
		t.Fatal(err)
	}
	if err := g.engine.Advance(t.Context(), "known", last, next); err != nil {
		t.Fatal(err)
	}
	var schedules []Schedule
	if err := json.Unmarshal(g.askRaw(http.MethodGet, "schedules", http.StatusOK), &schedules); err != nil {
		t.Fatal(err)
	}
	if len(schedules) != 2 {
		t.Fatalf("the schedules are %+v", schedules)
	}
	if s := schedules[0]; !s.LastRun.Equal(last) || !s.NextRun.Equal(next) {
		t.Errorf("the known schedule ran at %v and runs at %v, want %v and %v", s.LastRun, s.NextRun, last, next)
	}
	if s := schedules[1]; !s.LastRun.IsZero() || !s.NextRun.Equal(computedRun) {
		t.Errorf("the new schedule ran at %v and runs at %v", s.LastRun, s.NextRun)
	}
}

func TestEngineErrorStatuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		err    error
		want   int
		detail string
	}{
		{"not found", engine.ErrNotFound, http.StatusNotFound, "no such task"},
		{"full", engine.ErrQuota, http.StatusServiceUnavailable, "full"},
		{"unavailable", engine.ErrUnavailable, http.StatusServiceUnavailable, "does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := NewAPI(APIConfig{Open: func() (engine.Engine, func(), error) {
				return nil, nil, fmt.Errorf("opening: %w", c.err)
			}})
			w := httptest.NewRecorder()
			a.Serve(w, httptest.NewRequest(http.MethodGet, "/queues", http.NoBody), "queues")
			unavailable := c.want == http.StatusServiceUnavailable
			if w.Code != c.want || !strings.Contains(w.Body.String(), c.detail) || (w.Header().Get("Retry-After") != "") != unavailable {
				t.Errorf("the answer is %d %v %s", w.Code, w.Header(), w.Body)
			}
		})
	}
}
