package migrate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func openStore(t *testing.T) engine.Engine {
	t.Helper()
	e, err := sqlite.Open(t.Context(), sqlite.Config{
		Folder: t.TempDir(), Sync: time.Second,
		Settings: engine.Settings{
			Retention: time.Hour, RetentionCount: 10_000, Dead: time.Hour, DeadCount: 10_000, KeepResults: true,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("closing the engine: %v", err)
		}
	})
	return e
}

// filler stores random tasks.
type filler struct {
	t      *testing.T
	e      engine.Engine
	random *rand.Rand
}

// body returns random bytes. Some bodies are too large for a database row.
func (f *filler) body() []byte {
	size := f.random.IntN(1000)
	if f.random.IntN(10) == 0 {
		size = 300_000 + f.random.IntN(1000)
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(f.random.Uint32())
	}
	return b
}

func (f *filler) record() *task.Record {
	rec := &task.Record{Task: task.Task{
		ID: uuid.Must(uuid.NewV7()).String(), CreatedAt: time.Now().UTC(),
		CallbackHost: fmt.Sprintf("h%d.example:443", f.random.IntN(5)),
	}}
	rec.Callback = &task.Callback{URL: "https://" + rec.CallbackHost + "/hook", Format: "form"}
	return rec
}

func (f *filler) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// queued stores a queue's task. Some tasks have a key, belong to a schedule or are
// ready later.
func (f *filler) queued() {
	f.t.Helper()
	rec, opts := f.record(), engine.EnqueueOptions{}
	rec.Queue = fmt.Sprintf("q%d", f.random.IntN(3))
	rec.Request = &task.Request{Method: "POST", URI: "/run", Header: map[string][]string{"X": {"\xff<"}}}
	switch f.random.IntN(4) {
	case 0:
		opts.Key = &engine.Key{Hash: rec.ID, Digest: func() string { return "digest" }}
	case 1:
		rec.NextAttemptAt = rec.CreatedAt.Add(time.Hour)
	case 2:
		rec.Schedule = rec.ID
	}
	_, _, err := f.e.Enqueue(f.t.Context(), rec, bytes.NewReader(f.body()), opts)
	f.must(err)
}

// settled stores a waiting client's task that is delivering, done or dead.
func (f *filler) settled() {
	f.t.Helper()
	rec := f.record()
	l, err := f.e.Claim(f.t.Context(), rec)
	f.must(err)
	rec.Status, rec.FinishedAt = task.Complete, rec.CreatedAt
	rec.Result = &task.Result{ContentType: "application/json"}
	f.must(l.Settle(f.t.Context(), rec, bytes.NewReader(f.body())))
	if f.random.IntN(4) == 0 {
		return // due
	}
	due, err := f.e.Take(f.t.Context(), rec.CallbackHost, 1)
	f.must(err)
	for _, d := range due {
		d.Record().AddAttempt(task.Attempt{At: rec.CreatedAt, StatusCode: 500})
		switch f.random.IntN(3) {
		case 0:
			f.must(d.Done(f.t.Context()))
		case 1:
			f.must(d.Dead(f.t.Context()))
		default:
			d.Record().NextAttemptAt = rec.CreatedAt.Add(time.Hour)
			f.must(d.Retry(f.t.Context(), d.Record().NextAttemptAt))
		}
	}
}

// fill stores random tasks, keys, schedules and pauses.
func (f *filler) fill(n int) {
	f.t.Helper()
	for range n {
		if f.random.IntN(2) == 0 {
			f.queued()
		} else {
			f.settled()
		}
	}
	f.must(f.e.Pause(f.t.Context(), engine.Target{Queue: "q1"}, true))
	f.must(f.e.Pause(f.t.Context(), engine.Target{Host: "h1.example:443"}, true))
	now := time.Now().UTC().Truncate(time.Second)
	for i := range 5 {
		schedule := fmt.Sprintf("schedule-%d", i)
		_, err := f.e.NextRun(f.t.Context(), schedule, now)
		f.must(err)
		if i%2 == 0 {
			f.must(f.e.Advance(f.t.Context(), schedule, now, now.Add(time.Hour)))
		}
	}
}

// contents is everything that a migration copies, for comparison.
type contents struct {
	order  []string          // IDs, newest first
	tasks  map[string]string // records by ID
	bodies map[string]string
	keys   []string
	runs   map[string]engine.Run
	paused []string
}

func read(t *testing.T, e engine.Engine) contents {
	t.Helper()
	c := contents{tasks: make(map[string]string), bodies: make(map[string]string)}
	for cursor := engine.Cursor(""); ; {
		page, err := e.List(t.Context(), engine.Filter{}, cursor, 50)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range page.Tasks {
			text, err := json.Marshal(rec)
			if err != nil {
				t.Fatal(err)
			}
			c.order = append(c.order, rec.ID)
			c.tasks[rec.ID] = string(text)
			c.bodies[rec.ID] = readBody(t, e, rec.ID, engine.RequestBody) + "|" + readBody(t, e, rec.ID, engine.ResultBody)
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	for cursor := engine.Cursor(""); ; {
		keys, next, err := e.Keys(t.Context(), cursor, 50)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			c.keys = append(c.keys, fmt.Sprint(k.Hash, k.Digest, k.TaskID, k.Expires.Unix()))
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	slices.Sort(c.keys)
	var err error
	if c.runs, err = e.Runs(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.paused = paused(t, e)
	return c
}

func readBody(t *testing.T, e engine.Engine, id string, part engine.Part) string {
	t.Helper()
	r, err := e.Open(t.Context(), id, part)
	if errors.Is(err, engine.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func paused(t *testing.T, e engine.Engine) (names []string) {
	t.Helper()
	queues, err := e.Queues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		if q.Paused {
			names = append(names, q.Queue)
		}
	}
	hosts, _, err := e.Hosts(t.Context(), "", 50)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Paused {
			names = append(names, h.Host)
		}
	}
	slices.Sort(names)
	return names
}

// compare reports the differences between the source and the target.
func compare(t *testing.T, from, to contents) {
	t.Helper()
	if !slices.Equal(from.order, to.order) {
		t.Errorf("the %d tasks are not listed as the %d were", len(to.order), len(from.order))
	}
	for id, want := range from.tasks {
		if got := to.tasks[id]; got != want {
			t.Errorf("the task %s\nis  %s\nnot %s", id, got, want)
		}
		if got, want := to.bodies[id], from.bodies[id]; got != want {
			t.Errorf("the bodies of task %s have %d bytes, want %d, or others", id, len(got), len(want))
		}
	}
	if !slices.Equal(from.keys, to.keys) {
		t.Errorf("the keys are %v, want %v", to.keys, from.keys)
	}
	if !maps.EqualFunc(from.runs, to.runs, func(a, b engine.Run) bool { return a.Last.Equal(b.Last) && a.Next.Equal(b.Next) }) {
		t.Errorf("the run times are %v, want %v", to.runs, from.runs)
	}
	if !slices.Equal(from.paused, to.paused) {
		t.Errorf("paused are %v, want %v", to.paused, from.paused)
	}
}
