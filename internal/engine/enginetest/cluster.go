package enginetest

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var clusterSuite = suite{"cluster", []testcase{
	{"changes are visible to all gateways", clusterSees},
	{"waits are woken by other gateways", clusterWakes},
	{"cancel from another gateway", clusterCancel},
	{"jobs and deliveries go to one gateway", clusterOnce},
	{"idempotency key on two gateways", clusterKey},
	{"schedule advances once", clusterSchedule},
	{"pause applies to all gateways", clusterPause},
	{"tasks of a crashed gateway continue", clusterCrash},
	{"disconnected gateway cannot settle", clusterCutOff},
}}

// pair opens the store of f again, as another gateway.
func (f *fixture) pair() *fixture {
	f.Helper()
	other := *f
	other.e = f.opener.Open(f, f.store)
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := other.e.Close(ctx); err != nil {
			f.Errorf("closing: %v", err)
		}
	})
	return &other
}

func clusterSees(f *fixture) {
	g := f.pair()
	rec, l := f.claim()
	g.sameIn(g.in(rec.ID, task.Running), rec, task.Running)
	want := f.settle(rec, l)
	g.sameIn(g.in(rec.ID, task.Delivering), want, task.Delivering)
	if b := g.body(rec.ID, engine.ResultBody); string(b) != "result of "+rec.ID {
		f.Errorf("the result is %q", b)
	}
	if f.get(rec.ID).Version != g.get(rec.ID).Version {
		f.Error("the gateways differ in the version")
	}
	g.must(g.take(host, 1)[0].Done(g.ctx))
	f.in(rec.ID, task.Done)
}

func clusterWakes(f *fixture) {
	g := f.pair()
	rec, l := f.claim()
	since := g.get(rec.ID).Version
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, err := g.e.Wait(g.ctx, rec.ID, since); err != nil || got.Version == since {
			f.Errorf("Wait returned %v", err)
		}
	})
	wg.Go(func() {
		if jobs, err := g.e.Jobs("q").Next(g.ctx, 1, 3); err != nil || len(jobs) != 1 {
			f.Errorf("%d jobs: %v", len(jobs), err)
		}
	})
	wg.Go(func() {
		if due, err := g.e.DueHosts(g.ctx, 1); err != nil || len(due) != 1 || due[0].Host != host {
			f.Errorf("reported are %v: %v", due, err)
		}
	})
	f.enqueue(f.queued("q"))
	f.settle(rec, l)
	wg.Wait()
}

func clusterCancel(f *fixture) {
	g := f.pair()
	rec, l := f.claim()
	c := lost(l)
	g.must(g.e.Act(g.ctx, rec.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	f.is(l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r")), engine.ErrLost)
	f.closes("the lease is lost", c)
	if got := f.get(rec.ID); got.Status != task.Failed || got.Error != "not needed" {
		f.Errorf("the task is %s", encode(got))
	}
}

func clusterOnce(f *fixture) {
	const tasks = 60
	gateways := []*fixture{f, f.pair()}
	for range tasks {
		f.enqueue(f.queued("q"))
	}
	seed := f.random().Uint64()
	h := &holders{taken: map[string]bool{}, ended: map[string]task.State{}}
	ctx, stop := context.WithCancel(f.ctx)
	defer stop()
	var mu sync.Mutex
	started := make(map[string]bool)
	var wg sync.WaitGroup
	for n, g := range gateways {
		r := rand.New(rand.NewPCG(seed, uint64(n)))
		wg.Go(func() {
			for {
				jobs, err := g.e.Jobs("q").Next(ctx, 3, 3)
				if err != nil {
					return
				}
				for _, j := range jobs {
					mu.Lock()
					if started[j.Record.ID] {
						f.Errorf("job %s is handed out twice", j.Record.ID)
					}
					started[j.Record.ID] = true
					mu.Unlock()
					g.settle(j.Record, j.Lease)
				}
			}
		})
		wg.Go(func() {
			for {
				due, err := g.e.DueHosts(ctx, 3)
				if err != nil {
					return
				}
				for _, d := range due {
					g.drainHost(r.Uint64(), h, d.Host)
				}
				h.mu.Lock()
				if len(h.ended) == tasks {
					stop()
				}
				h.mu.Unlock()
			}
		})
	}
	wg.Wait()
	f.must(f.ctx.Err())
	for id, want := range h.ended {
		f.in(id, want)
	}
}

func clusterKey(f *fixture) {
	gateways := []*fixture{f, f.pair()}
	var mu sync.Mutex
	found := make(map[string]bool)
	made := 0
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			_, id, created, err := gateways[i%2].keyed(key("h", "d"))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				f.Errorf("enqueueing: %v", err)
			}
			if found[id] = true; created {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 || len(found) != 1 {
		f.Errorf("%d tasks are made, the IDs are %v", made, found)
	}
}

func clusterSchedule(f *fixture) {
	g := f.pair()
	a, b, c := in(time.Hour), in(2*time.Hour), in(3*time.Hour)
	f.runTimes("s", a, time.Time{}, a)
	g.runTimes("s", b, time.Time{}, a)
	g.must(g.e.Advance(g.ctx, "s", a, b))
	f.is(f.e.Advance(f.ctx, "s", a, c), engine.ErrLost)
	f.runTimes("s", c, a, b)
}

func clusterPause(f *fixture) {
	g := f.pair()
	f.must(f.e.Pause(f.ctx, engine.Target{Queue: "q"}, true))
	f.must(f.e.Pause(f.ctx, engine.Target{Host: host}, true))
	f.enqueue(f.queued("q"))
	f.delivering()
	g.noJob("q")
	g.noneToTake(host)
	g.must(g.e.Pause(g.ctx, engine.Target{Queue: "q"}, false))
	g.must(g.e.Pause(g.ctx, engine.Target{Host: host}, false))
	f.next("q", 3)
	f.take(host, 1)
}

func clusterCrash(f *fixture) {
	g := f.pair()
	claimed, _ := f.claim()
	job := f.enqueue(f.queued("q"))
	f.next("q", 3)
	f.deliveringTo("taken:443")
	f.take("taken:443", 1)
	kept, l := g.claim()
	f.opener.Kill(f, f.e)
	if got := g.becomes(claimed.ID, task.Delivering); got.Error != task.ErrorHolderDied {
		f.Errorf("the task is %s", encode(got))
	}
	if j := g.next("q", 3); j.Record.ID != job.ID || j.Record.Starts != 2 {
		f.Errorf("the job is %s", encode(j.Record))
	}
	g.must(g.take("taken:443", 1)[0].Done(g.ctx))
	g.settle(kept, l) // its own leases are kept
	f.e = f.opener.Open(f, f.store)
}

// clusterCutOff cuts off a gateway for longer than its leases last.
func clusterCutOff(f *fixture) {
	if f.opener.Unavailable == nil {
		return // it cannot be cut off
	}
	g := f.pair()
	rec, l := f.claim()
	c := lost(l)
	f.deliveringTo("taken:443")
	d := f.take("taken:443", 1)[0]
	undo := f.opener.Unavailable(f, f.store, f.e)
	g.becomes(rec.ID, task.Delivering)
	g.must(g.take("taken:443", 1)[0].Done(g.ctx))
	undo()
	f.eventually(f.e.Ready)
	f.closes("the lease is lost", c)
	f.is(l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r")), engine.ErrLost)
	f.is(d.Retry(f.ctx, in(0)), engine.ErrLost)
	f.in(d.Record().ID, task.Done)
	if got := f.get(rec.ID); got.Status != task.Failed {
		f.Errorf("the task is %s", encode(got))
	}
}
