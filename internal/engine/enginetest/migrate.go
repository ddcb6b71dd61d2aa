package enginetest

import (
	"fmt"
	"io"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var migrateSuite = suite{"migrate", []testcase{
	{"copy of a store", copyEqual},
	{"import of a known task", importKnown},
	{"imported task continues", importContinues},
	{"imported running task", importRunning},
	{"unreadable body", importUnreadable},
	{"body bytes", importBytes},
	{"job order", importOrder},
	{"keys", importKeys},
}}

// openIf reads a body. It returns nil if the body is not kept.
func (f *fixture) openIf(id string, p engine.Part) []byte {
	f.Helper()
	r, err := f.e.Open(f.ctx, id, p)
	if isOneOf(err, engine.ErrNotFound) {
		return nil
	}
	f.must(err)
	return f.read(r)
}

// keys returns all idempotency keys.
func (f *fixture) keys() map[string]engine.StoredKey {
	f.Helper()
	all := make(map[string]engine.StoredKey)
	var after engine.Cursor
	for {
		ks, next, err := f.e.Keys(f.ctx, after, 7)
		f.must(err)
		for _, k := range ks {
			if _, ok := all[k.Hash]; ok || k.Expires.Before(time.Now()) {
				f.Errorf("key %+v is listed twice, or has expired", k)
			}
			all[k.Hash] = k
		}
		if after = next; next == "" {
			return all
		}
	}
}

// copyTo copies a store to another one through the interface.
func (f *fixture) copyTo(to *fixture) {
	f.Helper()
	for _, rec := range f.pages(engine.Filter{}, 9) {
		request, result := f.openIf(rec.ID, engine.RequestBody), f.openIf(rec.ID, engine.ResultBody)
		switch {
		case request != nil:
			to.must(to.e.Import(to.ctx, rec, plain(request), nil))
		case result != nil:
			to.must(to.e.Import(to.ctx, rec, nil, plain(result)))
		default:
			to.must(to.e.Import(to.ctx, rec, nil, nil))
		}
	}
	for _, k := range f.keys() {
		to.must(to.e.ImportKey(to.ctx, k))
	}
}

// equal checks that two stores have the same contents.
func (f *fixture) equal(to *fixture) {
	f.Helper()
	want, got := f.list(engine.Filter{}), to.list(engine.Filter{})
	if fmt.Sprint(ids(got)) != fmt.Sprint(ids(want)) {
		f.Fatalf("listed are\n%v\nnot\n%v", ids(got), ids(want))
	}
	for i, rec := range want {
		f.same(got[i], rec)
		f.same(to.get(rec.ID), rec)
		for _, p := range []engine.Part{engine.RequestBody, engine.ResultBody} {
			f.sameBytes("copied", to.openIf(rec.ID, p), f.openIf(rec.ID, p))
		}
	}
	wantKeys, gotKeys := f.keys(), to.keys()
	for h, k := range wantKeys {
		g := gotKeys[h]
		if !g.Expires.Equal(k.Expires) || g.Digest != k.Digest || g.TaskID != k.TaskID || g.Hash != h {
			f.Errorf("key %+v is copied as %+v", k, g)
		}
	}
	if len(gotKeys) != len(wantKeys) {
		f.Errorf("%d keys are copied, want %d", len(gotKeys), len(wantKeys))
	}
}

// live creates tasks in all states except running, through the usual methods.
func (f *fixture) live() {
	f.Helper()
	for _, s := range stations {
		if s.state != task.Running && s.name != "in flight" {
			s.make(f)
		}
	}
	for i := range 20 {
		f.first(key(fmt.Sprint("key ", i), fmt.Sprint("digest ", i)))
	}
	f.must(f.e.Act(f.ctx, f.dead().ID, engine.Action{Kind: engine.Redeliver}))
	f.must(f.e.Act(f.ctx, f.enqueue(f.queued("c")).ID, engine.Action{Kind: engine.Cancel, Reason: "by hand"}))
}

func copyEqual(f *fixture) {
	f.someTasks(f.random(), 60)
	f.live()
	to := f.other()
	to.store.Settings = f.store.Settings
	to.must(to.e.Reconfigure(to.ctx, to.store.Settings))
	f.copyTo(to)
	f.equal(to)
	f.copyTo(to)
	f.equal(to)
	to.crash()
	f.equal(to)
	to.countsAgree("copied", nil)
}

func importKnown(f *fixture) {
	rec := f.enqueue(f.queued("q"))
	want := f.get(rec.ID)
	other := clone(rec)
	other.State, other.Status, other.Queue = task.Done, task.Complete, "changed"
	f.must(f.e.Import(f.ctx, other, nil, nil))
	f.same(f.get(rec.ID), want)
	if b := f.body(rec.ID, engine.RequestBody); string(b) != "request of "+rec.ID {
		f.Errorf("the request is %q", b)
	}
	f.next("q", 3)
}

func importContinues(f *fixture) {
	r := f.random()
	at := map[task.State]*task.Record{}
	for len(at) < 4 {
		rec := arbitrary(r, in(-time.Minute))
		if rec.Callback != nil && rec.Result != nil != (rec.State == task.Queued) && rec.NextAttemptAt.IsZero() && rec.Tries == 0 {
			at[rec.State] = rec
		}
	}
	for _, rec := range at {
		f.must(f.importOne(rec))
	}
	q := at[task.Queued]
	if j := f.next(q.Queue, 3); j.Record.ID != q.ID || j.Record.Starts != 1 {
		f.Errorf("the job is %s", encode(j.Record))
	}
	due := at[task.Delivering]
	d := f.take(due.CallbackHost, 1)[0]
	if d.Record().ID != due.ID {
		f.Errorf("the delivery is %s", encode(d.Record()))
	}
	f.must(d.Done(f.ctx))
	for _, s := range []task.State{task.Done, task.Dead} {
		f.must(f.e.Act(f.ctx, at[s].ID, engine.Action{Kind: engine.Redeliver}))
		d := f.take(at[s].CallbackHost, 1)[0]
		r, err := d.Result(f.ctx)
		f.must(err)
		if b := f.read(r); string(b) != "result of "+at[s].ID {
			f.Errorf("the result is %q", b)
		}
		f.must(d.Dead(f.ctx))
	}
}

func importRunning(f *fixture) {
	rec := f.client()
	rec.State = task.Running
	f.must(f.importOne(rec))
	failedByCrash(f, rec)
	job := f.queued("q")
	job.State, job.Starts, job.StartedAt = task.Running, 2, in(0)
	f.must(f.importOne(job))
	f.in(job.ID, task.Queued)
	if j := f.next("q", 9); j.Record.ID != job.ID || j.Record.Starts != 3 {
		f.Errorf("the job is %s", encode(j.Record))
	}
	if b := f.body(job.ID, engine.RequestBody); string(b) != "request of "+job.ID {
		f.Errorf("the request is %q", b)
	}
}

func importUnreadable(f *fixture) {
	broken(func(body io.Reader, want error) {
		rec := f.queued("q")
		rec.State = task.Queued
		f.is(f.e.Import(f.ctx, rec, body, nil), want)
		f.gone(rec.ID)
		f.must(f.importOne(rec)) // it can be repeated
		f.in(rec.ID, task.Queued)
	})
	broken(func(body io.Reader, want error) {
		rec := settled(f.client(), task.Complete, "")
		rec.State = task.Done
		f.is(f.e.Import(f.ctx, rec, nil, body), want)
		f.gone(rec.ID)
	})
}

func importBytes(f *fixture) {
	for _, n := range sizes {
		rec := f.queued("q")
		rec.State, rec.Request.Size = task.Queued, int64(n)
		f.must(f.e.Import(f.ctx, rec, plain(pattern(n)), nil))
		f.sameBytes("request", f.body(rec.ID, engine.RequestBody), pattern(n))
		done := settled(f.client(), task.Complete, string(pattern(n)))
		done.State = task.Done
		f.must(f.e.Import(f.ctx, done, nil, plain(pattern(n))))
		f.sameBytes("result", f.body(done.ID, engine.ResultBody), pattern(n))
	}
}

func importOrder(f *fixture) {
	var want []string
	var recs []*task.Record
	r := f.random()
	for i := range 10 {
		rec := f.queued("q")
		rec.State, rec.CreatedAt = task.Queued, in(time.Duration(i-60)*time.Minute)
		rec.ID = idAt(r, rec.CreatedAt)
		if i%3 == 0 { // it was delayed until then
			rec.CreatedAt, rec.NextAttemptAt = in(-2*time.Hour), rec.CreatedAt
			rec.ID = idAt(r, rec.CreatedAt)
		}
		recs, want = append(recs, rec), append(want, rec.ID)
	}
	r.Shuffle(len(recs), func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
	f.importAll(recs)
	f.crash()
	f.ordered(f.nextIDs("q", 10), want)
}

func importKeys(f *fixture) {
	k := engine.StoredKey{Hash: "h", Digest: "d", TaskID: newID(), Expires: in(time.Hour)}
	f.must(f.e.ImportKey(f.ctx, k))
	f.known(key("h", "d"), k.TaskID)
	_, _, _, err := f.keyed(key("h", "another"))
	f.is(err, engine.ErrKeyReused)
	other := k
	other.TaskID = newID()
	f.must(f.e.ImportKey(f.ctx, other))
	f.known(key("h", "d"), k.TaskID)
	k.Hash, k.Expires = "expired", in(-time.Minute)
	f.must(f.e.ImportKey(f.ctx, k))
	f.first(key("expired", "d"))
}
