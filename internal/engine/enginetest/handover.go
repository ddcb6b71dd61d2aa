package enginetest

import (
	"context"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// handOver turns a claimed task into a queue's task.
func (f *fixture) handOver(rec *task.Record, l engine.Lease, opts engine.EnqueueOptions) (*task.Record, string, bool, error) {
	q := f.queued("q")
	body := "request of " + rec.ID
	q.ID, q.CreatedAt, q.Request.Size = rec.ID, rec.CreatedAt, int64(len(body))
	got, created, err := l.Enqueue(f.ctx, q, strings.NewReader(body), opts)
	return q, got, created, err
}

func takeOver(f *fixture) {
	rec, l := f.claim()
	c := f.get(rec.ID).Version
	q, id, created, err := f.handOver(rec, l, engine.EnqueueOptions{})
	f.must(err)
	if id != rec.ID || !created {
		f.Fatalf("enqueued as %q, created: %v", id, created)
	}
	got := f.in(rec.ID, task.Queued)
	f.sameIn(got, q, task.Queued)
	if got.Version == c {
		f.Error("the version did not change")
	}
	j := f.next("q", 3)
	if b := f.body(rec.ID, engine.RequestBody); j.Record.ID != rec.ID || string(b) != "request of "+rec.ID {
		f.Errorf("the job is %s with the request %q", j.Record.ID, b)
	}
	f.settle(j.Record, j.Lease)
	f.take(host, 1)
}

// takeOverRepeated interrupts the enqueue of a claimed task, a little later in each
// round, and repeats it. The repeated call returns what the first one would have
// returned.
func takeOverRepeated(f *fixture) {
	first := f.queued("other")
	_, _, err := f.e.Enqueue(f.ctx, first, strings.NewReader("b"), engine.EnqueueOptions{Key: key("known", "d")})
	f.must(err)
	rec, l := f.claim()
	began := time.Now()
	_, _, _, err = f.handOver(rec, l, engine.EnqueueOptions{})
	f.must(err)
	took := time.Since(began)
	f.settle(rec, f.next("q", 3).Lease)
	const rounds = 60
	for i := range rounds {
		rec, l := f.claim()
		var opts engine.EnqueueOptions
		want := rec.ID
		switch i % 3 {
		case 1:
			opts.Key = key(rec.ID, "d")
		case 2:
			opts.Key, want = key("known", "d"), first.ID
		}
		interrupted := *f
		var cancel func()
		began = time.Now()
		interrupted.ctx, cancel = context.WithTimeout(f.ctx, took*time.Duration(i)*2/rounds)
		_, id, created, err := interrupted.handOver(rec, l, opts)
		cancel()
		if err == nil {
			took = min(took, time.Since(began)) // the first one may have been slow
		}
		var job *engine.Job
		if err != nil {
			if !isOneOf(err, engine.ErrUnavailable, context.DeadlineExceeded) {
				f.Fatal(err)
			}
			// The task may be stored, and a worker may already run it.
			if got, err := f.e.Get(f.ctx, rec.ID); err == nil && got.State == task.Queued && i%2 == 0 {
				j := f.next("q", 3)
				job = &j
			}
			if _, id, created, err = f.handOver(rec, l, opts); err != nil {
				f.Fatalf("repeating it: %v", err)
			}
		}
		if id != want || created != (want == rec.ID) {
			f.Errorf("round %d: enqueued as %q, created: %v; want %q", i, id, created, want)
		}
		if want != rec.ID {
			f.gone(rec.ID)
			continue
		}
		if b := f.body(rec.ID, engine.RequestBody); string(b) != "request of "+rec.ID {
			f.Errorf("the request is %q", b)
		}
		if job == nil {
			j := f.next("q", 3)
			job = &j
		}
		f.settle(job.Record, job.Lease)
	}
}

func takeOverSurvives(f *fixture) {
	rec, l := f.claim()
	q, _, _, err := f.handOver(rec, l, engine.EnqueueOptions{})
	f.must(err)
	f.crash()
	f.sameIn(f.in(rec.ID, task.Queued), q, task.Queued)
	f.next("q", 3)
}
