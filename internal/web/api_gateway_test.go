package web

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web/openapitest"
)

// gateway is an API in front of an engine, behind a dashboard at /ops/.
type gateway struct {
	t      *testing.T
	url    string // of the API's base
	engine *engine.Engine
	api    *API
	away   atomic.Bool // the engine does not answer
	doc    *openapitest.Document
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	e, err := engine.Open(t.Context(), engine.Config{
		Store: t.TempDir(), Sync: 2 * time.Second, Retention: time.Hour, RetentionCount: 10_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	g := &gateway{t: t, engine: e}
	g.api = NewAPI(APIConfig{
		Open: func() (*engine.Engine, func(), error) {
			if g.away.Load() {
				return nil, nil, errors.New("away")
			}
			return e, func() {}, nil
		},
		Queues:    func() []Queue { return []Queue{{Name: "q", Workers: 8, MaxQueued: 100, Attempts: 3}} },
		Schedules: func() ([]Schedule, error) { return []Schedule{{Queue: "q", Name: "0-x", Schedule: "@hourly"}}, nil },
		Attempting: func() map[string]int {
			return map[string]int{engine.HostToken("busy.example:443"): 2}
		},
		Node: "here", Counts: new(NodeCounts),
	})
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the page") })
	server := httptest.NewServer(NewDashboard(g.api, page))
	t.Cleanup(server.Close)
	t.Cleanup(g.api.Close)
	g.url = server.URL + "/ops/api/"
	if g.doc, err = openapitest.Load(openAPIDocument); err != nil {
		t.Fatal(err)
	}
	return g
}

// ask sends a request, holds the answer against the document, and returns it.
func (g *gateway) ask(method, path string, want int, header ...string) map[string]any {
	g.t.Helper()
	body := g.askRaw(method, path, want, header...)
	answer := make(map[string]any)
	if len(body) > 0 && body[0] == '{' {
		if err := json.Unmarshal(body, &answer); err != nil {
			g.t.Fatal(err)
		}
	}
	return answer
}

func (g *gateway) askRaw(method, path string, want int, header ...string) []byte {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, http.NoBody)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	if resp.StatusCode != want {
		g.t.Fatalf("%s %s: %s, not %d: %s", method, path, resp.Status, want, body)
	}
	if err := g.doc.Check(method, path, resp, body); err != nil {
		g.t.Error(err)
	}
	return body
}

// enqueue stores a task that waits.
func (g *gateway) enqueue(change func(*task.Record)) string {
	g.t.Helper()
	rec := &task.Record{Task: task.Task{
		ID: uuid.NewString(), CreatedAt: time.Now().UTC(), Queue: "q", CallbackHost: "c.example:443",
	}}
	rec.Callback = &task.Callback{URL: "https://c.example/hook?token=geheim"}
	rec.Request = &task.Request{Method: "POST", URI: "/run?key=geheim", Header: http.Header{"Authorization": {"geheim"}}}
	if change != nil {
		change(rec)
	}
	if err := g.engine.Enqueue(g.t.Context(), rec, []byte("geheim")); err != nil {
		g.t.Fatal(err)
	}
	return rec.ID
}

// finish makes a task that ended, in the given state.
func (g *gateway) finish(state task.State, change func(*task.Record)) string {
	g.t.Helper()
	now := time.Now().UTC()
	rec := task.Record{Task: task.Task{
		ID: uuid.NewString(), CreatedAt: now, StartedAt: now, CallbackHost: "c.example:443", Status: task.Complete,
	}}
	rec.Callback = &task.Callback{URL: "https://c.example/hook?token=geheim"}
	rec.Result = &task.Result{Size: 6, Kept: 6}
	if change != nil {
		change(&rec)
	}
	l, err := g.engine.Claim(g.t.Context(), rec, func() {})
	if err != nil {
		g.t.Fatal(err)
	}
	rec.FinishedAt = time.Now().UTC()
	if err := l.Settle(g.t.Context(), &rec, []byte("geheim"), false); err != nil {
		g.t.Fatal(err)
	}
	due, err := g.engine.Due(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	for d, err := range due.Fetch(g.t.Context(), 1) {
		if err != nil {
			g.t.Fatal(err)
		}
		if d.Record.ID != rec.ID {
			g.t.Fatalf("due is %s, not %s", d.Record.ID, rec.ID)
		}
		d.Record.AddAttempt(task.Attempt{At: time.Now().UTC(), StatusCode: 500, DurationMS: 3, Response: "the <b>answer</b>"})
		switch state {
		case task.Dead:
			err = d.Dead(g.t.Context())
		case task.Done:
			d.Record.DeliveredAt = time.Now().UTC()
			err = d.Done(g.t.Context())
		default:
			d.Record.NextAttemptAt = time.Now().UTC().Add(time.Hour)
			err = d.Retry(g.t.Context(), d.Record.NextAttemptAt)
		}
		if err != nil {
			g.t.Fatal(err)
		}
	}
	return rec.ID
}

func (g *gateway) ids(path string) (ids []string) {
	g.t.Helper()
	for _, doc := range g.ask(http.MethodGet, path, http.StatusOK)["tasks"].([]any) {
		ids = append(ids, doc.(map[string]any)["task_id"].(string))
	}
	return ids
}
