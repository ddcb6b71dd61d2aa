package sqlite

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// openTest opens a store and closes it at the end of the test.
func openTest(t *testing.T, cfg Config) *store {
	t.Helper()
	if cfg.Folder == "" {
		cfg.Folder = t.TempDir()
	}
	s, err := open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeTest(t, s) })
	return s
}

func closeTest(t *testing.T, s *store) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// newTask returns a task whose callback goes to a host.
func newTask(host string) *task.Record {
	rec := &task.Record{Task: task.Task{ID: uuid.Must(uuid.NewV7()).String(), CreatedAt: time.Now().UTC(), CallbackHost: host}}
	if host != "" {
		rec.Callback = &task.Callback{URL: "https://" + host + "/"}
	}
	return rec
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// settled claims a task and settles it with a result.
func settled(t *testing.T, s *store, rec *task.Record, result string) {
	t.Helper()
	l, err := s.Claim(t.Context(), rec)
	must(t, err)
	rec.Status, rec.Result = task.Complete, &task.Result{Size: int64(len(result))}
	must(t, l.Settle(t.Context(), rec, strings.NewReader(result)))
}

// takeOne takes the next delivery of a host.
func takeOne(t *testing.T, s *store, host string) engine.Delivery {
	t.Helper()
	taken, err := s.Take(t.Context(), host, 1)
	must(t, err)
	if len(taken) != 1 {
		t.Fatalf("%d deliveries were taken, not 1", len(taken))
	}
	return taken[0]
}

func TestTaskIsStoredAtEachStep(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	rec := newTask("a.test:443")
	settled(t, s, rec, "result")
	hosts, err := s.DueHosts(t.Context(), 10)
	must(t, err)
	if len(hosts) != 1 || hosts[0].Host != "a.test:443" || hosts[0].Due != 1 {
		t.Fatalf("due are %+v", hosts)
	}
	d := takeOne(t, s, "a.test:443")
	r, err := d.Result(t.Context())
	must(t, err)
	if body, err := io.ReadAll(r); err != nil || string(body) != "result" {
		t.Errorf("the result is %q, %v", body, err)
	}
	d.Record().AddAttempt(task.Attempt{StatusCode: 500})
	must(t, d.Retry(t.Context(), time.Now()))
	d = takeOne(t, s, "a.test:443")
	if d.Record().Tries != 1 {
		t.Errorf("it was attempted %d times, not once", d.Record().Tries)
	}
	must(t, d.Done(t.Context()))
	got, err := s.Get(t.Context(), rec.ID)
	must(t, err)
	if got.State != task.Done || got.Version != 4 {
		t.Errorf("it is %s, version %d", got.State, got.Version)
	}
}
