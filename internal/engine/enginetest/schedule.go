package enginetest

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var scheduleSuite = suite{"schedule", []testcase{
	{"new schedule", scheduleNew},
	{"run times survive a crash", scheduleSurvives},
	{"schedule advances once", scheduleOnce},
	{"run waits for the previous run", scheduleWaits},
	{"run of a claimed task waits", scheduleTakeOver},
	{"list of runs", scheduleRuns},
}}

func (f *fixture) runTimes(schedule string, first, last, next time.Time) {
	f.Helper()
	r, err := f.e.NextRun(f.ctx, schedule, first)
	f.must(err)
	if !r.Last.Equal(last) || !r.Next.Equal(next) {
		f.Fatalf("the run times are %v and %v, want %v and %v", r.Last, r.Next, last, next)
	}
}

func scheduleNew(f *fixture) {
	a, b := in(time.Hour), in(2*time.Hour)
	f.runTimes("s", a, time.Time{}, a)
	f.runTimes("s", b, time.Time{}, a)
	f.runTimes("s2", b, time.Time{}, b)
}

func scheduleSurvives(f *fixture) {
	a, b := in(time.Hour), in(2*time.Hour)
	f.runTimes("s", a, time.Time{}, a)
	f.crash()
	f.runTimes("s", b, time.Time{}, a)
	f.must(f.e.Advance(f.ctx, "s", a, b))
	f.crash()
	f.runTimes("s", a, a, b)
}

func scheduleOnce(f *fixture) {
	a, b, c := in(time.Hour), in(2*time.Hour), in(3*time.Hour)
	f.is(f.e.Advance(f.ctx, "unknown", a, b), engine.ErrLost)
	f.runTimes("s", a, time.Time{}, a)
	f.is(f.e.Advance(f.ctx, "s", b, c), engine.ErrLost)
	var mu sync.Mutex
	moved := 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := f.e.Advance(f.ctx, "s", a, b)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				moved++
			} else if !errors.Is(err, engine.ErrLost) {
				f.Errorf("the error is %v", err)
			}
		})
	}
	wg.Wait()
	if moved != 1 {
		f.Errorf("%d gateways advanced the schedule", moved)
	}
	f.runTimes("s", c, a, b)
}

// scheduled enqueues a run of a schedule.
func (f *fixture) scheduled(schedule, at string) (*task.Record, string, bool) {
	f.Helper()
	rec := f.queued("q")
	rec.Schedule = schedule
	id, created, err := f.e.Enqueue(f.ctx, rec, strings.NewReader("b"), engine.EnqueueOptions{Key: key(schedule+at, "")})
	f.must(err)
	return rec, id, created
}

func scheduleWaits(f *fixture) {
	a, id, created := f.scheduled("s", "1")
	if id != a.ID || !created {
		f.Fatalf("id %s, created: %v", id, created)
	}
	b, id, created := f.scheduled("s", "2")
	if id != a.ID || created {
		f.Fatalf("id %s, want %s; created: %v", id, a.ID, created)
	}
	f.gone(b.ID)
	if other, id, created := f.scheduled("s2", "1"); id != other.ID || !created {
		f.Errorf("another schedule: id %s, created: %v", id, created)
	}
	f.crash()
	if _, id, created := f.scheduled("s", "3"); id != a.ID || created {
		f.Errorf("after the crash: id %s, created: %v", id, created)
	}
	j := f.next("q", 3)
	c, id, created := f.scheduled("s", "4")
	if id != c.ID || !created {
		f.Errorf("after the start: id %s, created: %v", id, created)
	}
	f.settle(j.Record, j.Lease)
	f.must(f.e.Act(f.ctx, c.ID, engine.Action{Kind: engine.Cancel}))
	if d, id, created := f.scheduled("s", "5"); id != d.ID || !created {
		f.Errorf("after the cancel: id %s, created: %v", id, created)
	}
}

func scheduleTakeOver(f *fixture) {
	a, _, _ := f.scheduled("s", "1")
	rec, l := f.claim()
	q := f.queued("q")
	q.ID, q.Schedule = rec.ID, "s"
	id, created, err := l.Enqueue(f.ctx, q, strings.NewReader("b"), engine.EnqueueOptions{})
	f.must(err)
	if id != a.ID || created {
		f.Errorf("id %s, created: %v", id, created)
	}
	f.gone(rec.ID)
}

func scheduleRuns(f *fixture) {
	a, b := in(time.Hour), in(2*time.Hour)
	f.runTimes("s", a, time.Time{}, a)
	f.runTimes("a schedule / with * any > name", b, time.Time{}, b)
	f.must(f.e.Advance(f.ctx, "s", a, b))
	f.crash()
	runs, err := f.e.Runs(f.ctx)
	f.must(err)
	if len(runs) != 2 || !runs["s"].Last.Equal(a) || !runs["s"].Next.Equal(b) || !runs["a schedule / with * any > name"].Next.Equal(b) {
		f.Errorf("the runs are %v", runs)
	}
}
