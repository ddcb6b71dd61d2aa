package enginetest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing/iotest"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var bodySuite = suite{"body", []testcase{
	{"request bytes", requestBytes},
	{"request bytes of a claimed task", takeOverBytes},
	{"result bytes", resultBytes},
	{"result bytes from any position", resultParts},
	{"bodies survive a crash", bodiesSurvive},
	{"unreadable request", requestUnreadable},
	{"unreadable result keeps the lease", resultUnreadable},
	{"request is removed with the verdict", requestRemoved},
	{"header bytes", headerBytes},
	{"concurrent readers of a body", bodyReaders},
	{"slow body blocks no other task", slowBody},
}}

// sizes are the sizes around which engines change how they store a body.
var sizes = []int{0, 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 9 << 20}

// bodyErrors are errors of readers. The last is that of net/http if a client breaks off.
var bodyErrors = []error{errors.New("the body broke off"), io.ErrUnexpectedEOF}

// pattern returns n bytes whose period is not a power of two.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// plain hides all methods of a reader except Read.
func plain(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }

func (f *fixture) sameBytes(what string, got, want []byte) {
	f.Helper()
	if !bytes.Equal(got, want) {
		f.Fatalf("%s: %d bytes, not those %d", what, len(got), len(want))
	}
}

func requestBytes(f *fixture) {
	for _, n := range sizes {
		rec := f.queued("q")
		_, _, err := f.e.Enqueue(f.ctx, rec, plain(pattern(n)), engine.EnqueueOptions{})
		f.must(err)
		f.sameBytes("queued", f.body(rec.ID, engine.RequestBody), pattern(n))
		if got := f.get(rec.ID).Request.Size; got != int64(n) {
			f.Errorf("the size of a request of %d bytes is %d", n, got)
		}
		j := f.next("q", 3)
		f.sameBytes("running", f.body(rec.ID, engine.RequestBody), pattern(n))
		f.must(j.Lease.Release(f.ctx))
		j = f.next("q", 3)
		f.sameBytes("running again", f.body(rec.ID, engine.RequestBody), pattern(n))
		f.settle(j.Record, j.Lease)
	}
}

func takeOverBytes(f *fixture) {
	for _, n := range sizes {
		rec, l := f.claim()
		q := f.queued("q")
		q.ID = rec.ID
		_, _, err := l.Enqueue(f.ctx, q, plain(pattern(n)), engine.EnqueueOptions{})
		f.must(err)
		f.sameBytes("queued", f.body(rec.ID, engine.RequestBody), pattern(n))
		f.next("q", 3)
	}
}

func resultBytes(f *fixture) {
	for _, n := range sizes {
		rec, l := f.claim()
		want := settled(rec, task.Complete, string(pattern(n)))
		given := clone(want)
		given.Result.Kept = 0 // the engine sets it
		f.must(l.Settle(f.ctx, given, plain(pattern(n))))
		f.sameBytes("delivering", f.body(rec.ID, engine.ResultBody), pattern(n))
		f.sameIn(f.get(rec.ID), want, task.Delivering)
		d := f.take(host, 1)[0]
		r, err := d.Result(f.ctx)
		f.must(err)
		f.sameBytes("taken", f.read(r), pattern(n))
		f.must(d.Done(f.ctx))
		f.sameBytes("done", f.body(rec.ID, engine.ResultBody), pattern(n))
	}
}

func resultParts(f *fixture) {
	for _, n := range sizes {
		rec, l := f.claim()
		f.settleWith(rec, l, string(pattern(n)))
		r, err := f.e.Open(f.ctx, rec.ID, engine.ResultBody)
		f.must(err)
		size, err := r.Seek(0, io.SeekEnd)
		f.must(err)
		if size != int64(n) {
			f.Errorf("the end of a result of %d bytes is at %d", n, size)
		}
		_, err = r.Seek(-1, io.SeekStart)
		if err == nil {
			f.Errorf("there is a position before a result")
		}
		for _, from := range []int{n, n - n/3, 0, n / 2, n / 3} {
			_, err := r.Seek(int64(from), io.SeekStart)
			f.must(err)
			part := make([]byte, min(n-from, 300<<10))
			_, err = io.ReadFull(r, part)
			f.must(err)
			f.sameBytes("part", part, pattern(n)[from:from+len(part)])
			if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != int64(from+len(part)) {
				f.Errorf("after reading to %d the position is %d, %v", from+len(part), at, err)
			}
		}
		_, err = r.Seek(0, io.SeekStart)
		f.must(err)
		f.sameBytes("whole", f.read(r), pattern(n))
	}
}

func bodiesSurvive(f *fixture) {
	var queued, pending []string
	for _, n := range sizes {
		q := f.queued("q")
		_, _, err := f.e.Enqueue(f.ctx, q, plain(pattern(n)), engine.EnqueueOptions{})
		f.must(err)
		rec, l := f.claim()
		f.settleWith(rec, l, string(pattern(n)))
		queued, pending = append(queued, q.ID), append(pending, rec.ID)
	}
	f.crash()
	for i, n := range sizes {
		f.sameBytes("request", f.body(queued[i], engine.RequestBody), pattern(n))
		f.sameBytes("result", f.body(pending[i], engine.ResultBody), pattern(n))
	}
}

// broken calls f with readers that fail after the bytes of each size, and their errors.
func broken(f func(body io.Reader, want error)) {
	for _, n := range sizes {
		for _, err := range bodyErrors {
			f(io.MultiReader(plain(pattern(n)), iotest.ErrReader(err)), err)
		}
	}
}

func requestUnreadable(f *fixture) {
	broken(func(body io.Reader, want error) {
		rec := f.queued("q")
		_, _, err := f.e.Enqueue(f.ctx, rec, body, engine.EnqueueOptions{})
		f.is(err, want)
		f.gone(rec.ID)
	})
	broken(func(body io.Reader, want error) {
		rec := f.queued("q")
		claimed, l := f.claim()
		rec.ID = claimed.ID
		_, _, err := l.Enqueue(f.ctx, rec, body, engine.EnqueueOptions{})
		f.is(err, want)
		f.in(claimed.ID, task.Running)
		f.must(l.Release(f.ctx))
	})
	f.noJob("q")
}

func resultUnreadable(f *fixture) {
	broken(func(body io.Reader, want error) {
		rec, l := f.claim()
		f.is(l.Settle(f.ctx, settled(rec, task.Complete, "x"), body), want)
		f.sameIn(f.in(rec.ID, task.Running), rec, task.Running)
		f.noBody(rec.ID, engine.ResultBody)
		f.noneToTake(host)
		f.settle(rec, l)
		f.must(f.take(host, 1)[0].Done(f.ctx))
	})
}

func requestRemoved(f *fixture) {
	for _, n := range sizes {
		rec := f.queued("q")
		_, _, err := f.e.Enqueue(f.ctx, rec, plain(pattern(n)), engine.EnqueueOptions{})
		f.must(err)
		j := f.next("q", 3)
		r, err := f.e.Open(f.ctx, rec.ID, engine.RequestBody)
		f.must(err)
		f.settle(j.Record, j.Lease)
		f.noBody(rec.ID, engine.RequestBody)
		f.sameBytes("opened before", f.read(r), pattern(n))
	}
}

// oddValues are header values that are not UTF-8, or that encodings tend to change.
var oddValues = []string{"caf\xe9", "\xff\xfe\x00", "<&>\u2028", "a\tb", "", "\ufffd", strings.Repeat("\x80", 300)}

func headerBytes(f *fixture) {
	rec := f.queued("q")
	rec.Request.Header = http.Header{"X-Odd": oddValues, "X-\xe9": {"name"}}
	rec.Request.URI = "/caf\xe9?<"
	rec.Callback.Header = [][2]string{{"x-odd", "caf\xe9"}, {"x-odd", "caf\xe8"}}
	f.enqueue(rec)
	check := func(got *task.Record) {
		f.Helper()
		for i, want := range oddValues {
			if vs := got.Request.Header["X-Odd"]; len(vs) != len(oddValues) || vs[i] != want {
				f.Fatalf("the header is %q", got.Request.Header)
			}
		}
		if vs := got.Request.Header["X-\xe9"]; len(vs) != 1 || got.Request.URI != rec.Request.URI {
			f.Errorf("the request is %q %q", got.Request.URI, got.Request.Header)
		}
	}
	check(f.get(rec.ID))
	f.crash()
	j := f.next("q", 3)
	check(j.Record)
	want := settled(j.Record, task.Complete, "r")
	want.Result.Header = http.Header{"X-Odd": oddValues}
	f.must(j.Lease.Settle(f.ctx, want, strings.NewReader("r")))
	got := f.take(host, 1)[0].Record()
	for i, v := range oddValues {
		if vs := got.Result.Header["X-Odd"]; len(vs) != len(oddValues) || vs[i] != v {
			f.Fatalf("the result's header is %q", got.Result.Header)
		}
	}
	for i, h := range rec.Callback.Header {
		if got.Callback.Header[i] != h {
			f.Errorf("the callback's header is %q", got.Callback.Header)
		}
	}
}

func bodyReaders(f *fixture) {
	for _, n := range sizes {
		rec, l := f.claim()
		f.settleWith(rec, l, string(pattern(n)))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				r, err := f.e.Open(f.ctx, rec.ID, engine.ResultBody)
				if err != nil {
					f.Errorf("opening: %v", err)
					return
				}
				defer r.Close()
				if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, pattern(n)) {
					f.Errorf("%d bytes of %d are read: %v", len(b), n, err)
				}
			})
		}
		wg.Wait()
	}
}

// slowBody checks that a body that is written slowly, or read slowly, does not block
// other tasks from being stored.
func slowBody(f *fixture) {
	for _, n := range sizes {
		r, w := io.Pipe()
		slow := f.queued("slow")
		stored := make(chan error)
		go func() {
			_, _, err := f.e.Enqueue(f.ctx, slow, r, engine.EnqueueOptions{})
			stored <- err
		}()
		_, err := w.Write(pattern(n))
		f.must(err)
		rec, l := f.claim()
		f.settleWith(rec, l, string(pattern(n)))
		held, err := f.e.Open(f.ctx, rec.ID, engine.ResultBody)
		f.must(err)
		f.must(f.take(host, 1)[0].Done(f.ctx))
		_, err = f.e.Get(f.ctx, slow.ID)
		f.is(err, engine.ErrNotFound)
		f.must(w.Close())
		f.must(<-stored)
		f.sameBytes("slow", f.body(slow.ID, engine.RequestBody), pattern(n))
		f.sameBytes("held", f.read(held), pattern(n))
	}
}
