package enginetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var dueSuite = suite{"due hosts", []testcase{
	{"host is reported once", reportedOnce},
	{"hosts are reported after a restart", reportedAfterRestart},
	{"reported after a short Take", reportedAgain},
	{"reported after a release", reportedReleased},
	{"reported when a retry is due", reportedRetry},
	{"reported after a resume", reportedResumed},
	{"resume clears failures", resumedAnew},
	{"new delivery wakes a wait", reportedAtOnce},
	{"canceled wait loses no host", reportedAfterCancel},
	{"at most max hosts per call", reportedAll},
	{"host state is reported", reportedState},
	{"operator's host is trusted", reportedTrusted},
	{"due counts", reportedCounts},
}}

// drainHost takes deliveries of a host until Take returns fewer than asked for, and
// ends them at random.
func (f *fixture) drainHost(seed uint64, h *holders, host string) {
	f.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for {
		n := 1 + r.IntN(8)
		ds, err := f.e.Take(f.ctx, host, n)
		f.must(err)
		if len(ds) > n {
			f.Fatalf("%d deliveries are taken, %d were asked for", len(ds), n)
		}
		var wg sync.WaitGroup
		for _, d := range ds {
			h.take(f, d)
			what, wait := r.IntN(8), time.Duration(r.IntN(40)-10)*time.Millisecond
			wg.Go(func() { f.endAtRandom(h, d, what, wait) })
		}
		wg.Wait()
		if len(ds) < n {
			return
		}
	}
}

func (f *fixture) endAtRandom(h *holders, d engine.Delivery, what int, wait time.Duration) {
	var err error
	switch what {
	case 0:
		h.leave(d, "")
		err = d.Release(f.ctx)
	case 1, 2, 3:
		d.Record().AddAttempt(task.Attempt{At: in(0), StatusCode: 500})
		h.leave(d, "")
		err = d.Retry(f.ctx, in(wait))
	case 4:
		h.leave(d, task.Dead)
		err = d.Dead(f.ctx)
	default:
		h.leave(d, task.Done)
		err = d.Done(f.ctx)
	}
	if err != nil {
		f.Errorf("ending a delivery: %v", err)
	}
}

// due waits until hosts are reported and returns their names.
func (f *fixture) due(max int) []string {
	f.Helper()
	due, err := f.e.DueHosts(f.ctx, max)
	f.must(err)
	if len(due) == 0 || len(due) > max {
		f.Fatalf("%d hosts are reported, %d were asked for", len(due), max)
	}
	var names []string
	for _, d := range due {
		if d.Due < 1 {
			f.Errorf("host %s is reported with %d due", d.Host, d.Due)
		}
		names = append(names, d.Host)
	}
	return names
}

// reported waits until exactly the given hosts have been reported.
func (f *fixture) reported(want ...string) {
	f.Helper()
	var got []string
	for len(got) < len(want) {
		got = append(got, f.due(10)...)
	}
	if !slices.Equal(sorted(got), sorted(want)) {
		f.Fatalf("reported are %v, want %v", got, want)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func reportedOnce(f *fixture) {
	f.noDue()
	f.deliveringTo("a:443")
	f.deliveringTo("b:443")
	f.deliveringTo("a:443")
	f.reported("a:443", "b:443")
	f.noDue()
	f.deliveringTo("a:443") // nothing was taken yet: the dispatcher knows the host
	f.noDue()
}

func reportedAfterRestart(f *fixture) {
	f.deliveringTo("a:443")
	f.deliveringTo("b:443")
	f.reported("a:443", "b:443")
	f.must(f.take("b:443", 1)[0].Done(f.ctx))
	f.reopen()
	f.reported("a:443")
	f.take("a:443", 1)
	f.crash()
	f.reported("a:443")
	f.noDue()
}

// short takes n deliveries of a host and asks for one more.
func (f *fixture) short(host string, n int) []engine.Delivery {
	f.Helper()
	ds, err := f.e.Take(f.ctx, host, n+1)
	f.must(err)
	if len(ds) != n {
		f.Fatalf("%d deliveries are taken, want %d", len(ds), n)
	}
	return ds
}

func reportedAgain(f *fixture) {
	for range 3 {
		f.deliveringTo("a:443")
		f.reported("a:443")
		f.short("a:443", 1)
		f.noDue()
	}
}

func reportedReleased(f *fixture) {
	f.deliveringTo("a:443")
	f.reported("a:443")
	d := f.short("a:443", 1)[0]
	f.must(d.Release(f.ctx))
	f.reported("a:443")
	// The same holds after a Take that returned as many as asked for.
	ds, err := f.e.Take(f.ctx, "a:443", 1)
	f.must(err)
	f.must(ds[0].Release(f.ctx))
	f.reported("a:443")
}

func reportedRetry(f *fixture) {
	f.deliveringTo("a:443")
	for _, wait := range []time.Duration{-time.Hour, 0, 80 * time.Millisecond} {
		f.reported("a:443")
		d := f.short("a:443", 1)[0]
		at := in(wait)
		f.must(d.Retry(f.ctx, at))
		f.reported("a:443")
		if time.Now().Before(at) {
			f.Error("the host is reported early")
		}
		f.must(f.short("a:443", 1)[0].Release(f.ctx))
	}
}

func reportedResumed(f *fixture) {
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, true))
	f.deliveringTo("a:443")
	f.deliveringTo("b:443")
	f.reported("b:443")
	f.noDue()
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, false))
	f.reported("a:443")
	// If a host is paused after it was reported, it hands out nothing. It is reported
	// again when it is resumed.
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, true))
	f.noneToTake("a:443")
	f.noDue()
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, false))
	f.reported("a:443")
	f.short("a:443", 1)
}

func resumedAnew(f *fixture) {
	want := engine.HostState{
		Host: "a:443", Window: 3, AnsweredAt: in(-time.Minute),
		Failures: 4, FailingSince: in(-time.Hour), LastError: "connection refused",
	}
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{want}))
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, true))
	f.deliveringTo("a:443")
	want.Paused = true
	if got := f.hosts(10)["a:443"].HostState; !sameHost(got, want) {
		f.Errorf("the paused host is %+v, not %+v", got, want)
	}
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, false))
	want.Paused, want.Failures, want.FailingSince = false, 0, time.Time{}
	for _, restart := range []bool{false, true} {
		if restart {
			f.reopen()
		}
		due, err := f.e.DueHosts(f.ctx, 10)
		f.must(err)
		if len(due) != 1 || !sameHost(due[0].HostState, want) {
			f.Errorf("reported is %+v, not %+v", due, want)
		}
	}
	// Failures count again.
	want.Failures, want.FailingSince = 1, in(0)
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{want}))
	if got := f.hosts(10)["a:443"].HostState; !sameHost(got, want) {
		f.Errorf("the failing host is %+v, not %+v", got, want)
	}
}

func reportedAtOnce(f *fixture) {
	got := make(chan []engine.HostDue)
	go func() {
		due, _ := f.e.DueHosts(f.ctx, 10)
		got <- due
	}()
	f.deliveringTo("a:443")
	if due := <-got; len(due) != 1 || due[0].Host != "a:443" {
		f.Errorf("reported are %v", due)
	}
}

func reportedAfterCancel(f *fixture) {
	r := f.random()
	const hosts = 100
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range hosts {
			rec := f.client()
			rec.CallbackHost = fmt.Sprintf("host-%d:443", i)
			l, err := f.e.Claim(f.ctx, rec)
			if err == nil {
				rec = settled(rec, task.TimedOut, "")
				rec.Result = nil
				err = l.Settle(f.ctx, rec, nil)
			}
			if err != nil {
				f.Errorf("settling: %v", err)
			}
		}
	})
	seen := make(map[string]bool)
	for len(seen) < hosts {
		ctx, cancel := context.WithTimeout(f.ctx, time.Duration(r.IntN(1000))*time.Microsecond)
		due, _ := f.e.DueHosts(ctx, 3)
		cancel()
		if f.ctx.Err() != nil {
			f.Fatalf("%d of %d hosts are reported", len(seen), hosts)
		}
		for _, d := range due {
			if seen[d.Host] {
				f.Fatalf("host %s is reported again", d.Host)
			}
			seen[d.Host] = true
		}
	}
	f.noDue()
}

func reportedAll(f *fixture) {
	var want, got []string
	for i := range 50 {
		want = append(want, fmt.Sprintf("host-%d:443", i))
		f.deliveringTo(want[i])
	}
	f.crash()
	for len(got) < len(want) {
		got = append(got, f.due(7)...)
	}
	if !slices.Equal(sorted(got), sorted(want)) {
		f.Errorf("reported are %v", got)
	}
	f.noDue()
}

func reportedState(f *fixture) {
	want := engine.HostState{
		Host: "a:443", Window: 7, Average: 120 * time.Millisecond, AnsweredAt: in(-time.Minute),
		Failures: 3, FailingSince: in(-time.Hour), LastError: "connection refused", LastStatus: 503,
	}
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{want, {Host: "b:443", Window: 2}}))
	for _, restart := range []bool{false, true} {
		if restart {
			f.reopen()
		} else {
			f.deliveringTo("a:443")
		}
		due, err := f.e.DueHosts(f.ctx, 10)
		f.must(err)
		if len(due) != 1 || !sameHost(due[0].HostState, want) {
			f.Errorf("reported is %+v, want %+v", due, want)
		}
	}
	// SaveHosts neither pauses nor resumes a host.
	want.Paused = true
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{want}))
	f.take("a:443", 1)
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "a:443"}, true))
	want.Paused = false
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{want}))
	f.deliveringTo("a:443")
	f.noneToTake("a:443")
}

// sameHost compares two states, with times in milliseconds.
func sameHost(a, b engine.HostState) bool {
	same := a.AnsweredAt.Equal(b.AnsweredAt) && a.FailingSince.Equal(b.FailingSince)
	a.AnsweredAt, b.AnsweredAt, a.FailingSince, b.FailingSince = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return same && a == b
}

func reportedTrusted(f *fixture) {
	rec := f.client()
	rec.CallbackHost, rec.Callback.Trusted = "operator:443", true
	l, err := f.e.Claim(f.ctx, rec)
	f.must(err)
	f.settle(rec, l)
	f.deliveringTo("a:443")
	for _, restart := range []bool{false, true} {
		if restart {
			f.crash()
		}
		trusted := make(map[string]bool)
		for len(trusted) < 2 {
			due, err := f.e.DueHosts(f.ctx, 10)
			f.must(err)
			for _, d := range due {
				trusted[d.Host] = d.Trusted
			}
		}
		if !trusted["operator:443"] || trusted["a:443"] {
			f.Errorf("restart %v: trusted are %v", restart, trusted)
		}
	}
}

func reportedCounts(f *fixture) {
	for range 30 {
		f.deliveringTo("a:443")
	}
	f.reported("a:443")
	f.short("a:443", 30)
	for range 5 {
		f.deliveringTo("a:443")
	}
	f.reported("a:443")
	ds, err := f.e.Take(f.ctx, "a:443", 5)
	f.must(err)
	if len(ds) != 5 {
		f.Errorf("%d are taken", len(ds))
	}
	f.noDue() // not reported: Take returned as many as asked for
	f.short("a:443", 0)
	f.deliveringTo("a:443")
	f.reported("a:443")
}
