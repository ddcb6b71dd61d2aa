package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// document is the JSON of a task.
type document struct {
	State          task.State `json:"state"`
	CallbackHost   string     `json:"callback_host"`
	CallbackURL    string     `json:"callback_url"`
	Method         string     `json:"method"`
	Path           string     `json:"path"`
	Reason         string     `json:"reason"`
	LastStatusCode int        `json:"last_status_code"`
	LastError      string     `json:"last_error"`
	Attempts       []struct {
		Number   int         `json:"attempt"`
		Addr     string      `json:"remote_addr"`
		TLS      float64     `json:"tls_ms"`
		Sent     [][2]string `json:"request_headers"`
		Received [][2]string `json:"response_headers"`
	} `json:"attempts"`
}

func (g *gateway) document(id string) (d document) {
	g.t.Helper()
	if err := json.Unmarshal(g.askRaw(http.MethodGet, "tasks/"+id, http.StatusOK), &d); err != nil {
		g.t.Fatal(err)
	}
	return d
}

func (g *gateway) bulk(path, content string) (b bulk) {
	g.t.Helper()
	if err := json.Unmarshal(g.send(http.MethodPost, path, content, http.StatusOK), &b); err != nil {
		g.t.Fatal(err)
	}
	return b
}

func TestRetryMakesCallbackDue(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.finish(task.Delivering, nil) // waits an hour for its retry
	g.ask(http.MethodPost, "tasks/"+id+"/retry", http.StatusAccepted)
	taken, err := g.engine.Take(t.Context(), "c.example:443", 1)
	if err != nil || len(taken) != 1 || taken[0].Record().ID != id {
		t.Fatalf("taken are %d deliveries: %v", len(taken), err)
	}
	g.ask(http.MethodPost, "tasks/"+g.enqueue(nil)+"/retry", http.StatusConflict)
}

func TestRetryToPausedHostIsRefused(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.finish(task.Delivering, nil)
	g.ask(http.MethodPost, "hosts/c.example:443/pause", http.StatusOK)
	const reason = "the host of the callback is paused; resume it to make the next attempt"
	if got := g.ask(http.MethodPost, "tasks/"+id+"/retry", http.StatusConflict); got["detail"] != reason {
		t.Errorf("the answer is %v", got)
	}
	want := bulk{Matched: 1, Failed: 1, Reason: reason}
	if got := g.bulk("tasks/retry?host=c.example", ""); got != want {
		t.Errorf("the answer is %+v, want %+v", got, want)
	}
	g.ask(http.MethodPost, "hosts/c.example:443/resume", http.StatusOK)
	g.ask(http.MethodPost, "tasks/"+id+"/retry", http.StatusAccepted)
}

func TestStopMakesCallbackDead(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.finish(task.Delivering, nil)
	g.ask(http.MethodPost, "tasks/"+id+"/stop", http.StatusAccepted)
	if d := g.document(id); d.State != task.Dead {
		t.Errorf("the task is %s", d.State)
	}
}

func TestRedeliverToEditedURL(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	id := g.finish(task.Dead, nil)
	for _, body := range []string{
		`{"url": "https://private.example/"}`, `{"uri": "https://other.example/"}`, `{`, `[]`, `{} {}`, strings.Repeat(" ", maxBody+1),
	} {
		g.send(http.MethodPost, "tasks/"+id+"/redeliver", body, http.StatusBadRequest)
	}
	if d := g.document(id); d.State != task.Dead || d.CallbackURL != "https://c.example/hook" {
		t.Fatalf("after refusals the task is %+v", d)
	}
	g.send(http.MethodPost, "tasks/"+id+"/redeliver", `{"url": "https://other.example/new?token=geheim"}`, http.StatusAccepted)
	if d := g.document(id); d.State != task.Delivering || d.CallbackHost != "other.example:443" || d.CallbackURL != "https://other.example/new" {
		t.Errorf("the task is %+v", d)
	}
}

func TestActionsOnNamedTasks(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	dead, queued, done := g.finish(task.Dead, nil), g.enqueue(nil), g.finish(task.Done, nil)
	ids := fmt.Sprintf(`{"ids": [%q, %q, "nobody", "*"]}`, dead, queued)
	want := bulk{Matched: 2, Failed: 1, Unknown: 2, Reason: "the task is not dead or done"}
	if got := g.bulk("tasks/delete?dry_run=true", ids); got != want {
		t.Errorf("a dry run says %+v, want %+v", got, want)
	}
	g.ask(http.MethodGet, "tasks/"+dead, http.StatusOK)
	want.Changed = 1
	if got := g.bulk("tasks/delete", ids); got != want {
		t.Errorf("the answer is %+v, want %+v", got, want)
	}
	g.ask(http.MethodGet, "tasks/"+dead, http.StatusNotFound)
	g.ask(http.MethodGet, "tasks/"+done, http.StatusOK)
	for path, body := range map[string]string{
		"tasks/delete": `{"ids": []}`, "tasks/delete?state=done": `{"ids": ["x"]}`, "tasks/delete?dry_run=yes&state=done": "",
		"tasks/cancel": `{"ids": [` + strings.Repeat(`"x",`, maxIDs) + `"x"]}`,
	} {
		g.send(http.MethodPost, path, body, http.StatusBadRequest)
	}
}

func TestDryRunCountsMatches(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for range 3 {
		g.finish(task.Dead, nil)
	}
	g.finish(task.Done, nil)
	if got := g.bulk("tasks/redeliver?dry_run=true&host=c.example", ""); got != (bulk{Matched: 3}) {
		t.Errorf("the answer is %+v", got)
	}
	if got := g.ids("tasks?state=dead"); len(got) != 3 {
		t.Errorf("%d tasks are dead after a dry run", len(got))
	}
}

func TestListsShowReasonAndFilter(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	queued := g.enqueue(func(r *task.Record) { r.Route = "q" })
	waiting := g.finish(task.Delivering, func(r *task.Record) {
		r.Route, r.RequestMethod, r.RequestPath, r.RequestSize = "site", "PUT", "/upload", 5
	})
	for query, want := range map[string]string{
		"method=PUT": waiting, "method=POST": queued, "path=/up": waiting, "path=run": queued, "route=q": queued, "route=site": waiting,
		"last_status_code=500": waiting, "id=" + queued: queued, "state=queued&before=2100-01-01T00:00:00Z": queued,
		"method=PUT&after_time=2020-01-01T00:00:00Z": waiting,
	} {
		if got := g.ids("tasks?" + query); !slices.Equal(got, []string{want}) {
			t.Errorf("%s lists %v, want %s", query, got, want)
		}
	}
	for _, query := range []string{"method=put", "path=key", "last_status_code=503", "last_error=x", "before=2020-01-01T00:00:00Z", "after_time=2100-01-01T00:00:00Z"} {
		if got := g.ids("tasks?" + query); len(got) != 0 {
			t.Errorf("%s lists %v", query, got)
		}
	}
	if d := g.document(waiting); d.Method != "PUT" || d.Path != "/upload" || d.LastStatusCode != 500 ||
		d.Reason != "the receiver answered 500 Internal Server Error" {
		t.Errorf("the task is %+v", d)
	}
}

func TestFilterTakesHostOutsideASCII(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.finish(task.Done, nil)
	id := g.finish(task.Done, func(r *task.Record) { r.CallbackHost = "xn--bcher-kva.example:443" })
	for _, host := range []string{"xn--bcher-kva.example", "B%C3%BCcher.example", "b%C3%BCcher.example:443"} {
		if got := g.ids("tasks?host=" + host); !slices.Equal(got, []string{id}) {
			t.Errorf("%s lists %v, want %s", host, got, id)
		}
	}
}

func TestPausedHostWaitsUntilResumed(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.enqueue(nil)
	g.ask(http.MethodPost, "queues/q/pause", http.StatusOK)
	g.ask(http.MethodPost, "hosts/C.example:443/pause", http.StatusOK)
	stats, err := g.engine.Queues(t.Context())
	if err != nil || len(stats) != 1 || !stats[0].Paused {
		t.Errorf("the queues are %+v: %v", stats, err)
	}
	hosts, _, err := g.engine.Hosts(t.Context(), "", 10)
	if err != nil || len(hosts) != 1 || hosts[0].Host != "c.example:443" || !hosts[0].Paused {
		t.Errorf("the hosts are %+v: %v", hosts, err)
	}
	g.ask(http.MethodPost, "queues/q/resume", http.StatusOK)
	g.ask(http.MethodPost, "hosts/c.example:443/resume", http.StatusOK)
	if stats, err = g.engine.Queues(t.Context()); err != nil || stats[0].Paused {
		t.Errorf("the queues are %+v: %v", stats, err)
	}
}

func TestCallbackIsShownAsSent(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	at := time.Now().UTC()
	id := g.finish(task.Dead, func(r *task.Record) {
		r.Callback.Header = [][2]string{{"X-Own", "geheim-value"}}
		r.Callback.MaxResult = 1 << 20
		r.Callback.TaskHeader, r.Callback.StatusHeader = "Task-Id", "Task-Status"
	})
	var shown sentCallback
	text := g.askRaw(http.MethodGet, "tasks/"+id+"/callback", http.StatusOK)
	if err := json.Unmarshal(text, &shown); err != nil {
		t.Fatal(err)
	}
	if shown.URL != "https://c.example/hook" || shown.BodySize != int64(len(shown.Body)) || shown.Body != "response=geheim" {
		t.Errorf("it is %+v", shown)
	}
	for _, want := range [][2]string{{"X-Own", "[masked]"}, {"Task-Id", id}} {
		if !slices.Contains(shown.Headers, want) {
			t.Errorf("%v is not among %v", want, shown.Headers)
		}
	}
	if raw := g.askRaw(http.MethodGet, "tasks/"+id+"/callback?raw=true", http.StatusOK); string(raw) != shown.Body {
		t.Errorf("the raw body is %s, want %s", raw, shown.Body)
	}
	if body := g.askRaw(http.MethodGet, "tasks/"+id+"/result", http.StatusOK); string(body) != "geheim" {
		t.Errorf("the result is %q", body)
	}
	if err := g.engine.Act(t.Context(), id, engine.Action{Kind: engine.RetryNow}); err == nil {
		t.Error("a dead task was retried")
	}
	g.ask(http.MethodPost, "tasks/"+id+"/redeliver", http.StatusAccepted)
	taken, err := g.engine.Take(t.Context(), "c.example:443", 1)
	if err != nil || len(taken) != 1 {
		t.Fatal(len(taken), err)
	}
	rec := taken[0].Record()
	rec.AddAttempt(task.Attempt{At: at, StatusCode: 503, DurationMS: 4})
	rec.AddTrace(task.Trace{At: at, RemoteAddr: "192.0.2.1:443", TLS: 2.5, Sent: [][2]string{{"A", "1"}}, Received: [][2]string{{"B", "2"}}})
	if err := taken[0].Dead(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := g.document(id)
	if n := len(d.Attempts); n != 2 || d.Attempts[1].Addr != "192.0.2.1:443" || d.Attempts[1].TLS != 2.5 ||
		len(d.Attempts[1].Sent) != 1 || len(d.Attempts[1].Received) != 1 || len(d.Attempts[0].Sent) != 0 {
		t.Errorf("the attempts are %+v", d.Attempts)
	}
}
