package enginetest

import (
	"fmt"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

var jobOrderSuite = suite{"job order", []testcase{
	{"order of arrival", orderOfArrival},
	{"order of ready time", orderOfReadyTime},
	{"delayed job blocks no other job", delayedWait},
	{"delayed job", delayedComes},
	{"released job is first", releasedFirst},
	{"batch order", batchOrder},
}}

// nextIDs returns the IDs of the next n jobs of a queue.
func (f *fixture) nextIDs(queue string, n int) []string {
	f.Helper()
	var got []string
	for len(got) < n {
		jobs, err := f.e.Jobs(queue).Next(f.ctx, 1, 3)
		f.must(err)
		got = append(got, jobs[0].Record.ID)
	}
	return got
}

// ordered checks the order of jobs. On a cluster it only checks that the jobs are the
// same.
func (f *fixture) ordered(got, want []string) {
	f.Helper()
	if f.opener.Cluster {
		got, want = sorted(got), sorted(want)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		f.Fatalf("the order is\n%v\nnot\n%v", got, want)
	}
}

func orderOfArrival(f *fixture) {
	var want []string
	for range 20 {
		want = append(want, f.enqueue(f.queued("q")).ID)
	}
	f.crash()
	f.ordered(f.nextIDs("q", 20), want)
}

func orderOfReadyTime(f *fixture) {
	for _, late := range []bool{false, true} {
		var want [3]string
		first := in(50 * time.Millisecond)
		for _, place := range []int{2, 0, 1} {
			rec := f.queued("q")
			rec.NextAttemptAt = first.Add(time.Duration(20*place) * time.Millisecond)
			want[place] = f.enqueue(rec).ID
		}
		if late { // all are ready when the first is asked for
			rec := f.queued("clock")
			rec.NextAttemptAt = first.Add(50 * time.Millisecond)
			f.enqueue(rec)
			f.next("clock", 3)
		}
		f.ordered(f.nextIDs("q", 3), want[:])
	}
}

func delayedWait(f *fixture) {
	rec := f.queued("q")
	rec.NextAttemptAt = in(time.Hour)
	f.enqueue(rec)
	if got := f.in(rec.ID, task.Queued); !got.NextAttemptAt.Equal(rec.NextAttemptAt) {
		f.Errorf("the ready time is %v", got.NextAttemptAt)
	}
	want := f.enqueue(f.queued("q"))
	if j := f.next("q", 3); j.Record.ID != want.ID {
		f.Error("the delayed job came first")
	}
	f.noJob("q")
}

func delayedComes(f *fixture) {
	for _, restart := range []bool{false, true} {
		rec := f.queued("q")
		rec.NextAttemptAt = in(100 * time.Millisecond)
		f.enqueue(rec)
		if restart {
			f.crash()
		}
		j := f.next("q", 3)
		if time.Now().Before(rec.NextAttemptAt) {
			f.Error("the job is handed out early")
		}
		if j.Record.ID != rec.ID || !j.Record.NextAttemptAt.IsZero() {
			f.Errorf("the job is %s", encode(j.Record))
		}
		f.settle(j.Record, j.Lease)
	}
}

func releasedFirst(f *fixture) {
	var want []string
	for range 3 {
		want = append(want, f.enqueue(f.queued("q")).ID)
	}
	j := f.next("q", 3)
	f.must(j.Lease.Release(f.ctx))
	f.ordered(f.nextIDs("q", 3), want)
	rec := f.enqueue(f.queued("q2"))
	later := f.enqueue(f.queued("q2"))
	j = f.next("q2", 3)
	f.must(j.Lease.Requeue(f.ctx, j.Record, time.Time{}))
	f.ordered(f.nextIDs("q2", 2), []string{rec.ID, later.ID})
}

func batchOrder(f *fixture) {
	var want []string
	for range 10 {
		want = append(want, f.enqueue(f.queued("q")).ID)
	}
	var got []string
	for len(got) < 10 {
		jobs, err := f.e.Jobs("q").Next(f.ctx, 4, 3)
		f.must(err)
		if len(jobs) > 4 {
			f.Fatalf("%d jobs", len(jobs))
		}
		for _, j := range jobs {
			got = append(got, j.Record.ID)
		}
	}
	f.ordered(got, want)
}
