package enginetest

import (
	"context"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var claimSuite = suite{"claim", []testcase{
	{"claimed task is running", claimRuns},
	{"settle stores verdict, result and delivery", settleStores},
	{"settle without a callback", settleWithoutCallback},
	{"settle without a result", settleWithoutResult},
	{"release a claim", releaseLeavesNothing},
	{"lease is used once", leaseOnce},
	{"holder crashes", holderCrashes},
	{"holder closes", holderCloses},
	{"crashed holder cannot settle", holderComesBack},
	{"verdict survives a crash", settledBeforeCrash},
	{"OnLost after a cancel", onLostCancel},
	{"OnLost of a lost lease", onLostLate},
	{"records are copies", recordsAreCopies},
	{"one secret per store", secretStays},
}}

func claimRuns(f *fixture) {
	rec, _ := f.claim()
	got := f.in(rec.ID, task.Running)
	f.sameIn(got, rec, task.Running)
	if got.Version == 0 {
		f.Error("the version is zero")
	}
	f.noneToTake(host)
	f.noBody(rec.ID, engine.ResultBody)
}

func settleStores(f *fixture) {
	for _, v := range []task.Verdict{task.Complete, task.Failed, task.TimedOut} {
		rec, l := f.claim()
		before := f.get(rec.ID).Version
		want := settled(rec, v, "the result")
		f.must(l.Settle(f.ctx, want, strings.NewReader("the result")))
		got := f.in(rec.ID, task.Delivering)
		f.sameIn(got, want, task.Delivering)
		if got.Version == before {
			f.Error("the version did not change")
		}
		if b := f.body(rec.ID, engine.ResultBody); string(b) != "the result" {
			f.Errorf("the result is %q", b)
		}
		d := f.take(host, 1)[0]
		f.sameIn(d.Record(), want, task.Delivering)
		r, err := d.Result(f.ctx)
		f.must(err)
		if b := f.read(r); string(b) != "the result" {
			f.Errorf("the delivery's result is %q", b)
		}
		f.must(d.Done(f.ctx))
	}
}

func settleWithoutCallback(f *fixture) {
	rec, l := f.claim()
	want := settled(rec, task.Complete, "x")
	want.Callback, want.CallbackHost = nil, ""
	f.must(l.Settle(f.ctx, want, strings.NewReader("x")))
	f.sameIn(f.in(rec.ID, task.Done), want, task.Done)
	f.noneToTake(host)
}

func settleWithoutResult(f *fixture) {
	rec, l := f.claim()
	want := settled(rec, task.TimedOut, "")
	want.Result = nil
	f.must(l.Settle(f.ctx, want, nil))
	f.sameIn(f.in(rec.ID, task.Delivering), want, task.Delivering)
	f.noBody(rec.ID, engine.ResultBody)
	_, err := f.take(host, 1)[0].Result(f.ctx)
	f.is(err, engine.ErrNotFound)
}

func releaseLeavesNothing(f *fixture) {
	rec, l := f.claim()
	f.must(l.Release(f.ctx))
	f.gone(rec.ID)
	f.crash()
	f.gone(rec.ID)
}

// leaseSteps are the steps that end a lease.
var leaseSteps = []struct {
	name string
	do   func(f *fixture, rec *task.Record, l engine.Lease) error
}{
	{"settle", func(f *fixture, rec *task.Record, l engine.Lease) error {
		return l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r"))
	}},
	{"requeue", func(f *fixture, rec *task.Record, l engine.Lease) error {
		return l.Requeue(f.ctx, rec, in(time.Hour))
	}},
	{"release", func(f *fixture, _ *task.Record, l engine.Lease) error { return l.Release(f.ctx) }},
	{"enqueue", func(f *fixture, rec *task.Record, l engine.Lease) error {
		q := f.queued("taken-over")
		q.ID, q.CreatedAt, q.NextAttemptAt = rec.ID, rec.CreatedAt, in(time.Hour)
		_, _, err := l.Enqueue(f.ctx, q, strings.NewReader("b"), engine.EnqueueOptions{})
		return err
	}},
}

func leaseOnce(f *fixture) {
	for _, first := range leaseSteps {
		for _, second := range leaseSteps {
			var rec *task.Record
			var l engine.Lease
			if first.name == "enqueue" {
				rec, l = f.claim()
			} else {
				f.enqueue(f.queued("q"))
				j := f.next("q", 5)
				rec, l = j.Record, j.Lease
			}
			f.must(first.do(f, rec, l))
			before := f.get(rec.ID)
			if err := second.do(f, rec, l); err == nil {
				f.Errorf("%s after %s is not refused", second.name, first.name)
			} else {
				f.is(err, engine.ErrLost)
			}
			if after := f.get(rec.ID); after.Version != before.Version {
				f.Errorf("%s after %s changed the task", second.name, first.name)
			}
			if first.name == "release" { // it is the first of the queue again
				f.must(f.next("q", 5).Lease.Requeue(f.ctx, rec, in(time.Hour)))
			}
		}
	}
}

// failedByCrash checks a waiting client's task after its holder crashed.
func failedByCrash(f *fixture, rec *task.Record) {
	f.Helper()
	got := f.becomes(rec.ID, task.Delivering)
	if got.Status != task.Failed || got.Error != task.ErrorHolderDied || got.FinishedAt.IsZero() || got.Result != nil {
		f.Fatalf("the task is %s", encode(got))
	}
	d := f.take(host, 1)[0]
	f.same(d.Record(), got)
	f.must(d.Done(f.ctx))
}

func holderCrashes(f *fixture) {
	rec, _ := f.claim()
	f.crash()
	failedByCrash(f, rec)
}

func holderCloses(f *fixture) {
	rec, l := f.claim()
	closed := f.e
	f.reopen()
	failedByCrash(f, rec)
	if l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r")) == nil {
		f.Error("the lease of a closed engine was settled")
	}
	f.must(closed.Close(f.ctx))
}

func holderComesBack(f *fixture) {
	rec, l := f.claim()
	f.crash()
	got := f.becomes(rec.ID, task.Delivering)
	for _, s := range leaseSteps {
		if s.do(f, rec, l) == nil {
			f.Errorf("%s by a dead holder is not refused", s.name)
		}
	}
	f.same(f.get(rec.ID), got)
	f.take(host, 1)
}

func settledBeforeCrash(f *fixture) {
	rec, l := f.claim()
	want := f.settle(rec, l)
	f.crash()
	f.sameIn(f.in(rec.ID, task.Delivering), want, task.Delivering)
	f.take(host, 1)
}

// lost returns a channel that is closed when l is lost.
func lost(l engine.Lease) <-chan struct{} {
	c := make(chan struct{})
	l.OnLost(func() { close(c) })
	return c
}

// closes waits until c is closed.
func (f *fixture) closes(what string, c <-chan struct{}) {
	f.Helper()
	select {
	case <-c:
	case <-f.ctx.Done():
		f.Fatalf("%s: %v", what, f.ctx.Err())
	}
}

func onLostCancel(f *fixture) {
	kept, keptLease := f.claim()
	stays := lost(keptLease)
	rec, l := f.claim()
	c := lost(l)
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	f.closes("the lease is lost", c)
	f.is(l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r")), engine.ErrLost)
	if got := f.in(rec.ID, task.Delivering); got.Status != task.Failed || got.Error != "not needed" {
		f.Errorf("the task is %s", encode(got))
	}
	f.settle(kept, keptLease)
	f.blocks("OnLost of a lease that was used", func(ctx context.Context) error {
		select {
		case <-stays:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func onLostLate(f *fixture) {
	rec, l := f.claim()
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	f.is(l.Release(f.ctx), engine.ErrLost)
	f.closes("the lease is lost", lost(l))
}

func recordsAreCopies(f *fixture) {
	rec, l := f.claim()
	want := clone(rec)
	change := func(rec *task.Record) {
		for range 60 { // more than are remembered
			rec.AddAttempt(task.Attempt{StatusCode: 500, Response: "changed"})
		}
		rec.Route, rec.Callback, rec.Request, rec.Result = "changed", nil, nil, nil
	}
	change(rec)
	f.sameIn(f.get(rec.ID), want, task.Running)
	change(f.get(rec.ID))
	f.sameIn(f.get(rec.ID), want, task.Running)
	given := settled(want, task.Complete, "r")
	given.Attempts = make([]task.Attempt, 0, 100)
	want = clone(given)
	f.must(l.Settle(f.ctx, given, strings.NewReader("r")))
	change(given)
	d := f.take(host, 1)[0]
	f.sameIn(d.Record(), want, task.Delivering)
	change(d.Record())
	f.sameIn(f.get(rec.ID), want, task.Delivering)
	f.must(d.Release(f.ctx))
	f.sameIn(f.take(host, 1)[0].Record(), want, task.Delivering)
}

func secretStays(f *fixture) {
	a, err := f.e.Secret(f.ctx)
	f.must(err)
	f.crash()
	b, err := f.e.Secret(f.ctx)
	f.must(err)
	if len(a) != 32 || string(a) != string(b) {
		f.Errorf("the secrets are %x and %x", a, b)
	}
	if c, err := f.other().e.Secret(f.ctx); err != nil || string(c) == string(a) {
		f.Errorf("another store has the same secret: %v", err)
	}
}
