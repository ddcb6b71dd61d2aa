package enginetest

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var waitSuite = suite{"wait", []testcase{
	{"wait without a version", waitAtOnce},
	{"each transition", waitEach},
	{"removed task", waitRemoved},
	{"many waits", waitMany},
	{"context ends", waitContext},
	{"versions are unique", waitVersions},
}}

func waitAtOnce(f *fixture) {
	rec, _ := f.claim()
	got, err := f.e.Wait(f.ctx, rec.ID, 0)
	f.must(err)
	f.sameIn(got, rec, task.Running)
	if got.Version != f.get(rec.ID).Version {
		f.Error("Wait and Get differ in the version")
	}
	again, err := f.e.Wait(f.ctx, rec.ID, got.Version+1)
	f.must(err)
	f.same(again, got)
}

// changes are the transitions of one task in order, each returning the state that it
// leads to.
func changes(f *fixture, id string) []func() task.State {
	var job engine.Job
	var d engine.Delivery
	act := func(k engine.ActionKind, to task.State) func() task.State {
		return func() task.State {
			f.must(f.e.Act(f.ctx, id, engine.Action{Kind: k}))
			return to
		}
	}
	run := func() task.State { job = f.next("q", 9); return task.Running }
	take := func() { d = f.take(host, 1)[0] }
	return []func() task.State{
		run,
		func() task.State { f.must(job.Lease.Release(f.ctx)); return task.Queued },
		run,
		func() task.State { f.must(job.Lease.Requeue(f.ctx, job.Record, time.Time{})); return task.Queued },
		run,
		func() task.State { f.settle(job.Record, job.Lease); return task.Delivering },
		func() task.State { take(); f.must(d.Retry(f.ctx, in(time.Hour))); return task.Delivering },
		act(engine.RetryNow, task.Delivering),
		func() task.State { take(); f.must(d.Done(f.ctx)); return task.Done },
		act(engine.Redeliver, task.Delivering),
		func() task.State { take(); f.must(d.Dead(f.ctx)); return task.Dead },
		act(engine.Redeliver, task.Delivering),
		act(engine.Stop, task.Dead),
	}
}

func waitEach(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	since := f.get(rec.ID).Version
	for i, change := range changes(f, rec.ID) {
		type answer struct {
			rec *task.Record
			err error
		}
		got := make(chan answer)
		go func() {
			rec, err := f.e.Wait(f.ctx, rec.ID, since)
			got <- answer{rec, err}
		}()
		want := change()
		a := <-got
		f.must(a.err)
		if a.rec.Version == since {
			f.Fatalf("change %d: Wait returned without a change", i)
		}
		// Taking a delivery may count as a change.
		now := f.in(rec.ID, want)
		for a.rec.Version != now.Version {
			a.rec, a.err = f.e.Wait(f.ctx, rec.ID, a.rec.Version)
			f.must(a.err)
		}
		f.same(a.rec, now)
		since = now.Version
	}
	f.blocks("no change", func(ctx context.Context) error {
		_, err := f.e.Wait(ctx, rec.ID, since)
		return err
	})
}

func waitRemoved(f *fixture) {
	done := f.done()
	claimed, l := f.claim()
	for _, c := range []struct {
		id     string
		remove func() error
	}{
		{done.ID, func() error { return f.e.Act(f.ctx, done.ID, engine.Action{Kind: engine.Delete}) }},
		{claimed.ID, func() error { return l.Release(f.ctx) }},
	} {
		since := f.get(c.id).Version
		got := make(chan error)
		go func() {
			_, err := f.e.Wait(f.ctx, c.id, since)
			got <- err
		}()
		f.must(c.remove())
		f.is(<-got, engine.ErrNotFound)
	}
}

func waitMany(f *fixture) {
	rec, l := f.claim()
	since := f.get(rec.ID).Version
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			got, err := f.e.Wait(f.ctx, rec.ID, since)
			if err != nil || got.State != task.Delivering {
				f.Errorf("Wait returned %v", err)
			}
		})
	}
	f.settle(rec, l)
	wg.Wait()
}

func waitContext(f *fixture) {
	rec, l := f.claim()
	since := f.get(rec.ID).Version
	f.blocks("the task does not change", func(ctx context.Context) error {
		_, err := f.e.Wait(ctx, rec.ID, since)
		return err
	})
	f.settle(rec, l)
}

func waitVersions(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	seen := map[uint64]bool{f.get(rec.ID).Version: true}
	for i, change := range changes(f, rec.ID) {
		change()
		v := f.get(rec.ID).Version
		if seen[v] || v == 0 {
			f.Errorf("change %d: the version %d", i, v)
		}
		seen[v] = true
	}
	v := f.get(rec.ID).Version
	f.crash()
	if got := f.get(rec.ID).Version; got != v {
		f.Errorf("the version is %d after a restart, and was %d", got, v)
	}
	j := f.enqueue(f.queued("q"))
	v = f.get(j.ID).Version
	f.next("q", 3)
	f.crash()
	if got, err := f.e.Wait(f.ctx, j.ID, v); err != nil || got.Version == v {
		f.Errorf("a requeued task has the version from before: %v", err)
	}
}
