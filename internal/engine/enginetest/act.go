package enginetest

import (
	"errors"
	"io"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var actSuite = suite{"act", []testcase{
	{"action states", actStates},
	{"action on an unknown task", actUnknown},
	{"retry now", actRetryNow},
	{"retry now to a paused host", actRetryPaused},
	{"stop a delivery in flight", actStop},
	{"redelivery resets attempts", actRedeliver},
	{"redelivery to another URL", actRedeliverURL},
	{"redelivery without a callback", actRedeliverNothing},
	{"delete", actDelete},
	{"actions survive a crash", actSurvives},
	{"cancel a running job", actCancelRunning},
	{"cancel without a callback", actCancelWithoutCallback},
	{"delete while a body is read", actDeleteWhileRead},
}}

// stations create a task in each state and return its ID.
var stations = []struct {
	name  string
	make  func(f *fixture) string
	state task.State
}{
	{"queued", func(f *fixture) string { return f.enqueue(f.queued("q")).ID }, task.Queued},
	{"delayed", func(f *fixture) string {
		rec := f.queued("delayed")
		rec.NextAttemptAt = in(time.Hour)
		return f.enqueue(rec).ID
	}, task.Queued},
	{"running", func(f *fixture) string { rec, _ := f.claim(); return rec.ID }, task.Running},
	{"running job", func(f *fixture) string {
		f.enqueue(f.queued("running"))
		return f.next("running", 3).Record.ID
	}, task.Running},
	{"due", func(f *fixture) string { return f.deliveringTo("due:443").ID }, task.Delivering},
	{"in flight", func(f *fixture) string {
		f.deliveringTo("flight:443")
		return f.take("flight:443", 1)[0].Record().ID
	}, task.Delivering},
	{"waiting for a retry", func(f *fixture) string {
		f.deliveringTo("retry:443")
		d := f.take("retry:443", 1)[0]
		f.must(d.Retry(f.ctx, in(time.Hour)))
		return d.Record().ID
	}, task.Delivering},
	{"done", func(f *fixture) string { return f.done().ID }, task.Done},
	{"dead", func(f *fixture) string { return f.dead().ID }, task.Dead},
}

// actions has all actions, the states that they apply to, and the state that they lead
// to.
var actions = []struct {
	name string
	kind engine.ActionKind
	from []task.State
	to   task.State // empty: removed
}{
	{"cancel", engine.Cancel, []task.State{task.Queued, task.Running}, task.Delivering},
	{"retry now", engine.RetryNow, []task.State{task.Delivering}, task.Delivering},
	{"stop", engine.Stop, []task.State{task.Delivering}, task.Dead},
	{"redeliver", engine.Redeliver, []task.State{task.Done, task.Dead}, task.Delivering},
	{"delete", engine.Delete, []task.State{task.Done, task.Dead}, ""},
}

func actStates(f *fixture) {
	for _, a := range actions {
		for _, s := range stations {
			id := s.make(f)
			before := f.in(id, s.state)
			err := f.e.Act(f.ctx, id, engine.Action{Kind: a.kind, Reason: "by hand"})
			applies := false
			for _, from := range a.from {
				applies = applies || from == s.state
			}
			switch {
			case !applies:
				if !errors.Is(err, engine.ErrEnded) || errors.Is(err, engine.ErrNotKept) {
					f.Errorf("%s of a task that is %s: %v", a.name, s.name, err)
				}
				if after := f.get(id); after.Version != before.Version {
					f.Errorf("a refused %s changed a task that is %s", a.name, s.name)
				}
			case err != nil:
				f.Errorf("%s of a task that is %s: %v", a.name, s.name, err)
			case a.to == "":
				f.gone(id)
			default:
				f.in(id, a.to)
			}
			f.clear()
		}
	}
}

// clear removes the tasks that a case has left, except those in flight.
func (f *fixture) clear() {
	f.Helper()
	for _, rec := range f.list(engine.Filter{}) {
		for _, k := range []engine.ActionKind{engine.Cancel, engine.Stop, engine.Delete} {
			err := f.e.Act(f.ctx, rec.ID, engine.Action{Kind: k})
			if err != nil && !errors.Is(err, engine.ErrEnded) {
				f.Fatal(err)
			}
		}
		f.gone(rec.ID)
	}
}

func actUnknown(f *fixture) {
	for _, id := range []string{newID(), "", "x", strings.Repeat("a", 1000), "no-uuid.*>"} {
		for _, a := range actions {
			f.is(f.e.Act(f.ctx, id, engine.Action{Kind: a.kind}), engine.ErrNotFound)
		}
		_, err := f.e.Get(f.ctx, id)
		f.is(err, engine.ErrNotFound)
		_, err = f.e.Wait(f.ctx, id, 0)
		f.is(err, engine.ErrNotFound)
		_, err = f.e.Open(f.ctx, id, engine.ResultBody)
		f.is(err, engine.ErrNotFound)
	}
}

func actRetryNow(f *fixture) {
	rec := f.delivering()
	d := f.take(host, 1)[0]
	d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500})
	f.must(d.Retry(f.ctx, in(time.Hour)))
	f.noneToTake(host)
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.RetryNow}))
	d = f.take(host, 1)[0]
	if d.Record().Tries != 1 || len(d.Record().Attempts) != 1 {
		f.Errorf("the delivery is %s", encode(d.Record()))
	}
	// RetryNow does not change a delivery that is in flight or due.
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.RetryNow}))
	f.noneToTake(host)
	f.must(d.Release(f.ctx))
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.RetryNow}))
	f.must(f.take(host, 1)[0].Done(f.ctx))
}

func actRetryPaused(f *fixture) {
	rec := f.delivering()
	retry := engine.Action{Kind: engine.RetryNow}
	d := f.take(host, 1)[0]
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, true))
	f.must(f.e.Act(f.ctx, rec.ID, retry)) // it is in flight
	f.must(d.Retry(f.ctx, in(time.Hour)))
	before := f.get(rec.ID)
	f.is(f.e.Act(f.ctx, rec.ID, retry), engine.ErrPaused)
	if after := f.get(rec.ID); after.Version != before.Version {
		f.Errorf("a refused retry changed the task to %s", encode(after))
	}
	due := f.delivering()
	f.is(f.e.Act(f.ctx, due.ID, retry), engine.ErrPaused)
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, false))
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.noneToTake(host)
	f.must(f.e.Act(f.ctx, rec.ID, retry))
	f.must(f.take(host, 1)[0].Done(f.ctx))
}

func actStop(f *fixture) {
	for _, taken := range []bool{false, true} {
		rec := f.delivering()
		var d engine.Delivery
		if taken {
			d = f.take(host, 1)[0]
		}
		f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Stop}))
		f.in(rec.ID, task.Dead)
		f.noneToTake(host)
		if !taken {
			continue
		}
		d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 200})
		for _, s := range deliverySteps {
			f.is(s.do(f, d), engine.ErrLost)
		}
		if got := f.in(rec.ID, task.Dead); len(got.Attempts) != 0 {
			f.Errorf("the task is %s", encode(got))
		}
	}
}

func actRedeliver(f *fixture) {
	for _, rec := range []*task.Record{f.done(), f.dead()} {
		f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Redeliver}))
		got := f.in(rec.ID, task.Delivering)
		if got.Tries != 0 || len(got.Attempts) != 1 || len(got.Redelivered) != 1 || !got.DeliveredAt.IsZero() {
			f.Errorf("the task is %s", encode(got))
		}
		d := f.take(host, 1)[0]
		r, err := d.Result(f.ctx)
		f.must(err)
		if b := f.read(r); d.Record().ID != rec.ID || string(b) != "result of "+rec.ID {
			f.Errorf("task %s is taken with the result %q", d.Record().ID, b)
		}
		f.must(d.Done(f.ctx))
		f.in(rec.ID, task.Done)
	}
}

func actRedeliverURL(f *fixture) {
	for _, rec := range []*task.Record{f.done(), f.dead()} {
		a := engine.Action{Kind: engine.Redeliver, URL: "https://other.example/x", Host: "other.example:443"}
		f.must(f.e.Act(f.ctx, rec.ID, a))
		f.noneToTake(host)
		d := f.take("other.example:443", 1)[0]
		got := d.Record()
		if got.ID != rec.ID || got.Callback.URL != a.URL || got.CallbackHost != a.Host {
			f.Errorf("the delivery is %s", encode(got))
		}
		f.must(d.Done(f.ctx))
		if n := len(f.list(engine.Filter{Host: "other.example"})); n != 1 {
			f.Errorf("%d tasks of the new host are listed", n)
		}
		f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Delete}))
	}
}

func actRedeliverNothing(f *fixture) {
	rec, l := f.claim()
	rec.Callback, rec.CallbackHost = nil, ""
	f.settle(rec, l)
	f.is(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Redeliver}), engine.ErrEnded)
	f.in(rec.ID, task.Done)
}

func actDelete(f *fixture) {
	for _, rec := range []*task.Record{f.done(), f.dead()} {
		f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Delete}))
		f.gone(rec.ID)
		f.is(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Delete}), engine.ErrNotFound)
		f.crash()
		f.gone(rec.ID)
	}
}

func actSurvives(f *fixture) {
	canceled := f.enqueue(f.queued("q"))
	f.must(f.e.Act(f.ctx, canceled.ID, engine.Action{Kind: engine.Cancel, Reason: "r"}))
	stopped := f.deliveringTo("stopped:443")
	f.must(f.e.Act(f.ctx, stopped.ID, engine.Action{Kind: engine.Stop}))
	again := f.deliveringTo("again:443")
	f.must(f.take("again:443", 1)[0].Dead(f.ctx))
	f.must(f.e.Act(f.ctx, again.ID, engine.Action{Kind: engine.Redeliver}))
	f.crash()
	f.noJob("q")
	f.in(canceled.ID, task.Delivering)
	f.in(stopped.ID, task.Dead)
	f.in(again.ID, task.Delivering)
	f.take("again:443", 1)
	f.take(host, 1)
	f.noneToTake("stopped:443")
}

func actCancelRunning(f *fixture) {
	f.enqueue(f.queued("q"))
	j := f.next("q", 3)
	c := lost(j.Lease)
	f.must(f.e.Act(f.ctx, j.Record.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	f.closes("the lease is lost", c)
	for _, s := range leaseSteps {
		f.is(s.do(f, j.Record, j.Lease), engine.ErrLost)
	}
	got := f.in(j.Record.ID, task.Delivering)
	if got.Status != task.Failed || got.Error != "not needed" || got.Starts != 1 || got.Request.Header != nil {
		f.Errorf("the task is %s", encode(got))
	}
	f.noBody(got.ID, engine.RequestBody)
	f.noBody(got.ID, engine.ResultBody)
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.noJob("q")
	f.is(f.e.Act(f.ctx, got.ID, engine.Action{Kind: engine.Cancel}), engine.ErrEnded)
}

func actCancelWithoutCallback(f *fixture) {
	rec := f.queued("q")
	rec.Callback, rec.CallbackHost = nil, ""
	f.enqueue(rec)
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	if got := f.in(rec.ID, task.Done); got.Status != task.Failed || got.Error != "not needed" {
		f.Errorf("the task is %s", encode(got))
	}
	f.noDue()
}

func actDeleteWhileRead(f *fixture) {
	for _, size := range sizes {
		rec := f.client()
		l, err := f.e.Claim(f.ctx, rec)
		f.must(err)
		want := string(pattern(size))
		f.settleWith(rec, l, want)
		f.must(f.take(host, 1)[0].Done(f.ctx))
		r, err := f.e.Open(f.ctx, rec.ID, engine.ResultBody)
		f.must(err)
		head := make([]byte, size/2)
		_, err = io.ReadFull(r, head)
		f.must(err)
		f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Delete}))
		f.noBody(rec.ID, engine.ResultBody)
		if got := string(head) + string(f.read(r)); got != want {
			f.Errorf("size %d: %d bytes are read", size, len(got))
		}
	}
}
