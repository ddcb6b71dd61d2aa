package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// SeedVariable is the environment variable whose value, a number, replaces the
// random seed of a case.
const SeedVariable = "ENGINETEST_SEED"

// patience bounds what a case waits for.
var patience = 60 * time.Second

// quiet is how long nothing may happen to be taken for nothing.
const quiet = 60 * time.Millisecond

// host is where the callbacks of most cases go.
const host = "receiver.example:443"

// fixture is a store of one case and the engine that has it open.
type fixture struct {
	*testing.T
	opener Opener
	store  *Store
	ctx    context.Context
	e      engine.Engine
}

func newFixture(t *testing.T, o Opener) *fixture {
	ctx, cancel := context.WithTimeout(t.Context(), patience+2*o.LeaseExpiry)
	t.Cleanup(cancel)
	f := &fixture{T: t, opener: o, ctx: ctx, store: &Store{Dir: t.TempDir(), Settings: engine.Settings{
		Retention: 24 * time.Hour, RetentionCount: 100_000, Dead: 30 * 24 * time.Hour, DeadCount: 10_000,
		KeepResults: true,
	}}}
	f.e = o.Open(t, f.store)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.e.Close(ctx); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return f
}

// other returns a fixture on a second, empty store.
func (f *fixture) other() *fixture {
	f.Helper()
	return newFixture(f.T, f.opener)
}

// reopen closes the engine and opens the store again.
func (f *fixture) reopen() {
	f.Helper()
	f.must(f.e.Close(f.ctx))
	f.e = f.opener.Open(f.T, f.store)
}

// die kills the engine and opens the store again. It returns the dead engine.
func (f *fixture) die() engine.Engine {
	f.Helper()
	dead := f.e
	f.opener.Kill(f.T, dead)
	f.e = f.opener.Open(f.T, f.store)
	return dead
}

// reconfigure changes the settings.
func (f *fixture) reconfigure(change func(*engine.Settings)) {
	f.Helper()
	change(&f.store.Settings)
	f.must(f.e.Reconfigure(f.ctx, f.store.Settings))
}

// random returns a source of random numbers whose seed is logged.
func (f *fixture) random() *rand.Rand {
	f.Helper()
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv(SeedVariable), 10, 64); err == nil {
		seed = s
	}
	f.Logf("%s=%d", SeedVariable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// is checks that err wraps want.
func (f *fixture) is(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("the error is %v, not %v", err, want)
	}
}

// client returns a waiting client's task.
func (f *fixture) client() *task.Record {
	now := time.Now().UTC().Truncate(time.Millisecond)
	return &task.Record{
		Task:     task.Task{ID: newID(), CreatedAt: now, StartedAt: now, CallbackHost: host},
		Callback: &task.Callback{URL: "https://" + host + "/hook", MaxResult: 1 << 20, Header: [][2]string{{"x-a", "b"}}},
		Route:    "route", Span: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
}

// queued returns a queue's task.
func (f *fixture) queued(queue string) *task.Record {
	rec := f.client()
	rec.Queue, rec.Route, rec.StartedAt, rec.Timeout = queue, queue, time.Time{}, time.Minute
	rec.Request = &task.Request{
		Method: "POST", URI: "/jobs?x=1", Proto: "HTTP/1.1", Host: "app.example",
		Header: http.Header{"Authorization": {"secret"}}, Vars: map[string]string{"k": "v"},
	}
	return rec
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// claim claims a waiting client's task.
func (f *fixture) claim() (*task.Record, engine.Lease) {
	f.Helper()
	rec := f.client()
	l, err := f.e.Claim(f.ctx, rec)
	f.must(err)
	return rec, l
}

// enqueue stores a queue's task.
func (f *fixture) enqueue(rec *task.Record) *task.Record {
	f.Helper()
	body := "request of " + rec.ID
	rec.Request.Size = int64(len(body))
	id, created, err := f.e.Enqueue(f.ctx, rec, strings.NewReader(body), engine.EnqueueOptions{})
	f.must(err)
	if id != rec.ID || !created {
		f.Fatalf("enqueued as %q, created: %v", id, created)
	}
	return rec
}

// next waits for the next job of a queue.
func (f *fixture) next(queue string, maxStarts int) engine.Job {
	f.Helper()
	jobs, err := f.e.Jobs(queue).Next(f.ctx, 1, maxStarts)
	f.must(err)
	if len(jobs) != 1 {
		f.Fatalf("%d jobs", len(jobs))
	}
	return jobs[0]
}

// settled returns rec with a verdict.
func settled(rec *task.Record, v task.Verdict, result string) *task.Record {
	rec = clone(rec)
	rec.Status, rec.UpstreamStatus, rec.FinishedAt = v, 200, time.Now().UTC().Truncate(time.Millisecond)
	if v != task.Complete {
		rec.Error, rec.UpstreamStatus = "the endpoint did not answer", 0
	}
	rec.Result = &task.Result{ContentType: "text/plain", Size: int64(len(result)), Kept: int64(len(result))}
	rec.ForgetRequest()
	return rec
}

// settle settles a lease as COMPLETE.
func (f *fixture) settle(rec *task.Record, l engine.Lease) *task.Record {
	f.Helper()
	return f.settleWith(rec, l, "result of "+rec.ID)
}

func (f *fixture) settleWith(rec *task.Record, l engine.Lease, result string) *task.Record {
	f.Helper()
	rec = settled(rec, task.Complete, result)
	f.must(l.Settle(f.ctx, rec, strings.NewReader(result)))
	return rec
}

// owe makes a task whose callback is due.
func (f *fixture) owe() *task.Record {
	f.Helper()
	rec, l := f.claim()
	return f.settle(rec, l)
}

// oweTo is owe with another host.
func (f *fixture) oweTo(host string) *task.Record {
	f.Helper()
	rec := f.client()
	rec.CallbackHost, rec.Callback.URL = host, "https://"+host+"/hook"
	l, err := f.e.Claim(f.ctx, rec)
	f.must(err)
	return f.settle(rec, l)
}

// take waits until it has taken n deliveries of a host.
func (f *fixture) take(host string, n int) []engine.Delivery {
	f.Helper()
	var all []engine.Delivery
	for {
		got, err := f.e.Take(f.ctx, host, n-len(all)+1)
		f.must(err)
		if all = append(all, got...); len(all) >= n {
			break
		}
		// Take returned fewer than it was asked for: more are reported.
		_, err = f.e.DueHosts(f.ctx, 1000)
		f.must(err)
	}
	if len(all) > n {
		f.Fatalf("%d deliveries of %s are due, not %d", len(all), host, n)
	}
	return all
}

// done makes a task whose callback was delivered.
func (f *fixture) done() *task.Record {
	f.Helper()
	f.owe()
	d := f.take(host, 1)[0]
	rec := d.Record()
	rec.AddAttempt(task.Attempt{At: time.Now().UTC().Truncate(time.Millisecond), StatusCode: 200})
	rec.DeliveredAt = time.Now().UTC().Truncate(time.Millisecond)
	f.must(d.Done(f.ctx))
	return rec
}

// dead makes a dead letter.
func (f *fixture) dead() *task.Record {
	f.Helper()
	f.owe()
	d := f.take(host, 1)[0]
	d.Record().AddAttempt(task.Attempt{At: time.Now().UTC().Truncate(time.Millisecond), StatusCode: 410})
	f.must(d.Dead(f.ctx))
	return d.Record()
}

// get returns a task.
func (f *fixture) get(id string) *task.Record {
	f.Helper()
	rec, err := f.e.Get(f.ctx, id)
	f.must(err)
	return rec
}

// in checks that a task is in a state.
func (f *fixture) in(id string, want task.State) *task.Record {
	f.Helper()
	rec := f.get(id)
	if rec.State != want {
		f.Fatalf("task %s is %s, not %s", id, rec.State, want)
	}
	return rec
}

// becomes waits until a task is in a state.
func (f *fixture) becomes(id string, want task.State) *task.Record {
	f.Helper()
	var since uint64
	for {
		rec, err := f.e.Wait(f.ctx, id, since)
		if err != nil {
			f.Fatalf("waiting for task %s to become %s: %v", id, want, err)
		}
		if rec.State == want {
			return rec
		}
		since = rec.Version
	}
}

// goes waits until a task is removed.
func (f *fixture) goes(id string) {
	f.Helper()
	var since uint64
	for {
		rec, err := f.e.Wait(f.ctx, id, since)
		if errors.Is(err, engine.ErrNotFound) {
			return
		} else if err != nil {
			f.Fatalf("waiting for task %s to be removed: %v", id, err)
		}
		since = rec.Version
	}
}

// gone checks that there is no trace of a task.
func (f *fixture) gone(id string) {
	f.Helper()
	_, err := f.e.Get(f.ctx, id)
	f.is(err, engine.ErrNotFound)
	for _, p := range []engine.Part{engine.RequestBody, engine.ResultBody} {
		_, err := f.e.Open(f.ctx, id, p)
		f.is(err, engine.ErrNotFound)
	}
	if slices.Contains(ids(f.list(engine.Filter{})), id) {
		f.Fatalf("task %s is listed", id)
	}
}

// body returns a body of a task.
func (f *fixture) body(id string, p engine.Part) []byte {
	f.Helper()
	r, err := f.e.Open(f.ctx, id, p)
	f.must(err)
	return f.read(r)
}

func (f *fixture) read(r io.ReadCloser) []byte {
	f.Helper()
	b, err := io.ReadAll(r)
	f.must(errors.Join(err, r.Close()))
	return b
}

// noBody checks that a body is not kept.
func (f *fixture) noBody(id string, p engine.Part) {
	f.Helper()
	r, err := f.e.Open(f.ctx, id, p)
	if err == nil {
		r.Close()
	}
	f.is(err, engine.ErrNotFound)
}

// list returns all tasks that match, page by page.
func (f *fixture) list(filter engine.Filter) []*task.Record {
	f.Helper()
	return f.pages(filter, 100)
}

func (f *fixture) pages(filter engine.Filter, limit int) []*task.Record {
	f.Helper()
	var all []*task.Record
	var after engine.Cursor
	for {
		p, err := f.e.List(f.ctx, filter, after, limit)
		f.must(err)
		if len(p.Tasks) > limit || p.Scanned < len(p.Tasks) {
			f.Fatalf("a page of %d has %d tasks of %d scanned", limit, len(p.Tasks), p.Scanned)
		}
		all = append(all, p.Tasks...)
		if p.Next == "" {
			return all
		}
		if p.Next == after {
			f.Fatalf("the cursor %q leads to itself", after)
		}
		after = p.Next
	}
}

func ids(recs []*task.Record) []string {
	out := make([]string, len(recs))
	for i, r := range recs {
		out[i] = r.ID
	}
	return out
}

// silent checks that wait does nothing but wait until its context ends.
func (f *fixture) silent(what string, wait func(ctx context.Context) error) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, quiet)
	defer cancel()
	if err := wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.Fatalf("%s: the error is %v, not that of the context", what, err)
	}
}

// noJob checks that no job of a queue is handed out.
func (f *fixture) noJob(queue string) {
	f.Helper()
	f.silent("no job", func(ctx context.Context) error {
		jobs, err := f.e.Jobs(queue).Next(ctx, 10, 3)
		if len(jobs) > 0 {
			f.Fatalf("job %s is handed out", jobs[0].Record.ID)
		}
		return err
	})
}

// noDue checks that no host is reported.
func (f *fixture) noDue() {
	f.Helper()
	f.silent("no host is due", func(ctx context.Context) error {
		due, err := f.e.DueHosts(ctx, 10)
		if len(due) > 0 {
			f.Fatalf("%s is reported", due[0].Host)
		}
		return err
	})
}

// noneToTake checks that a host has nothing to take.
func (f *fixture) noneToTake(host string) {
	f.Helper()
	ds, err := f.e.Take(f.ctx, host, 10)
	f.must(err)
	if len(ds) > 0 {
		f.Fatalf("task %s is taken", ds[0].Record().ID)
	}
}

// same checks that two records are equal, but for their versions.
func (f *fixture) same(got, want *task.Record) {
	f.Helper()
	a, b := clone(got), clone(want)
	if x, y := encode(a), encode(b); !bytes.Equal(x, y) {
		f.Fatalf("the record is\n%s\nnot\n%s", x, y)
	}
}

// sameBut is same, but for the state.
func (f *fixture) sameIn(got, want *task.Record, state task.State) {
	f.Helper()
	want = clone(want)
	want.State = state
	f.same(got, want)
}

// clone copies a record deeply, without its version.
func clone(rec *task.Record) *task.Record {
	c := *rec
	c.Version = 0
	c.Attempts = slices.Clone(rec.Attempts)
	c.Redelivered = slices.Clone(rec.Redelivered)
	if rec.Callback != nil {
		cb := *rec.Callback
		cb.Header = slices.Clone(cb.Header)
		c.Callback = &cb
	}
	if rec.Result != nil {
		r := *rec.Result
		r.Header = r.Header.Clone()
		c.Result = &r
	}
	if rec.Request != nil {
		r := *rec.Request
		r.Header = r.Header.Clone()
		c.Request = &r
	}
	return &c
}

// encode returns a record's fields for comparison. The times are those of UTC.
func encode(rec *task.Record) []byte {
	b, err := json.Marshal(rec)
	if err != nil {
		panic(err)
	}
	return b
}

// closer to whole milliseconds, as all times of the suite.
func in(d time.Duration) time.Time { return time.Now().UTC().Add(d).Truncate(time.Millisecond) }
