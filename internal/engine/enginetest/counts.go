package enginetest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var countSuite = suite{"counts", []testcase{
	{"empty store", countNothing},
	{"counts after random steps", countRandom},
	{"counts after an import", countImported},
	{"due excludes retries and deliveries in flight", countDue},
	{"host pages by pending deliveries", hostPages},
	{"failing and paused hosts are listed", hostsListed},
	{"paused queues are listed", queuesListed},
}}

// counts are the counts of Stats, Queues and Hosts.
type counts struct {
	tasks  map[task.State]int64
	due    int64
	queues map[string]engine.QueueStats
	hosts  map[string]engine.HostStats
}

func (f *fixture) counts() counts {
	f.Helper()
	s, err := f.e.Stats(f.ctx)
	f.must(err)
	c := counts{tasks: map[task.State]int64{}, due: s.Due, queues: map[string]engine.QueueStats{}}
	for state, n := range s.Tasks {
		if n != 0 {
			c.tasks[state] = n
		}
	}
	queues, err := f.e.Queues(f.ctx)
	f.must(err)
	for _, q := range queues {
		if _, ok := c.queues[q.Queue]; ok {
			f.Errorf("queue %s is listed twice", q.Queue)
		}
		c.queues[q.Queue] = q
	}
	c.hosts = f.hosts(3)
	return c
}

// hosts lists all hosts in pages of limit.
func (f *fixture) hosts(limit int) map[string]engine.HostStats {
	f.Helper()
	all := make(map[string]engine.HostStats)
	var after engine.Cursor
	last := int64(1 << 62)
	for {
		page, next, err := f.e.Hosts(f.ctx, after, limit)
		f.must(err)
		if len(page) > limit {
			f.Errorf("a page of %d has %d hosts", limit, len(page))
		}
		for _, h := range page {
			if _, ok := all[h.Host]; ok {
				f.Errorf("host %s is listed twice", h.Host)
			}
			if h.Pending > last {
				f.Errorf("host %s with %d pending comes after one with %d", h.Host, h.Pending, last)
			}
			all[h.Host], last = h, h.Pending
		}
		if after = next; next == "" {
			return all
		}
	}
}

// readySince returns when a queued task has become ready.
func readySince(rec *task.Record) time.Time {
	if rec.NextAttemptAt.IsZero() {
		return rec.CreatedAt
	}
	return rec.NextAttemptAt
}

// counted computes the counts from the list of tasks, some of which are in flight.
// Retries are due only much later.
func (f *fixture) counted(inFlight map[string]engine.Delivery) counts {
	f.Helper()
	c := counts{tasks: map[task.State]int64{}, queues: map[string]engine.QueueStats{}, hosts: map[string]engine.HostStats{}}
	oldest := map[string]*task.Record{}
	for _, rec := range f.list(engine.Filter{}) {
		c.tasks[rec.State]++
		waits := rec.NextAttemptAt.After(time.Now())
		switch {
		case rec.State == task.Delivering:
			h := c.hosts[rec.CallbackHost]
			h.Host, h.Pending = rec.CallbackHost, h.Pending+1
			if inFlight[rec.ID] != nil {
				h.InFlight++
			} else if !waits {
				c.due++
			}
			c.hosts[rec.CallbackHost] = h
		case rec.Queue != "" && (rec.State == task.Queued || rec.State == task.Running):
			q := c.queues[rec.Queue]
			q.Queue = rec.Queue
			if rec.State == task.Running {
				q.Running++
			} else {
				q.Queued++
				if waits {
					q.Delayed++
				} else if first := oldest[rec.Queue]; first == nil || readySince(rec).Before(readySince(first)) {
					oldest[rec.Queue], q.Oldest = rec, rec.CreatedAt
				}
			}
			c.queues[rec.Queue] = q
		}
	}
	return c
}

// countsAgree compares the counts of the engine with the tasks.
func (f *fixture) countsAgree(when string, inFlight map[string]engine.Delivery) {
	f.Helper()
	got, want := f.counts(), f.counted(inFlight)
	if !maps.Equal(got.tasks, want.tasks) {
		f.Errorf("%s: Stats are %v, want %v", when, got.tasks, want.tasks)
	}
	if most := got.tasks[task.Delivering] - int64(len(inFlight)); got.due < want.due || got.due > most {
		f.Errorf("%s: %d are due, want %d to %d", when, got.due, want.due, most)
	}
	for name, q := range got.queues {
		w := want.queues[name]
		if !q.Oldest.Equal(w.Oldest) {
			f.Errorf("%s: the oldest of queue %s is of %v, want %v", when, name, q.Oldest, w.Oldest)
		}
		if q.Oldest = w.Oldest; q != w {
			f.Errorf("%s: a queue is %+v, want %+v", when, q, w)
		}
	}
	if len(got.queues) != len(want.queues) {
		f.Errorf("%s: %d queues, want %d", when, len(got.queues), len(want.queues))
	}
	for name, h := range got.hosts {
		w := want.hosts[name]
		if h.Pending != w.Pending || h.InFlight != w.InFlight || h.Paused != w.Paused {
			f.Errorf("%s: a host is %+v, want %+v", when, h, w)
		}
		if h.Next.IsZero() != (h.Pending == h.InFlight) {
			f.Errorf("%s: the next delivery of a host is due at %v: %+v", when, h.Next, h)
		}
	}
	if len(got.hosts) != len(want.hosts) {
		f.Errorf("%s: %d hosts, want %d", when, len(got.hosts), len(want.hosts))
	}
}

func countNothing(f *fixture) { f.countsAgree("at first", nil) }

// walker changes tasks at random.
type walker struct {
	*fixture
	r        *rand.Rand
	ids      []string
	jobs     map[string]engine.Job
	claims   map[string]engine.Job // of waiting clients
	inFlight map[string]engine.Delivery
}

func some[T any](m map[string]T) (string, T, bool) {
	for id, v := range m {
		delete(m, id)
		return id, v, true
	}
	var zero T
	return "", zero, false
}

// step changes one task. The holder of a canceled or stopped task gets an error.
func (w *walker) step() {
	host := pick(w.r, "a:443", "b:443", "c:443", "c:444", "d:443")
	queue := pick(w.r, "p", "q")
	var err error
	switch w.r.IntN(9) {
	case 0:
		rec := w.queued(queue)
		rec.CallbackHost, rec.NextAttemptAt = host, pick(w.r, time.Time{}, time.Time{}, in(time.Hour))
		w.ids = append(w.ids, w.enqueue(rec).ID)
	case 1:
		rec := w.client()
		rec.CallbackHost = host
		var l engine.Lease
		l, err = w.e.Claim(w.ctx, rec)
		w.claims[rec.ID] = engine.Job{Record: rec, Lease: l}
		w.ids = append(w.ids, rec.ID)
	case 2:
		if stats := w.counts().queues[queue]; stats.Queued > stats.Delayed {
			j := w.next(queue, 2)
			w.jobs[j.Record.ID] = j
		}
	case 3:
		if _, j, ok := some(w.jobs); ok {
			err = pick(w.r, leaseSteps[:3]...).do(w.fixture, j.Record, j.Lease)
		}
	case 4:
		if _, c, ok := some(w.claims); ok {
			err = pick(w.r, leaseSteps[0], leaseSteps[0], leaseSteps[2], leaseSteps[3]).do(w.fixture, c.Record, c.Lease)
		}
	case 5:
		var ds []engine.Delivery
		ds, err = w.e.Take(w.ctx, host, 1+w.r.IntN(2))
		for _, d := range ds {
			w.inFlight[d.Record().ID] = d
		}
	case 6:
		if _, d, ok := some(w.inFlight); ok {
			err = pick(w.r, deliverySteps...).do(w.fixture, d)
		}
	default:
		if len(w.ids) > 0 {
			id := pick(w.r, w.ids...)
			a := pick(w.r, engine.Cancel, engine.RetryNow, engine.Stop, engine.Redeliver, engine.Delete)
			if err = w.e.Act(w.ctx, id, engine.Action{Kind: a}); err == nil && a == engine.Stop {
				delete(w.inFlight, id)
			}
		}
	}
	if err != nil && !isOneOf(err, engine.ErrLost, engine.ErrEnded, engine.ErrNotFound) {
		w.Fatal(err)
	}
}

func countRandom(f *fixture) {
	w := &walker{
		fixture: f, r: f.random(), jobs: map[string]engine.Job{}, claims: map[string]engine.Job{},
		inFlight: map[string]engine.Delivery{},
	}
	steps, each := 600, 40
	if f.opener.Cluster {
		steps, each = 200, 50
	}
	for i := range steps {
		w.step()
		if i%each == 0 {
			f.countsAgree(fmt.Sprintf("after step %d", i), w.inFlight)
		}
	}
	f.countsAgree("in the end", w.inFlight)
	f.crash()
	clear(w.inFlight)
	for id := range w.claims {
		if rec, err := f.e.Get(f.ctx, id); err == nil && rec.State == task.Running {
			f.becomes(id, task.Delivering)
		}
	}
	for id := range w.jobs {
		if rec, err := f.e.Get(f.ctx, id); err == nil && rec.State == task.Running {
			_, err := f.e.Wait(f.ctx, id, rec.Version)
			f.must(err)
		}
	}
	if f.opener.LeaseExpiry == 0 {
		f.countsAgree("after a crash", nil)
	}
}

func countImported(f *fixture) {
	f.someTasks(f.random(), 120)
	f.countsAgree("after the import", nil)
	f.crash()
	f.countsAgree("after a crash", nil)
}

func countDue(f *fixture) {
	for range 6 {
		f.delivering()
	}
	for _, d := range f.take(host, 6)[:4] {
		f.must(d.Retry(f.ctx, in(time.Hour)))
	}
	f.delivering()
	// On a busy machine an engine estimates.
	f.eventually(func() error {
		if s, err := f.e.Stats(f.ctx); err != nil || s.Due != 1 {
			return fmt.Errorf("%d are due: %v", s.Due, err)
		}
		return nil
	})
}

func hostPages(f *fixture) {
	want := make(map[string]int64)
	for i := range 12 {
		host := fmt.Sprintf("host-%d:443", i)
		for range 1 + i%4 {
			f.deliveringTo(host)
			want[host]++
		}
	}
	for _, limit := range []int{1, 5, 12, 100} {
		all := f.hosts(limit)
		for host, n := range want {
			if all[host].Pending != n {
				f.Errorf("host %s has %d pending, want %d", host, all[host].Pending, n)
			}
		}
		if len(all) != len(want) {
			f.Errorf("%d hosts are listed in pages of %d", len(all), limit)
		}
	}
	f.take("host-0:443", 1)
	if h := f.hosts(100)["host-0:443"]; h.Pending != 1 || h.InFlight != 1 || !h.Next.IsZero() {
		f.Errorf("a host with one delivery in flight is %+v", h)
	}
	d := f.take("host-4:443", 1)[0]
	at := in(time.Hour)
	f.must(d.Retry(f.ctx, at))
	if h := f.hosts(100)["host-4:443"]; h.Pending != 1 || h.InFlight != 0 || !h.Next.Equal(at) {
		f.Errorf("a host with one retry at %v is %+v", at, h)
	}
}

func hostsListed(f *fixture) {
	failing := engine.HostState{Host: "failing:443", Window: 1, Failures: 2, FailingSince: in(-time.Hour), LastError: "no such host"}
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{failing, {Host: "fine:443", Window: 9, AnsweredAt: in(0)}}))
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "paused:443"}, true))
	for range 2 {
		all := f.hosts(10)
		if len(all) != 2 || !all["paused:443"].Paused || !sameHost(all["failing:443"].HostState, failing) {
			f.Errorf("the hosts are %+v", all)
		}
		f.reopen()
	}
	failing.Failures, failing.FailingSince = 0, time.Time{}
	f.must(f.e.SaveHosts(f.ctx, []engine.HostState{failing}))
	f.must(f.e.Pause(f.ctx, engine.Target{Host: "paused:443"}, false))
	if all := f.hosts(10); len(all) != 0 {
		f.Errorf("the hosts are %+v", all)
	}
}

func queuesListed(f *fixture) {
	f.must(f.e.Pause(f.ctx, engine.Target{Queue: "paused"}, true))
	want := engine.QueueStats{Queue: "paused", Paused: true}
	for range 2 {
		if qs, err := f.e.Queues(f.ctx); err != nil || !slices.Equal(qs, []engine.QueueStats{want}) {
			f.Errorf("the queues are %+v: %v", qs, err)
		}
		f.crash()
	}
	f.must(f.e.Pause(f.ctx, engine.Target{Queue: "paused"}, false))
	if qs, err := f.e.Queues(f.ctx); err != nil || len(qs) != 0 {
		f.Errorf("the queues are %+v: %v", qs, err)
	}
}
