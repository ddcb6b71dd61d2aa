package enginetest

import (
	"io"
	"slices"
	"strings"
	"sync"
	"testing/iotest"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var keySuite = suite{"idempotency key", []testcase{
	{"known key returns the first task", keyKnown},
	{"key of another request is refused", keyReused},
	{"key survives a crash", keySurvives},
	{"key outlives its task", keyOutlives},
	{"known key in a full queue", keyQueueFull},
	{"failed enqueue stores no key", keyNotStored},
	{"digest after the body", keyDigestLate},
	{"100 concurrent requests with one key", keyConcurrent},
	{"claim with a known key", keyTakeOver},
	{"claim with a reused key keeps its lease", keyTakeOverReused},
}}

// key returns an idempotency key.
func key(hash, digest string) *engine.Key {
	return &engine.Key{Hash: hash, Digest: func() string { return digest }}
}

// keyed enqueues a new task with a key.
func (f *fixture) keyed(k *engine.Key) (*task.Record, string, bool, error) {
	rec := f.queued("q")
	id, created, err := f.e.Enqueue(f.ctx, rec, strings.NewReader("b"), engine.EnqueueOptions{Key: k})
	return rec, id, created, err
}

// first enqueues a task whose key is new.
func (f *fixture) first(k *engine.Key) *task.Record {
	f.Helper()
	rec, id, created, err := f.keyed(k)
	f.must(err)
	if id != rec.ID || !created {
		f.Fatalf("a new key: id %s of %s, created: %v", id, rec.ID, created)
	}
	return rec
}

// known checks that a key belongs to the given task.
func (f *fixture) known(k *engine.Key, want string) {
	f.Helper()
	rec, id, created, err := f.keyed(k)
	f.must(err)
	if id != want || created {
		f.Fatalf("a known key: id %s, want %s; created: %v", id, want, created)
	}
	f.gone(rec.ID)
}

func keyKnown(f *fixture) {
	k := key("h", "d")
	rec := f.first(k)
	f.known(k, rec.ID)
	other := f.first(key("h2", "d"))
	f.known(key("h2", "d"), other.ID)
	f.nextIDs("q", 2)
	f.noJob("q")
}

func keyReused(f *fixture) {
	rec := f.first(key("h", "d"))
	again, id, created, err := f.keyed(key("h", "another"))
	f.is(err, engine.ErrKeyReused)
	if id != rec.ID || created {
		f.Errorf("id %s, want %s; created: %v", id, rec.ID, created)
	}
	f.gone(again.ID)
	f.known(key("h", "d"), rec.ID)
}

func keySurvives(f *fixture) {
	k := key("h", "d")
	rec := f.first(k)
	f.crash()
	f.known(k, rec.ID)
	f.reopen()
	f.known(k, rec.ID)
}

func keyOutlives(f *fixture) {
	k := key("h", "d")
	rec := f.first(k)
	j := f.next("q", 3)
	f.known(k, rec.ID)
	want := f.settle(j.Record, j.Lease)
	f.known(k, rec.ID)
	f.must(f.take(host, 1)[0].Done(f.ctx))
	f.known(k, rec.ID)
	f.must(f.e.Act(f.ctx, want.ID, engine.Action{Kind: engine.Delete}))
	f.gone(rec.ID)
	f.known(k, rec.ID)
	f.crash()
	f.known(k, rec.ID)
}

func keyQueueFull(f *fixture) {
	k := key("h", "d")
	rec := f.first(k)
	opts := engine.EnqueueOptions{MaxQueued: 1}
	_, _, err := f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
	f.is(err, engine.ErrQueueFull)
	opts.Key = k
	id, created, err := f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
	f.must(err)
	if id != rec.ID || created {
		f.Errorf("id %s, created: %v", id, created)
	}
	opts.Key = key("h", "another")
	_, _, err = f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
	f.is(err, engine.ErrKeyReused)
	opts.Key = key("new", "d")
	_, _, err = f.e.Enqueue(f.ctx, f.queued("q"), strings.NewReader("b"), opts)
	f.is(err, engine.ErrQueueFull)
	f.next("q", 3)
	f.first(key("new", "d")) // the refused task has left no key
}

func keyNotStored(f *fixture) {
	k := key("h", "d")
	rec := f.queued("q")
	body := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF))
	_, _, err := f.e.Enqueue(f.ctx, rec, body, engine.EnqueueOptions{Key: k})
	f.is(err, io.ErrUnexpectedEOF)
	f.gone(rec.ID)
	f.first(k)
}

// endReader records that it was read to its end.
type endReader struct {
	io.Reader
	ended bool
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.ended = r.ended || err == io.EOF
	return n, err
}

func keyDigestLate(f *fixture) {
	for _, size := range []int{0, 10, 1 << 20} {
		body := &endReader{Reader: strings.NewReader(strings.Repeat("x", size))}
		asked := 0
		k := &engine.Key{Hash: newID(), Digest: func() string {
			if asked++; !body.ended {
				f.Errorf("size %d: the digest is asked for before the body's end", size)
			}
			return "d"
		}}
		_, _, err := f.e.Enqueue(f.ctx, f.queued("q"), body, engine.EnqueueOptions{Key: k})
		f.must(err)
		if asked == 0 {
			f.Errorf("size %d: the digest is not asked for", size)
		}
	}
}

func keyConcurrent(f *fixture) {
	const requests = 100
	var mu sync.Mutex
	var got []string
	made := 0
	var wg sync.WaitGroup
	for range requests {
		wg.Go(func() {
			_, id, created, err := f.keyed(key("h", "d"))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				f.Errorf("enqueueing: %v", err)
			}
			if created {
				made++
			}
			got = append(got, id)
		})
	}
	wg.Wait()
	if made != 1 || len(slices.Compact(sorted(got))) != 1 {
		f.Fatalf("%d tasks are created, the IDs are %v", made, slices.Compact(sorted(got)))
	}
	if all := f.list(engine.Filter{}); len(all) != 1 || all[0].ID != got[0] {
		f.Errorf("%d tasks are stored", len(all))
	}
}

func keyTakeOver(f *fixture) {
	k := key("h", "d")
	rec := f.first(k)
	claimed, l := f.claim()
	_, id, created, err := f.handOver(claimed, l, engine.EnqueueOptions{Key: k})
	f.must(err)
	if id != rec.ID || created {
		f.Errorf("id %s, created: %v", id, created)
	}
	f.gone(claimed.ID)
	f.is(l.Release(f.ctx), engine.ErrLost)
	claimed, l = f.claim()
	k = key("h2", "d")
	_, id, created, err = f.handOver(claimed, l, engine.EnqueueOptions{Key: k})
	f.must(err)
	if id != claimed.ID || !created {
		f.Errorf("id %s, created: %v", id, created)
	}
	f.known(k, claimed.ID)
}

func keyTakeOverReused(f *fixture) {
	rec := f.first(key("h", "d"))
	claimed, l := f.claim()
	_, id, created, err := f.handOver(claimed, l, engine.EnqueueOptions{Key: key("h", "another")})
	f.is(err, engine.ErrKeyReused)
	if id != rec.ID || created {
		f.Errorf("id %s, created: %v", id, created)
	}
	f.in(claimed.ID, task.Running)
	f.must(l.Release(f.ctx))
	f.gone(claimed.ID)
}
