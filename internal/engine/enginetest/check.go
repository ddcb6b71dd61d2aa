package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

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
		f.Fatalf("task %s is %s, want %s", id, rec.State, want)
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

// becomesRemoved waits until the task does not exist any more.
func (f *fixture) becomesRemoved(id string) {
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

// gone checks that the task has been removed without a trace.
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
			f.Fatalf("a page of at most %d tasks has %d, and scanned %d", limit, len(p.Tasks), p.Scanned)
		}
		all = append(all, p.Tasks...)
		if p.Next == "" {
			return all
		}
		if p.Next == after {
			f.Fatalf("the cursor %q returns itself", after)
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

// blocks checks that wait waits until its context ends.
func (f *fixture) blocks(what string, wait func(ctx context.Context) error) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, quiet)
	defer cancel()
	if err := wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		f.Fatalf("%s: the error is %v, not that of the context", what, err)
	}
}

// noJob checks that a queue hands out no job.
func (f *fixture) noJob(queue string) {
	f.Helper()
	f.blocks("no job", func(ctx context.Context) error {
		jobs, err := f.e.Jobs(queue).Next(ctx, 10, 3)
		if len(jobs) > 0 {
			f.Fatalf("job %s is handed out", jobs[0].Record.ID)
		}
		return err
	})
}

// noDue checks that DueHosts reports no host.
func (f *fixture) noDue() {
	f.Helper()
	f.blocks("no host is due", func(ctx context.Context) error {
		due, err := f.e.DueHosts(ctx, 10)
		if len(due) > 0 {
			f.Fatalf("%s is reported", due[0].Host)
		}
		return err
	})
}

// noneToTake checks that Take returns no delivery of a host.
func (f *fixture) noneToTake(host string) {
	f.Helper()
	ds, err := f.e.Take(f.ctx, host, 10)
	f.must(err)
	if len(ds) > 0 {
		f.Fatalf("task %s is taken", ds[0].Record().ID)
	}
}

// same checks that two records are equal except for their versions.
func (f *fixture) same(got, want *task.Record) {
	f.Helper()
	a, b := clone(got), clone(want)
	if x, y := encode(a), encode(b); !bytes.Equal(x, y) {
		f.Fatalf("the record is\n%s\nnot\n%s", x, y)
	}
}

// sameIn checks that two records are equal except for their versions and states.
func (f *fixture) sameIn(got, want *task.Record, state task.State) {
	f.Helper()
	want = clone(want)
	want.State = state
	f.same(got, want)
}
