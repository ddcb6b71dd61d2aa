package enginetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var deliverySuite = suite{"delivery", []testcase{
	{"delivery is taken once", takenOnce},
	{"done stores the record", deliveryDone},
	{"retry at its due time", deliveryRetried},
	{"dead stores the record", deliveryDead},
	{"release a delivery", deliveryReleased},
	{"delivery ends once", deliveryOnce},
	{"holder crashes", deliveryHolderCrashes},
	{"crashed holder cannot end a delivery", deliveryHolderComesBack},
	{"retry survives a crash", retrySurvives},
	{"deliveries in order of due time", takenInOrder},
	{"deliveries are separated by host", hostsAreApart},
	{"paused host", hostPaused},
	{"result can be read repeatedly", resultAgain},
	{"random deliveries", deliveriesRandom},
}}

func takenOnce(f *fixture) {
	rec := f.delivering()
	d := f.take(host, 1)[0]
	if d.Record().ID != rec.ID {
		f.Fatalf("task %s is taken", d.Record().ID)
	}
	f.noneToTake(host)
	f.in(rec.ID, task.Delivering)
}

func deliveryDone(f *fixture) {
	rec := f.done()
	f.sameIn(f.in(rec.ID, task.Done), rec, task.Done)
	f.noneToTake(host)
	f.crash()
	f.sameIn(f.in(rec.ID, task.Done), rec, task.Done)
	f.noDue()
}

func deliveryRetried(f *fixture) {
	rec := f.delivering()
	for i, wait := range []time.Duration{0, -time.Hour, 80 * time.Millisecond} {
		d := f.take(host, 1)[0]
		if d.Record().Tries != i {
			f.Fatalf("%d tries before attempt %d", d.Record().Tries, i)
		}
		d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500 + i})
		before := f.get(rec.ID).Version
		at := in(wait)
		f.must(d.Retry(f.ctx, at))
		got := f.in(rec.ID, task.Delivering)
		if wait > 0 && !got.NextAttemptAt.Equal(at) || len(got.Attempts) != i+1 || got.Attempts[i].StatusCode != 500+i {
			f.Fatalf("the task is %s", encode(got))
		}
		if got.Version == before {
			f.Error("the version did not change")
		}
		if wait <= 0 {
			continue
		}
		taken, err := f.e.Take(f.ctx, host, 1) // none, unless the time has come
		f.must(err)
		if len(taken) == 0 {
			taken = f.take(host, 1)
		}
		if time.Now().Before(at) {
			f.Error("the delivery is taken early")
		}
		f.must(taken[0].Done(f.ctx))
	}
}

func deliveryDead(f *fixture) {
	rec := f.dead()
	f.sameIn(f.in(rec.ID, task.Dead), rec, task.Dead)
	f.noneToTake(host)
	if b := f.body(rec.ID, engine.ResultBody); string(b) != "result of "+rec.ID {
		f.Errorf("the result of a dead letter is %q", b)
	}
	f.crash()
	f.in(rec.ID, task.Dead)
	f.noDue()
}

func deliveryReleased(f *fixture) {
	rec := f.delivering()
	before := f.get(rec.ID)
	d := f.take(host, 1)[0]
	f.must(d.Release(f.ctx))
	f.same(f.in(rec.ID, task.Delivering), before)
	f.same(f.take(host, 1)[0].Record(), before)
}

// deliverySteps are the steps that end a delivery.
var deliverySteps = []struct {
	name string
	do   func(f *fixture, d engine.Delivery) error
}{
	{"done", func(f *fixture, d engine.Delivery) error { return d.Done(f.ctx) }},
	{"retry", func(f *fixture, d engine.Delivery) error { return d.Retry(f.ctx, in(time.Hour)) }},
	{"dead", func(f *fixture, d engine.Delivery) error { return d.Dead(f.ctx) }},
	{"release", func(f *fixture, d engine.Delivery) error { return d.Release(f.ctx) }},
}

func deliveryOnce(f *fixture) {
	for _, first := range deliverySteps {
		for _, second := range deliverySteps {
			host := first.name + "." + second.name + ":443"
			rec := f.deliveringTo(host)
			d := f.take(host, 1)[0]
			f.must(first.do(f, d))
			before := f.get(rec.ID)
			if err := second.do(f, d); !errors.Is(err, engine.ErrLost) {
				f.Errorf("%s after %s: %v", second.name, first.name, err)
			}
			if after := f.get(rec.ID); after.Version != before.Version {
				f.Errorf("%s after %s changed the task", second.name, first.name)
			}
		}
	}
}

func deliveryHolderCrashes(f *fixture) {
	rec := f.delivering()
	f.take(host, 1)
	f.crash()
	d := f.take(host, 1)[0]
	if d.Record().ID != rec.ID || d.Record().Tries != 0 {
		f.Errorf("the delivery is %s", encode(d.Record()))
	}
	f.must(d.Done(f.ctx))
}

func deliveryHolderComesBack(f *fixture) {
	rec := f.delivering()
	old := f.take(host, 1)[0]
	f.crash()
	d := f.take(host, 1)[0]
	for _, s := range deliverySteps {
		if s.do(f, old) == nil {
			f.Errorf("%s by a dead holder is not refused", s.name)
		}
	}
	f.in(rec.ID, task.Delivering)
	f.must(d.Done(f.ctx))
	f.in(rec.ID, task.Done)
}

func retrySurvives(f *fixture) {
	rec := f.delivering()
	d := f.take(host, 1)[0]
	d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500})
	at := in(150 * time.Millisecond)
	f.must(d.Retry(f.ctx, at))
	f.crash()
	if got := f.in(rec.ID, task.Delivering); !got.NextAttemptAt.Equal(at) || got.Tries != 1 {
		f.Errorf("the task is %s", encode(got))
	}
	f.take(host, 1)
	if time.Now().Before(at) {
		f.Error("the delivery is taken early")
	}
}

func takenInOrder(f *fixture) {
	// Retries are due at these times; the deliveries are stored in this order.
	var first []engine.Delivery
	for range 3 {
		f.delivering()
	}
	first = f.take(host, 3)
	var want [3]string
	for i, place := range []int{2, 0, 1} {
		want[place] = first[i].Record().ID
		f.must(first[i].Retry(f.ctx, in(time.Duration(place-10)*time.Minute)))
	}
	var got []string
	for range 3 {
		ds, err := f.e.Take(f.ctx, host, 1)
		f.must(err)
		for _, d := range ds {
			got = append(got, d.Record().ID)
		}
	}
	f.ordered(got, want[:])
}

func hostsAreApart(f *fixture) {
	hosts := []string{"a:443", "a:444", "a.b:443", "*:443", "[2001:db8::1]:443", "a.b.c:80", "xn--tda.example:443"}
	for _, h := range hosts {
		f.deliveringTo(h)
	}
	for _, h := range hosts {
		if d := f.take(h, 1)[0]; d.Record().CallbackHost != h {
			f.Errorf("host %s returned a delivery of %s", h, d.Record().CallbackHost)
		}
	}
	f.noneToTake("none:443")
}

func hostPaused(f *fixture) {
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, true))
	rec := f.delivering()
	other := f.deliveringTo("other:443")
	f.noneToTake(host)
	f.reopen()
	f.noneToTake(host)
	f.crash()
	f.noneToTake(host)
	f.take("other:443", 1)
	f.in(other.ID, task.Delivering)
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, false))
	d := f.take(host, 1)[0]
	if d.Record().ID != rec.ID {
		f.Errorf("task %s is taken", d.Record().ID)
	}
	// Deliveries in flight end as usual.
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, true))
	f.must(d.Retry(f.ctx, in(0)))
	f.noneToTake(host)
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, false))
	f.must(f.take(host, 1)[0].Done(f.ctx))
}

func resultAgain(f *fixture) {
	rec := f.delivering()
	for range 3 {
		d := f.take(host, 1)[0]
		for range 2 {
			r, err := d.Result(f.ctx)
			f.must(err)
			if b := f.read(r); string(b) != "result of "+rec.ID {
				f.Fatalf("the result is %q", b)
			}
		}
		f.must(d.Retry(f.ctx, in(0)))
	}
}

// holders tracks which deliveries are in flight.
type holders struct {
	mu    sync.Mutex
	taken map[string]bool
	ended map[string]task.State
}

func (h *holders) take(t testing.TB, d engine.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := d.Record().ID
	if h.taken[id] {
		t.Errorf("task %s is in flight twice", id)
	}
	if s, ok := h.ended[id]; ok {
		t.Errorf("task %s is taken, and was %s", id, s)
	}
	h.taken[id] = true
}

// leave records that a delivery is about to end.
func (h *holders) leave(d engine.Delivery, s task.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.taken, d.Record().ID)
	if s != "" {
		h.ended[d.Record().ID] = s
	}
}

// deliveriesRandom acts as a dispatcher. It takes deliveries only of reported hosts,
// and ends them at random, with crashes in between. In the end each delivery is done or
// dead.
func deliveriesRandom(f *fixture) {
	const tasks, hosts = 240, 7
	r := f.random()
	for i := range tasks {
		f.deliveringTo(fmt.Sprintf("host-%d:443", i%hosts))
	}
	h := &holders{taken: map[string]bool{}, ended: map[string]task.State{}}
	for step, crashes := 0, 0; len(h.ended) < tasks; step++ {
		due, err := f.e.DueHosts(f.ctx, 1+r.IntN(4))
		if err != nil {
			f.Fatalf("after %d of %d deliveries: %v", len(h.ended), tasks, err)
		}
		if crashes < 3 && r.IntN(20) == 0 {
			crashes++
			for _, d := range due { // some are still in flight
				ds, err := f.e.Take(f.ctx, d.Host, 2)
				f.must(err)
				for _, d := range ds {
					h.take(f, d)
				}
			}
			f.crash()
			clear(h.taken)
			continue
		}
		for _, d := range due {
			f.drainHost(r.Uint64(), h, d.Host)
		}
	}
	for id, want := range h.ended {
		f.in(id, want)
	}
	f.noDue()
}
