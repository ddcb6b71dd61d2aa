package enginetest

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var queueSuite = suite{"queue", []testcase{
	{"states of a job", jobRuns},
	{"settled job is delivering", jobSettles},
	{"job without a callback", jobWithoutCallback},
	{"holder crashes", jobHolderCrashes},
	{"holder crashes on the last start", jobLastHolderCrashes},
	{"queued task survives a crash", queuedSurvives},
	{"release uses no attempt", jobReleased},
	{"requeue", jobRequeued},
	{"holder of a poll crashes", polledHolderCrashes},
	{"enqueue a claimed task", takeOver},
	{"enqueued claim survives a crash", takeOverSurvives},
	{"interrupted enqueue of a claim", takeOverRepeated},
	{"full queue keeps the lease", queueFull},
	{"jobs are separated by queue", queuesAreApart},
	{"paused queue", queuePaused},
	{"job is handed out once", eachJobOnce},
	{"canceled Next loses no job", nextCanceled},
	{"canceled job is not handed out", canceledJob},
}}

func jobRuns(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	f.sameIn(f.in(rec.ID, task.Queued), rec, task.Queued)
	if b := f.body(rec.ID, engine.RequestBody); string(b) != "request of "+rec.ID {
		f.Errorf("the request is %q", b)
	}
	before := f.get(rec.ID).Version
	j := f.next("q", 3)
	if j.Record.ID != rec.ID || j.Record.Starts != 1 || j.Record.StartedAt.IsZero() {
		f.Fatalf("the job is %s", encode(j.Record))
	}
	got := f.in(rec.ID, task.Running)
	f.same(got, j.Record)
	if got.Version == before {
		f.Error("the version did not change")
	}
	if b := f.body(rec.ID, engine.RequestBody); string(b) != "request of "+rec.ID {
		f.Errorf("the request of a running task is %q", b)
	}
	f.noJob("q")
}

func jobSettles(f *fixture) {
	f.enqueue(f.queued("q"))
	j := f.next("q", 3)
	want := f.settle(j.Record, j.Lease)
	f.sameIn(f.in(want.ID, task.Delivering), want, task.Delivering)
	f.noBody(want.ID, engine.RequestBody)
	f.same(f.take(host, 1)[0].Record(), f.get(want.ID))
	f.crash()
	f.noJob("q")
}

func jobWithoutCallback(f *fixture) {
	rec := f.queued("q")
	rec.Callback, rec.CallbackHost = nil, ""
	f.enqueue(rec)
	j := f.next("q", 3)
	want := f.settle(j.Record, j.Lease)
	f.sameIn(f.in(want.ID, task.Done), want, task.Done)
	if b := f.body(want.ID, engine.ResultBody); string(b) != "result of "+rec.ID {
		f.Errorf("the result is %q", b)
	}
	f.noDue()
}

func jobHolderCrashes(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	for start := 1; start <= 2; start++ {
		j := f.next("q", 3)
		if j.Record.ID != rec.ID || j.Record.Starts != start {
			f.Fatalf("start %d: the job is %s", start, encode(j.Record))
		}
		f.crash()
		if j.Lease.Settle(f.ctx, settled(j.Record, task.Complete, "r"), strings.NewReader("r")) == nil {
			f.Error("a dead holder has settled")
		}
	}
	j := f.next("q", 3)
	if b := f.body(rec.ID, engine.RequestBody); j.Record.Starts != 3 || string(b) != "request of "+rec.ID {
		f.Fatalf("start %d with the request %q", j.Record.Starts, b)
	}
	f.settle(j.Record, j.Lease)
}

func jobLastHolderCrashes(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	f.next("q", 1)
	f.crash()
	got := f.becomes(rec.ID, task.Delivering)
	if got.Status != task.Failed || got.Error != task.ErrorHolderDied || got.FinishedAt.IsZero() ||
		got.Starts != 1 || got.Request.Header != nil {
		f.Fatalf("the task is %s", encode(got))
	}
	f.noBody(rec.ID, engine.RequestBody)
	f.take(host, 1)
	f.noJob("q")
}

func queuedSurvives(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	f.crash()
	f.sameIn(f.in(rec.ID, task.Queued), rec, task.Queued)
	if j := f.next("q", 3); j.Record.ID != rec.ID || j.Record.Starts != 1 {
		f.Errorf("the job is %s", encode(j.Record))
	}
}

func jobReleased(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	for range 3 {
		j := f.next("q", 1)
		if j.Record.Starts != 1 {
			f.Fatalf("start %d", j.Record.Starts)
		}
		f.must(j.Lease.Release(f.ctx))
		f.sameIn(f.in(rec.ID, task.Queued), rec, task.Queued)
	}
	f.crash()
	if j := f.next("q", 1); j.Record.Starts != 1 {
		f.Errorf("after the restart, starts is %d", j.Record.Starts)
	}
}

func jobRequeued(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	j := f.next("q", 3)
	f.must(j.Lease.Requeue(f.ctx, j.Record, time.Time{}))
	if got := f.in(rec.ID, task.Queued); got.Starts != 1 {
		f.Errorf("%d starts", got.Starts)
	}
	j = f.next("q", 3)
	if j.Record.Starts != 2 {
		f.Errorf("start %d", j.Record.Starts)
	}
	j.Record.Starts, j.Record.Error = 0, "the endpoint is unavailable"
	at := in(50 * time.Millisecond)
	f.must(j.Lease.Requeue(f.ctx, j.Record, at))
	if got := f.in(rec.ID, task.Queued); got.Starts != 0 || got.Error != "the endpoint is unavailable" || !got.NextAttemptAt.Equal(at) {
		f.Errorf("the task is %s", encode(got))
	}
	j = f.next("q", 3)
	if time.Now().Before(at) {
		f.Error("the job is handed out early")
	}
	if j.Record.Starts != 1 || !j.Record.NextAttemptAt.IsZero() {
		f.Errorf("the job is %s", encode(j.Record))
	}
	if b := f.body(rec.ID, engine.RequestBody); string(b) != "request of "+rec.ID {
		f.Errorf("the request is %q", b)
	}
}

func polledHolderCrashes(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	j := f.next("q", 1)
	polled := clone(j.Record)
	polled.Poll = &task.Poll{StartedAt: in(0), URI: "/operations/1?a=b", Host: "other.example", Interval: time.Second, Result: true}
	polled.Request.Header = nil
	f.must(j.Lease.Requeue(f.ctx, polled, time.Time{}))
	keeps := func(got *task.Record) {
		f.Helper()
		if got.Poll == nil || *got.Poll != *polled.Poll || got.Request.Header != nil {
			f.Fatalf("the task is %s", encode(got))
		}
	}
	keeps(f.in(rec.ID, task.Queued))
	keeps(f.next("q", 1).Record)
	f.crash()
	j = f.next("q", 1)
	keeps(j.Record)
	f.must(j.Lease.Release(f.ctx))
	keeps(f.in(rec.ID, task.Queued))
	j = f.next("q", 1)
	if got := f.settle(j.Record, j.Lease); got.Poll != nil || !got.StartedAt.Equal(polled.Poll.StartedAt) {
		f.Errorf("the task ended as %s", encode(got))
	}
}

func queueFull(f *fixture) {
	opts := engine.EnqueueOptions{MaxQueued: 3}
	for range 3 {
		_, _, err := f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
		f.must(err)
	}
	refused := f.queued("q")
	_, _, err := f.e.Enqueue(f.ctx, refused, strings.NewReader("b"), opts)
	f.is(err, engine.ErrQueueFull)
	f.gone(refused.ID)
	rec, l := f.claim()
	_, _, _, err = f.handOver(rec, l, opts)
	f.is(err, engine.ErrQueueFull)
	f.in(rec.ID, task.Running)
	f.must(l.Release(f.ctx))
	f.enqueue(f.queued("other"))
	j := f.next("q", 3) // a running task does not count
	_, created, err := f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
	f.must(err)
	if !created {
		f.Error("not created")
	}
	f.must(j.Lease.Release(f.ctx)) // a released job returns even if the queue is full
}

func queuesAreApart(f *fixture) {
	names := []string{"a", "a.b", "a/b", "ü", "A", "a*", "a b"}
	for _, n := range names {
		f.enqueue(f.queued(n))
	}
	for _, n := range names {
		if j := f.next(n, 3); j.Record.Queue != n {
			f.Errorf("queue %s handed out a job of %s", n, j.Record.Queue)
		}
	}
	f.noJob("a")
}

func queuePaused(f *fixture) {
	f.must(f.e.Pause(f.ctx, engine.Target{Queue: "q"}, true))
	rec := f.enqueue(f.queued("q"))
	f.noJob("q")
	f.reopen()
	f.noJob("q")
	f.crash()
	f.noJob("q")
	got := make(chan engine.Job)
	go func() {
		if jobs, err := f.e.Jobs("q").Next(f.ctx, 1, 3); err == nil && len(jobs) == 1 {
			got <- jobs[0]
		}
		close(got)
	}()
	f.enqueue(f.queued("other"))
	f.next("other", 3)
	f.must(f.e.Pause(f.ctx, engine.Target{Queue: "q"}, false))
	if j := <-got; j.Record == nil || j.Record.ID != rec.ID {
		f.Error("the job is not handed out after the pause")
	}
}

func eachJobOnce(f *fixture) {
	const jobs, workers = 300, 8
	for range jobs {
		f.enqueue(f.queued("q"))
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	var mu sync.Mutex
	seen := make(map[string]int)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for {
				got, err := f.e.Jobs("q").Next(ctx, 1+w%3, 3)
				if err != nil {
					return
				}
				mu.Lock()
				if len(got) == 0 || len(got) > 1+w%3 {
					f.Errorf("%d jobs, %d were asked for", len(got), 1+w%3)
				}
				for _, j := range got {
					seen[j.Record.ID]++
				}
				if len(seen) == jobs {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	f.must(f.ctx.Err())
	for id, n := range seen {
		if n != 1 {
			f.Errorf("job %s is handed out %d times", id, n)
		}
	}
	f.noJob("q")
}

func nextCanceled(f *fixture) {
	r := f.random()
	const jobs = 200
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for range jobs {
			rec := f.queued("q")
			if _, _, err := f.e.Enqueue(f.ctx, rec, strings.NewReader("b"), engine.EnqueueOptions{}); err != nil {
				f.Errorf("enqueueing: %v", err)
			}
		}
	})
	for len(seen) < jobs {
		ctx, cancel := context.WithTimeout(f.ctx, time.Duration(r.IntN(1000))*time.Microsecond)
		got, err := f.e.Jobs("q").Next(ctx, 3, 3)
		cancel()
		if err != nil && f.ctx.Err() != nil {
			f.Fatalf("%d of %d jobs are handed out", len(seen), jobs)
		}
		for _, j := range got {
			if seen[j.Record.ID] || j.Record.Starts != 1 {
				f.Fatalf("job %s is handed out again, start %d", j.Record.ID, j.Record.Starts)
			}
			seen[j.Record.ID] = true
		}
	}
	f.noJob("q")
}

func canceledJob(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	f.must(f.e.Act(f.ctx, rec.ID, engine.Action{Kind: engine.Cancel, Reason: "not needed"}))
	f.noJob("q")
	got := f.in(rec.ID, task.Delivering)
	if got.Status != task.Failed || got.Error != "not needed" || got.FinishedAt.IsZero() || got.Request.Header != nil {
		f.Errorf("the task is %s", encode(got))
	}
	f.noBody(rec.ID, engine.RequestBody)
	f.take(host, 1)
}
