package enginetest

import (
	"slices"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var settingsSuite = suite{"settings", []testcase{
	{"retention of done tasks", retentionAge},
	{"number of done tasks", retentionCount},
	{"retention of dead letters", deadAge},
	{"number of dead letters", deadCount},
	{"unfinished tasks are kept", retentionKeeps},
	{"results of done tasks", resultsNotKept},
	{"delivery window", windowPasses},
	{"delivery window of a redelivery", windowAnew},
	{"settings after a restart", settingsAfterRestart},
}}

func retentionAge(f *fixture) {
	rec, dead := f.done(), f.dead()
	f.reconfigure(func(s *engine.Settings) { s.Retention = 50 * time.Millisecond })
	f.becomesRemoved(rec.ID)
	f.gone(rec.ID)
	f.in(dead.ID, task.Dead)
	f.becomesRemoved(f.done().ID)
}

func deadAge(f *fixture) {
	rec, done := f.dead(), f.done()
	f.reconfigure(func(s *engine.Settings) { s.Dead = 50 * time.Millisecond })
	f.becomesRemoved(rec.ID)
	f.gone(rec.ID)
	f.in(done.ID, task.Done)
	f.becomesRemoved(f.dead().ID)
}

// latest checks that all but the last n of the tasks that make creates are removed.
func (f *fixture) latest(n int, make func() *task.Record) {
	f.Helper()
	var made []string
	for range 3 * n {
		made = append(made, make().ID)
	}
	f.reconfigure(func(*engine.Settings) {}) // applies the limits now, not in seconds
	for _, id := range made[:2*n] {
		f.becomesRemoved(id)
	}
	for _, id := range made[2*n:] {
		f.get(id)
	}
}

func retentionCount(f *fixture) {
	dead := f.dead()
	f.reconfigure(func(s *engine.Settings) { s.RetentionCount = 5 })
	f.latest(5, f.done)
	f.in(dead.ID, task.Dead)
}

func deadCount(f *fixture) {
	done := f.done()
	f.reconfigure(func(s *engine.Settings) { s.DeadCount = 5 })
	f.latest(5, f.dead)
	f.in(done.ID, task.Done)
}

func retentionKeeps(f *fixture) {
	queued := f.enqueue(f.queued("q"))
	running, _ := f.claim()
	pending := f.deliveringTo("pending:443")
	again := f.done()
	f.must(f.e.Act(f.ctx, again.ID, engine.Action{Kind: engine.Redeliver}))
	f.take(host, 1)
	f.reconfigure(func(s *engine.Settings) {
		s.Retention, s.RetentionCount, s.Dead, s.DeadCount = time.Millisecond, 1, time.Millisecond, 1
	})
	f.deliveringTo("x:443")
	f.must(f.take("x:443", 1)[0].Done(f.ctx))
	f.deliveringTo("x:443")
	d := f.take("x:443", 1)[0]
	f.must(d.Dead(f.ctx))
	f.becomesRemoved(d.Record().ID)
	f.in(queued.ID, task.Queued)
	f.in(running.ID, task.Running)
	f.in(pending.ID, task.Delivering)
	f.in(again.ID, task.Delivering)
}

func resultsNotKept(f *fixture) {
	f.reconfigure(func(s *engine.Settings) { s.KeepResults = false })
	for _, n := range sizes {
		rec, l := f.claim()
		f.settleWith(rec, l, string(pattern(n)))
		d := f.take(host, 1)[0]
		f.sameBytes("delivering", f.body(rec.ID, engine.ResultBody), pattern(n))
		f.must(d.Done(f.ctx))
		f.in(rec.ID, task.Done)
		if n == 0 {
			continue // an empty result can be redelivered
		}
		f.noBody(rec.ID, engine.ResultBody)
		err := f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Redeliver})
		f.is(err, engine.ErrNotKept)
		f.is(err, engine.ErrEnded)
	}
	dead := f.dead()
	f.body(dead.ID, engine.ResultBody)
	f.must(f.e.Act(f.ctx, dead.ID, engine.Action{Kind: engine.Redeliver}))
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.enqueue(f.queued("q"))
	j := f.next("q", 3)
	f.settle(j.Record, j.Lease)
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.body(j.Record.ID, engine.ResultBody)
	// A task without a result can be redelivered.
	rec, l := f.claim()
	rec = settled(rec, task.TimedOut, "")
	rec.Result = nil
	f.must(l.Settle(f.ctx, rec, nil))
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Redeliver}))
}

func windowPasses(f *fixture) {
	due := f.deliveringTo("due:443")
	retried := f.deliveringTo("retried:443")
	d := f.take("retried:443", 1)[0]
	d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500})
	f.must(d.Retry(f.ctx, in(time.Hour)))
	clock := f.queued("clock")
	clock.NextAttemptAt = in(50 * time.Millisecond)
	f.enqueue(clock)
	f.next("clock", 3)
	timedOut := make(chan *task.Record, 9)
	f.reconfigure(func(s *engine.Settings) {
		s.DeliveryWindow, s.GaveUp = 20*time.Millisecond, func(rec *task.Record) { timedOut <- rec }
	})
	f.becomes(due.ID, task.Dead)
	if got := f.becomes(retried.ID, task.Dead); len(got.Attempts) != 1 || got.Status != task.Complete {
		f.Errorf("the task is %s", encode(got))
	}
	f.noneToTake("due:443")
	for missing := map[string]bool{due.ID: true, retried.ID: true}; len(missing) > 0; {
		select {
		case rec := <-timedOut:
			if !missing[rec.ID] || rec.State != task.Dead || rec.CallbackHost == "" {
				f.Fatalf("the timed-out task is %s", encode(rec))
			}
			delete(missing, rec.ID)
		case <-f.ctx.Done():
			f.Fatalf("timed-out tasks were not reported: %v", missing)
		}
	}
}

func windowAnew(f *fixture) {
	rec := f.client()
	l, err := f.e.Claim(f.ctx, rec)
	f.must(err)
	want := settled(rec, task.Complete, "r")
	want.FinishedAt = in(-50 * time.Hour)
	f.must(l.Settle(f.ctx, want, strings.NewReader("r")))
	f.must(f.take(host, 1)[0].Dead(f.ctx))
	f.reconfigure(func(s *engine.Settings) { s.DeliveryWindow = time.Hour })
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Redeliver}))
	f.take(host, 1)
	f.crash()
	f.take(host, 1)
}

func settingsAfterRestart(f *fixture) {
	var made []string
	for range 6 {
		made = append(made, f.done().ID)
	}
	f.store.Settings.RetentionCount = 2
	f.reopen()
	for _, id := range made[:4] {
		f.becomesRemoved(id)
	}
	left := ids(f.list(engine.Filter{}))
	slices.Reverse(left)
	f.ordered(left, made[4:])
}
