package enginetest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var faultSuite = suite{"fault", []testcase{
	{"full store", storeFull},
	{"unavailable store", storeUnavailable},
	{"ended context", contextsEnd},
	{"closed engine", closedRefuses},
	{"close ends waits", closeEndsWaits},
	{"crash under load", crashUnderLoad},
	{"close under load", closeUnderLoad},
}}

func isOneOf(err error, errs ...error) bool {
	for _, e := range errs {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// eventually waits until try returns nil. Engines take a moment to notice that a store
// is available again.
func (f *fixture) eventually(try func() error) {
	f.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			f.Fatal(err)
		}
	}
}

// becomesError waits until try returns an error that wraps want.
func (f *fixture) becomesError(want error, try func() error) {
	f.Helper()
	f.eventually(func() error {
		if err := try(); !errors.Is(err, want) {
			return errors.Join(errors.New("unexpected error: "), err)
		}
		return nil
	})
}

func storeFull(f *fixture) {
	if f.opener.Full == nil {
		return // it cannot be filled
	}
	f.enqueue(f.queued("q"))
	j := f.next("q", 3)
	rec, l := f.claim()
	pending, dead := f.delivering(), f.deliveringTo("dead:443")
	f.enqueue(f.queued("waits"))
	undo := f.opener.Full(f, f.store, f.e)
	f.becomesError(engine.ErrFull, f.e.Ready)
	refused := f.client()
	_, err := f.e.Claim(f.ctx, refused)
	f.is(err, engine.ErrFull)
	f.gone(refused.ID)
	queued := f.queued("q")
	_, _, err = f.e.Enqueue(f.ctx, queued, strings.NewReader("b"), engine.EnqueueOptions{})
	f.is(err, engine.ErrFull)
	if errors.Is(err, engine.ErrQueueFull) {
		f.Error("a full store returned ErrQueueFull")
	}
	f.gone(queued.ID)
	// Verdicts and deliveries are still stored.
	f.must(l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r")))
	f.must(j.Lease.Settle(f.ctx, settled(j.Record, task.Failed, "r"), strings.NewReader("r")))
	waits := f.next("waits", 3)
	f.must(waits.Lease.Release(f.ctx))
	for _, d := range f.take(host, 3) {
		f.must(d.Done(f.ctx))
	}
	f.must(f.take("dead:443", 1)[0].Dead(f.ctx))
	f.in(pending.ID, task.Done)
	f.must(f.e.Act(f.ctx, dead.ID, engine.Action{Kind: engine.Delete}))
	undo()
	f.eventually(f.e.Ready)
	f.eventually(func() error { _, err := f.e.Claim(f.ctx, f.client()); return err })
	f.enqueue(f.queued("q"))
	f.crash()
	f.next("q", 3)
	f.gone(refused.ID)
	f.gone(queued.ID)
}

// methods returns a call of each method that needs a store. The arguments are chosen so
// that no call waits.
func methods(f *fixture, rec *task.Record, l engine.Lease, d engine.Delivery) map[string]func(ctx context.Context) error {
	target := engine.Target{Queue: "x"}
	return map[string]func(ctx context.Context) error{
		"Reconfigure": func(ctx context.Context) error { return f.e.Reconfigure(ctx, f.store.Settings) },
		"Claim":       func(ctx context.Context) error { _, err := f.e.Claim(ctx, f.client()); return err },
		"Enqueue": func(ctx context.Context) error {
			_, _, err := f.e.Enqueue(ctx, f.queued("x"), strings.NewReader("b"), engine.EnqueueOptions{})
			return err
		},
		"Enqueue with a key": func(ctx context.Context) error {
			_, _, err := f.e.Enqueue(ctx, f.queued("x"), strings.NewReader("b"), engine.EnqueueOptions{Key: key("k", "d")})
			return err
		},
		"Settle": func(ctx context.Context) error {
			return l.Settle(ctx, settled(rec, task.Complete, "r"), strings.NewReader("r"))
		},
		"Settle with a large result": func(ctx context.Context) error {
			return l.Settle(ctx, settled(rec, task.Complete, "r"), plain(pattern(1<<20)))
		},
		"Release": l.Release,
		"Done":    d.Done,
		"Dead":    d.Dead,
		"Retry":   func(ctx context.Context) error { return d.Retry(ctx, in(time.Hour)) },
		"Take":    func(ctx context.Context) error { _, err := f.e.Take(ctx, "x:443", 1); return err },
		"SaveHosts": func(ctx context.Context) error {
			return f.e.SaveHosts(ctx, []engine.HostState{{Host: "x:443", Window: 3}})
		},
		"NextRun": func(ctx context.Context) error { _, err := f.e.NextRun(ctx, newID(), in(0)); return err },
		"Get":     func(ctx context.Context) error { _, err := f.e.Get(ctx, rec.ID); return err },
		"Open": func(ctx context.Context) error {
			r, err := f.e.Open(ctx, d.Record().ID, engine.ResultBody)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			return err
		},
		"Wait": func(ctx context.Context) error { _, err := f.e.Wait(ctx, rec.ID, 0); return err },
		"List": func(ctx context.Context) error { _, err := f.e.List(ctx, engine.Filter{}, "", 10); return err },
		"Act": func(ctx context.Context) error {
			return f.e.Act(ctx, d.Record().ID, engine.Action{Kind: engine.RetryNow})
		},
		"Pause": func(ctx context.Context) error { return f.e.Pause(ctx, target, true) },
		"Hosts": func(ctx context.Context) error { _, _, err := f.e.Hosts(ctx, "", 10); return err },
		"Import": func(ctx context.Context) error {
			return f.e.Import(ctx, arbitrary(f.random(), in(-time.Minute)), nil, nil)
		},
		"Keys": func(ctx context.Context) error { _, _, err := f.e.Keys(ctx, "", 10); return err },
		"ImportKey": func(ctx context.Context) error {
			return f.e.ImportKey(ctx, engine.StoredKey{Hash: newID(), Digest: "d", TaskID: rec.ID, Expires: in(time.Hour)})
		},
		"Runs": func(ctx context.Context) error { _, err := f.e.Runs(ctx); return err },
	}
}

// writes are the methods that must fail on an unavailable store. Methods that read may
// return a cached answer.
var writes = []string{
	"Claim", "Enqueue", "Enqueue with a key", "Settle", "Settle with a large result", "Release", "Done", "Dead", "Retry",
	"NextRun", "Act", "Pause", "Import", "ImportKey",
}

func storeUnavailable(f *fixture) {
	if f.opener.Unavailable == nil {
		return // it cannot be made unavailable
	}
	rec, l := f.claim()
	pending := f.delivering()
	d := f.take(host, 1)[0]
	d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500})
	undo := f.opener.Unavailable(f, f.store, f.e)
	all := methods(f, rec, l, d)
	for _, name := range writes {
		ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
		if err := all[name](ctx); !errors.Is(err, engine.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			f.Errorf("%s of an unavailable store: %v", name, err)
		}
		cancel()
		delete(all, name)
	}
	for name, do := range all {
		ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
		if err := do(ctx); err != nil && !errors.Is(err, engine.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			f.Errorf("%s of an unavailable store: %v", name, err)
		}
		cancel()
	}
	f.becomesError(engine.ErrUnavailable, f.e.Ready)
	undo()
	f.eventually(f.e.Ready)
	// Repeating a step shows whether it was stored.
	f.eventually(func() error {
		err := l.Settle(f.ctx, settled(rec, task.Complete, "r"), strings.NewReader("r"))
		if errors.Is(err, engine.ErrLost) {
			return nil
		}
		return err
	})
	f.eventually(func() error {
		err := d.Done(f.ctx)
		if errors.Is(err, engine.ErrLost) {
			return nil
		}
		return err
	})
	if got := f.get(rec.ID); !got.Ended() {
		f.Errorf("the task is %s", encode(got))
	}
	if got := f.get(pending.ID); got.State == task.Delivering && got.NextAttemptAt.IsZero() {
		f.Errorf("the task is %s", encode(got))
	}
	f.enqueue(f.queued("q"))
	f.next("q", 3)
}

func contextsEnd(f *fixture) {
	ended, cancel := context.WithCancel(f.ctx)
	cancel()
	for name := range methods(f, f.client(), noLease{}, noDelivery{}) {
		rec, l := f.claim()
		pending := f.delivering()
		d := f.take(host, 1)[0]
		err := methods(f, rec, l, d)[name](ended)
		if err != nil && !isOneOf(err, context.Canceled, engine.ErrUnavailable) {
			f.Errorf("%s with a context that has ended: %v", name, err)
		}
		// The task is in its state before or after the step, and can still proceed.
		if err := l.Release(f.ctx); err != nil && !errors.Is(err, engine.ErrLost) {
			f.Errorf("releasing after %s: %v", name, err)
		}
		if err := d.Dead(f.ctx); err != nil && !errors.Is(err, engine.ErrLost) {
			f.Errorf("ending the delivery after %s: %v", name, err)
		}
		f.get(pending.ID)
		f.clear()
	}
	for name, wait := range map[string]func(context.Context) error{
		"Next":     func(ctx context.Context) error { _, err := f.e.Jobs("none").Next(ctx, 1, 1); return err },
		"DueHosts": func(ctx context.Context) error { _, err := f.e.DueHosts(ctx, 1); return err },
	} {
		if err := wait(ended); !errors.Is(err, context.Canceled) {
			f.Errorf("%s with a context that has ended: %v", name, err)
		}
	}
}

// noLease and noDelivery are used where only the names of the methods are needed.
type (
	noLease    struct{ engine.Lease }
	noDelivery struct{ engine.Delivery }
)

func (noLease) Release(context.Context) error { return nil }
func (noDelivery) Done(context.Context) error { return nil }
func (noDelivery) Dead(context.Context) error { return nil }

func closedRefuses(f *fixture) {
	rec, l := f.claim()
	f.delivering()
	d := f.take(host, 1)[0]
	f.must(f.e.Close(f.ctx))
	f.must(f.e.Close(f.ctx))
	for name, do := range methods(f, rec, l, d) {
		if err := do(f.ctx); !errors.Is(err, engine.ErrUnavailable) {
			f.Errorf("%s of a closed engine: %v", name, err)
		}
	}
	f.is(f.e.Ready(), engine.ErrUnavailable)
	_, err := f.e.Jobs("q").Next(f.ctx, 1, 1)
	f.is(err, engine.ErrUnavailable)
	_, err = f.e.DueHosts(f.ctx, 1)
	f.is(err, engine.ErrUnavailable)
	lost(l)
	f.e = f.opener.Open(f, f.store)
	f.becomes(rec.ID, task.Delivering)
	f.take(host, 2)
}

func closeEndsWaits(f *fixture) {
	rec, _ := f.claim()
	since := f.get(rec.ID).Version
	waits := []func() error{
		func() error { _, err := f.e.Jobs("q").Next(f.ctx, 1, 1); return err },
		func() error { _, err := f.e.DueHosts(f.ctx, 1); return err },
		func() error { _, err := f.e.Wait(f.ctx, rec.ID, since); return err },
	}
	got := make(chan error)
	for _, w := range waits {
		go func() { got <- w() }()
	}
	f.noJob("other")
	f.must(f.e.Close(f.ctx))
	for range waits {
		f.is(<-got, engine.ErrUnavailable)
	}
	f.e = f.opener.Open(f, f.store)
}

// acked is what the engine acknowledged to the writers.
type acked struct {
	mu      sync.Mutex
	claimed map[string]bool // and possibly settled
	settled map[string]bool
	queued  map[string]bool
}

// write stores tasks until the engine returns an error.
func (f *fixture) write(a *acked, e engine.Engine, enough func()) {
	for {
		rec := f.client()
		l, err := e.Claim(f.ctx, rec)
		if err != nil {
			return
		}
		a.mu.Lock()
		a.claimed[rec.ID] = true
		a.mu.Unlock()
		if l.Settle(f.ctx, settled(rec, task.Complete, "result of "+rec.ID), strings.NewReader("result of "+rec.ID)) != nil {
			return
		}
		q := f.queued("q")
		_, _, err = e.Enqueue(f.ctx, q, strings.NewReader("request of "+q.ID), engine.EnqueueOptions{})
		a.mu.Lock()
		a.settled[rec.ID] = true
		if err == nil {
			a.queued[q.ID] = true
		}
		n := len(a.settled)
		a.mu.Unlock()
		if err != nil {
			return
		}
		if n > 150 {
			enough()
		}
	}
}

// underLoad ends an engine while 16 writers use it, opens the store again, and checks
// that it has all that was acknowledged.
func underLoad(f *fixture, end func()) {
	a := &acked{claimed: map[string]bool{}, settled: map[string]bool{}, queued: map[string]bool{}}
	e := f.e
	var once, writers sync.WaitGroup
	var first sync.Once
	once.Add(1)
	for range 16 {
		writers.Go(func() { f.write(a, e, func() { first.Do(once.Done) }) })
	}
	once.Wait()
	end()
	writers.Wait()
	f.e = f.opener.Open(f, f.store)
	for id := range a.claimed {
		if rec := f.becomes(id, task.Delivering); a.settled[id] && rec.Status != task.Complete {
			f.Errorf("task %s was settled, and is %s", id, rec.Status)
		}
	}
	for id := range a.settled {
		if b := f.body(id, engine.ResultBody); string(b) != "result of "+id {
			f.Errorf("the result of %s is %q", id, b)
		}
	}
	for id := range a.queued {
		f.in(id, task.Queued)
		if b := f.body(id, engine.RequestBody); string(b) != "request of "+id {
			f.Errorf("the request of %s is %q", id, b)
		}
	}
	f.countsAgree("in the end", nil)
}

func crashUnderLoad(f *fixture) {
	underLoad(f, func() { f.opener.Kill(f, f.e) })
}

func closeUnderLoad(f *fixture) {
	underLoad(f, func() { f.must(f.e.Close(f.ctx)) })
}
