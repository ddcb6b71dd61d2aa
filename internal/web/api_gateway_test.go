package web

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web/openapitest"
)

// computedRun is the next run of all schedules as the configuration computes it.
var computedRun = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

// gateway is an API with an engine, below a dashboard at /ops/.
type gateway struct {
	t           *testing.T
	url         string // of the API's base
	engine      engine.Engine
	api         *API
	unavailable atomic.Bool // the engine does not answer
	doc         *openapitest.Document
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	e, err := sqlite.Open(t.Context(), sqlite.Config{
		Folder: t.TempDir(), Sync: time.Second,
		Settings: engine.Settings{Retention: time.Hour, RetentionCount: 10_000, Dead: time.Hour, DeadCount: 10_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	g := &gateway{t: t, engine: e}
	g.api = NewAPI(APIConfig{
		Open: func() (engine.Engine, func(), error) {
			if g.unavailable.Load() {
				return nil, nil, engine.ErrUnavailable
			}
			return e, func() {}, nil
		},
		Queues: func() []Queue { return []Queue{{Name: "q", Workers: 8, MaxQueued: 100, Attempts: 3}} },
		Schedules: func() ([]Schedule, error) {
			return []Schedule{
				{Queue: "q", ID: "known", Schedule: "@hourly", NextRun: computedRun},
				{Queue: "q", ID: "new", Schedule: "@daily", NextRun: computedRun},
			}, nil
		},
		Node: "here", Counts: new(NodeCounts),
		CheckURL: func(raw string, trusted bool) (string, string, error) {
			if trusted || !strings.HasPrefix(raw, "https://other.example/") {
				return "", "", errors.New("is refused")
			}
			return raw, "other.example:443", nil
		},
		Run: func(_ context.Context, _ engine.Engine, id string) (string, bool, error) {
			return "run-of-" + id, true, nil
		},
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

// ask sends a request, checks the response against the OpenAPI document, and returns
// it.
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
	return g.send(method, path, "", want, header...)
}

// send sends a request with a body, checks the response against the OpenAPI document,
// and returns it.
func (g *gateway) send(method, path, content string, want int, header ...string) []byte {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, strings.NewReader(content))
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
		g.t.Fatalf("%s %s: %s, want %d: %s", method, path, resp.Status, want, body)
	}
	if err := g.doc.Check(method, path, resp, body); err != nil {
		g.t.Error(err)
	}
	return body
}

// newRecord returns a new task.
func newRecord() *task.Record {
	rec := &task.Record{Task: task.Task{
		ID: uuid.Must(uuid.NewV7()).String(), CreatedAt: time.Now().UTC(), CallbackHost: "c.example:443",
	}}
	rec.Callback = &task.Callback{URL: "https://c.example/hook?token=geheim"}
	return rec
}

// enqueue stores a queued task.
func (g *gateway) enqueue(change func(*task.Record)) string {
	g.t.Helper()
	rec := newRecord()
	rec.Queue = "q"
	rec.Request = &task.Request{Method: "POST", URI: "/run?key=geheim", Header: http.Header{"Authorization": {"geheim"}}}
	if change != nil {
		change(rec)
	}
	id, created, err := g.engine.Enqueue(g.t.Context(), rec, strings.NewReader("geheim"), engine.EnqueueOptions{})
	if err != nil || !created {
		g.t.Fatal(created, err)
	}
	return id
}

// finish stores a task with a verdict and an attempt in the given state. The task is a
// queue's if it has a queue, and otherwise a waiting client's.
func (g *gateway) finish(state task.State, change func(*task.Record)) string {
	g.t.Helper()
	rec := newRecord()
	if change != nil {
		change(rec)
	}
	rec, l := g.start(rec)
	rec.Status, rec.FinishedAt = task.Complete, time.Now().UTC()
	rec.Result = &task.Result{Size: 6, Kept: 6}
	if err := l.Settle(g.t.Context(), rec, strings.NewReader("geheim")); err != nil {
		g.t.Fatal(err)
	}
	taken, err := g.engine.Take(g.t.Context(), rec.CallbackHost, 1)
	if err != nil || len(taken) != 1 || taken[0].Record().ID != rec.ID {
		g.t.Fatalf("taken are %d deliveries: %v", len(taken), err)
	}
	d, now := taken[0], time.Now().UTC()
	d.Record().AddAttempt(task.Attempt{At: now, StatusCode: 500, DurationMS: 3, Response: "the <b>answer</b>"})
	switch state {
	case task.Dead:
		err = d.Dead(g.t.Context())
	case task.Done:
		d.Record().DeliveredAt = now
		err = d.Done(g.t.Context())
	default:
		d.Record().NextAttemptAt = now.Add(time.Hour)
		err = d.Retry(g.t.Context(), d.Record().NextAttemptAt)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return rec.ID
}

// start stores a running task.
func (g *gateway) start(rec *task.Record) (*task.Record, engine.Lease) {
	g.t.Helper()
	if rec.Queue == "" {
		rec.StartedAt = rec.CreatedAt
		l, err := g.engine.Claim(g.t.Context(), rec)
		if err != nil {
			g.t.Fatal(err)
		}
		return rec, l
	}
	rec.Request = &task.Request{Method: "POST", URI: "/run"}
	if _, _, err := g.engine.Enqueue(g.t.Context(), rec, strings.NewReader(""), engine.EnqueueOptions{}); err != nil {
		g.t.Fatal(err)
	}
	jobs, err := g.engine.Jobs(rec.Queue).Next(g.t.Context(), 1, 3)
	if err != nil || len(jobs) != 1 || jobs[0].Record.ID != rec.ID {
		g.t.Fatalf("started are %d jobs: %v", len(jobs), err)
	}
	return jobs[0].Record, jobs[0].Lease
}

func (g *gateway) ids(path string) (ids []string) {
	g.t.Helper()
	for _, doc := range g.ask(http.MethodGet, path, http.StatusOK)["tasks"].([]any) {
		ids = append(ids, doc.(map[string]any)["task_id"].(string))
	}
	return ids
}
