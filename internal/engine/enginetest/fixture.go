package enginetest

import (
	"context"
	"encoding/json"
	"errors"
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

// SeedVariable is the environment variable that replaces the random seed of a case. Its
// value is a number.
const SeedVariable = "ENGINETEST_SEED"

// patience bounds what a case waits for.
var patience = 5 * time.Minute

// quiet is how long a case waits before it concludes that nothing happens.
const quiet = 60 * time.Millisecond

// host is the destination of the callbacks of most cases.
const host = "receiver.example:443"

// fixture is the store of one case and the engine that has it open.
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

// other returns a fixture with a second, empty store.
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

// crash kills the engine and opens the store again. It returns the dead engine.
func (f *fixture) crash() engine.Engine {
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
		f.Fatalf("the error is %v, want %v", err, want)
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
	rec.DropRequest()
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

// delivering creates a task whose callback is due.
func (f *fixture) delivering() *task.Record {
	f.Helper()
	rec, l := f.claim()
	return f.settle(rec, l)
}

// deliveringTo creates a task whose callback to a host is due.
func (f *fixture) deliveringTo(host string) *task.Record {
	f.Helper()
	rec := f.client()
	rec.CallbackHost, rec.Callback.URL = host, "https://"+host+"/hook"
	l, err := f.e.Claim(f.ctx, rec)
	f.must(err)
	return f.settle(rec, l)
}

// take waits until n deliveries of a host have been taken.
func (f *fixture) take(host string, n int) []engine.Delivery {
	f.Helper()
	var all []engine.Delivery
	for {
		got, err := f.e.Take(f.ctx, host, n-len(all)+1)
		f.must(err)
		if all = append(all, got...); len(all) >= n {
			break
		}
		// Take returned fewer than asked for, so that the host is reported again.
		_, err = f.e.DueHosts(f.ctx, 1000)
		f.must(err)
	}
	if len(all) > n {
		f.Fatalf("%d deliveries of %s are due, want %d", len(all), host, n)
	}
	return all
}

// done creates a task whose callback was delivered.
func (f *fixture) done() *task.Record {
	f.Helper()
	f.delivering()
	d := f.take(host, 1)[0]
	rec := d.Record()
	rec.AddAttempt(task.Attempt{At: time.Now().UTC().Truncate(time.Millisecond), StatusCode: 200})
	rec.DeliveredAt = time.Now().UTC().Truncate(time.Millisecond)
	f.must(d.Done(f.ctx))
	return rec
}

// dead creates a dead letter.
func (f *fixture) dead() *task.Record {
	f.Helper()
	f.delivering()
	d := f.take(host, 1)[0]
	d.Record().AddAttempt(task.Attempt{At: time.Now().UTC().Truncate(time.Millisecond), StatusCode: 410})
	f.must(d.Dead(f.ctx))
	return d.Record()
}

// clone returns a deep copy of a record without its version.
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

// encode encodes a record for comparison, with times in UTC.
func encode(rec *task.Record) []byte {
	b, err := json.Marshal(rec)
	if err != nil {
		panic(err)
	}
	return b
}

// in returns the time after d in whole milliseconds, like all times of the suite.
func in(d time.Duration) time.Time { return time.Now().UTC().Add(d).Truncate(time.Millisecond) }
