package enginetest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var listSuite = suite{"list", []testcase{
	{"empty store", listEmpty},
	{"random filters and pages", listRandom},
	{"list while tasks change state", listWhileMoving},
	{"newest first", listNewestFirst},
	{"invalid cursor", listBadCursor},
}}

func listEmpty(f *fixture) {
	p, err := f.e.List(f.ctx, engine.Filter{}, "", 10)
	f.must(err)
	if len(p.Tasks) != 0 || p.Next != "" {
		f.Errorf("the page is %+v", p)
	}
}

// idAt returns a UUIDv7 for a time.
func idAt(r *rand.Rand, at time.Time) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16|7<<12|r.Uint64N(1<<12))
	binary.BigEndian.PutUint64(id[8:], 2<<62|r.Uint64N(1<<62))
	return id.String()
}

func pick[T any](r *rand.Rand, s ...T) T { return s[r.IntN(len(s))] }

// arbitrary returns a task in a random state, accepted at the given time.
func arbitrary(r *rand.Rand, at time.Time) *task.Record {
	rec := &task.Record{Task: task.Task{
		ID: idAt(r, at), CreatedAt: at, State: pick(r, task.Queued, task.Delivering, task.Done, task.Dead),
		Queue: pick(r, "", "a", "b", "a.b"),
	}}
	if rec.State == task.Queued && rec.Queue == "" {
		rec.Queue = "a"
	}
	if rec.Queue != "" {
		rec.Request = &task.Request{Method: pick(r, "POST", "PUT"), URI: pick(r, "/jobs/1?x=y", "/jobs/2", "/uploads/x")}
		rec.Route = rec.Queue
	} else {
		rec.RequestMethod, rec.RequestPath, rec.Route = pick(r, "POST", "GET"), pick(r, "/jobs/1", "/site"), "site"
		rec.RequestSize = 3
	}
	if rec.State != task.Done || r.IntN(4) > 0 {
		rec.CallbackHost = pick(r, "a.example:443", "a.example:8443", "b.example:443", "[2001:db8::1]:443")
		rec.Callback = &task.Callback{URL: "https://" + rec.CallbackHost + "/hook"}
	}
	if rec.State == task.Queued {
		rec.Request.Size = int64(len("request of " + rec.ID))
		rec.NextAttemptAt = pick(r, time.Time{}, in(time.Hour))
		return rec
	}
	rec.StartedAt, rec.FinishedAt = at, at.Add(time.Millisecond)
	rec.Status, rec.UpstreamStatus = pick(r, task.Complete, task.Failed, task.TimedOut), 200
	if rec.Status != task.Complete {
		rec.Error = pick(r, "the endpoint did not answer", "connection refused")
	}
	if rec.Status != task.TimedOut {
		n := int64(len("result of " + rec.ID))
		rec.Result = &task.Result{ContentType: "text/plain", Size: n, Kept: n}
	}
	for range r.IntN(3) {
		rec.AddAttempt(task.Attempt{At: at, StatusCode: pick(r, 500, 503), Error: pick(r, "", "no such host", "connection reset")})
		rec.AddTrace(task.Trace{At: at, RemoteAddr: "192.0.2.1:443", Sent: [][2]string{{"Accept", "*/*"}}})
	}
	switch {
	case rec.State == task.Delivering && rec.Tries > 0:
		rec.NextAttemptAt = in(pick(r, -time.Minute, time.Hour))
	case rec.State == task.Done && rec.Callback != nil:
		rec.DeliveredAt = at.Add(time.Second)
	}
	return rec
}

// importAll stores tasks with their bodies.
func (f *fixture) importAll(recs []*task.Record) {
	f.Helper()
	for _, rec := range recs {
		f.must(f.importOne(rec))
	}
}

func (f *fixture) importOne(rec *task.Record) error {
	switch {
	case rec.State == task.Queued || rec.State == task.Running && rec.Queue != "":
		return f.e.Import(f.ctx, rec, strings.NewReader("request of "+rec.ID), nil)
	case rec.Result != nil:
		return f.e.Import(f.ctx, rec, nil, strings.NewReader("result of "+rec.ID))
	}
	return f.e.Import(f.ctx, rec, nil, nil)
}

// someTasks imports n tasks in all states in a random order. It returns them newest
// first.
func (f *fixture) someTasks(r *rand.Rand, n int) []*task.Record {
	f.Helper()
	f.reconfigure(func(s *engine.Settings) {
		s.Retention, s.Dead, s.DeliveryWindow = 1000*time.Hour, 1000*time.Hour, 1000*time.Hour
	})
	first := in(-time.Hour)
	recs := make([]*task.Record, n)
	for i := range recs {
		recs[i] = arbitrary(r, first.Add(time.Duration(i)*time.Second))
	}
	r.Shuffle(n, func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
	f.importAll(recs)
	slices.SortFunc(recs, func(a, b *task.Record) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return recs
}

// matches is the reference implementation of a filter.
func matches(f engine.Filter, rec *task.Record) bool {
	return (len(f.States) == 0 || slices.Contains(f.States, rec.State)) &&
		(len(f.Statuses) == 0 || slices.Contains(f.Statuses, rec.Status)) &&
		(f.Queue == "" || f.Queue == rec.Queue) &&
		(f.Host == "" || f.Host == rec.CallbackHost || f.Host == hostOf(rec.CallbackHost)) &&
		(f.Before.IsZero() || rec.CreatedAt.Before(f.Before)) && (f.After.IsZero() || !rec.CreatedAt.Before(f.After)) &&
		strings.HasPrefix(rec.ID, f.IDPrefix) && pathHas(rec, f.Path) &&
		(f.LastError == "" || strings.Contains(errorsOf(rec), f.LastError)) &&
		(f.LastStatusCode == 0 || len(rec.Attempts) > 0 && rec.Attempts[len(rec.Attempts)-1].StatusCode == f.LastStatusCode) &&
		(f.Route == "" || f.Route == rec.Route) && (f.Method == "" || f.Method == methodOf(rec))
}

func hostOf(hostport string) string {
	h, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return hostport
	}
	return h
}

// errorsOf returns the errors of a task that a filter compares.
func errorsOf(rec *task.Record) string {
	if n := len(rec.Attempts); n > 0 {
		return rec.Error + "\n" + rec.Attempts[n-1].Error
	}
	return rec.Error
}

func methodOf(rec *task.Record) string {
	if rec.Request != nil {
		return rec.Request.Method
	}
	return rec.RequestMethod
}

func pathHas(rec *task.Record, part string) bool {
	path := rec.RequestPath
	if rec.Request != nil {
		path, _, _ = strings.Cut(rec.Request.URI, "?")
	}
	return strings.Contains(path, part)
}

// arbitraryFilter returns a filter with random fields set.
func arbitraryFilter(r *rand.Rand, recs []*task.Record) (f engine.Filter) {
	some := func() bool { return r.IntN(4) == 0 }
	if some() {
		f.States = pick(r, []task.State{task.Done}, []task.State{task.Queued, task.Dead}, []task.State{task.Running},
			[]task.State{task.Delivering}, []task.State{task.Done, task.Dead, task.Delivering})
	}
	if some() {
		f.Statuses = pick(r, []task.Verdict{task.Complete}, []task.Verdict{task.Failed, task.TimedOut})
	}
	if some() {
		f.Queue = pick(r, "a", "b", "a.b", "none")
	}
	if some() {
		f.Host = pick(r, "a.example:443", "a.example", "b.example", "2001:db8::1", "[2001:db8::1]:443", "none", "a.exam")
	}
	if some() {
		f.Before = pick(r, recs...).CreatedAt
	}
	if some() {
		f.After = pick(r, recs...).CreatedAt
	}
	if some() {
		f.IDPrefix = pick(r, recs...).ID[:1+r.IntN(36)]
	}
	if some() {
		f.Path = pick(r, "jobs", "/jobs/1", "uploads/", "nothing")
	}
	if some() {
		f.LastError = pick(r, "refused", "connection", "no such host", "nothing")
	}
	if some() {
		f.LastStatusCode = pick(r, 500, 503, 404)
	}
	if some() {
		f.Route = pick(r, "a", "site", "nothing")
	}
	if some() {
		f.Method = pick(r, "POST", "PUT", "get")
	}
	return f
}

func listRandom(f *fixture) {
	r := f.random()
	recs := f.someTasks(r, 250)
	for range 150 {
		filter := arbitraryFilter(r, recs)
		var want []string
		for _, rec := range recs {
			if matches(filter, rec) {
				want = append(want, rec.ID)
			}
		}
		limit := pick(r, 1, 2, 7, 50, 1000)
		if len(want) > 60 {
			limit = max(limit, 7)
		}
		got := f.pages(filter, limit)
		if !slices.Equal(ids(got), want) {
			f.Fatalf("filter %+v in pages of %d lists %d tasks, want %d:\n%v\nnot\n%v",
				filter, limit, len(got), len(want), ids(got), want)
		}
	}
	for i, got := range f.list(engine.Filter{}) {
		f.same(got, recs[i])
	}
}

func listNewestFirst(f *fixture) {
	var want []string
	for range 20 {
		rec := f.queued("q")
		if n := len(want); n > 0 {
			rec.CreatedAt = in(time.Duration(n) * time.Millisecond)
			rec.ID = idAt(rand.New(rand.NewPCG(1, uint64(n))), rec.CreatedAt)
		}
		want = append(want, f.enqueue(rec).ID)
	}
	slices.Reverse(want)
	if got := ids(f.pages(engine.Filter{}, 3)); !slices.Equal(got, want) {
		f.Errorf("listed are\n%v\nnot\n%v", got, want)
	}
	f.crash()
	if got := ids(f.pages(engine.Filter{Queue: "q"}, 3)); !slices.Equal(got, want) {
		f.Errorf("after a restart, listed are\n%v\nnot\n%v", got, want)
	}
}

// listWhileMoving lists tasks while they change between all states.
func listWhileMoving(f *fixture) {
	r := f.random()
	var all []string
	for range 60 {
		all = append(all, f.deliveringTo(pick(r, "a:443", "b:443")).ID)
	}
	seed := r.Uint64()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := rand.New(rand.NewPCG(seed, 2))
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := f.e.Act(f.ctx, pick(r, all...), engine.Action{Kind: pick(r, engine.Stop, engine.Redeliver)})
			if err != nil && !errors.Is(err, engine.ErrEnded) {
				f.Errorf("moving: %v", err)
			}
		}
	})
	wg.Go(func() {
		r := rand.New(rand.NewPCG(seed, 3))
		for {
			select {
			case <-stop:
				return
			default:
			}
			ds, err := f.e.Take(f.ctx, pick(r, "a:443", "b:443"), 1)
			for _, d := range ds {
				err = errors.Join(err, d.Done(f.ctx))
			}
			if err != nil && !errors.Is(err, engine.ErrLost) {
				f.Errorf("delivering: %v", err)
			}
		}
	})
	for range 30 {
		seen := make(map[string]int)
		for _, rec := range f.pages(engine.Filter{}, 7) {
			seen[rec.ID]++
		}
		for _, id := range all {
			if n := seen[id]; n < 1 || n > 2 {
				f.Errorf("task %s is listed %d times", id, n)
			}
		}
	}
	close(stop)
	wg.Wait()
}

func listBadCursor(f *fixture) {
	r := f.random()
	f.someTasks(r, 20)
	cursors := []engine.Cursor{"x", "zzz", "-1", "\xff\xff", "99999999999999999999", engine.Cursor(strings.Repeat("a", 5000)), "{}", "a.b.c"}
	p, err := f.e.List(f.ctx, engine.Filter{}, "", 5)
	f.must(err)
	for i := range len(p.Next) {
		b := []byte(p.Next)
		b[i]++
		cursors = append(cursors, engine.Cursor(b), p.Next[:i])
	}
	for _, c := range cursors {
		_, listErr := f.e.List(f.ctx, engine.Filter{}, c, 5)
		_, _, hostsErr := f.e.Hosts(f.ctx, c, 5)
		_, _, keysErr := f.e.Keys(f.ctx, c, 5)
		for what, err := range map[string]error{"List": listErr, "Hosts": hostsErr, "Keys": keysErr} {
			if c != "" && !errors.Is(err, engine.ErrCursor) {
				f.Errorf("%s with the cursor %q returns %v", what, c, err)
			}
		}
	}
}
