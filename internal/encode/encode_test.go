package encode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// record returns a task whose result is content, and its Result.
func record(id, host, content string) (*task.Record, Result) {
	rec := &task.Record{
		Task:     task.Task{ID: id, Status: task.Complete, UpstreamStatus: 200, CallbackHost: host},
		Callback: &task.Callback{Format: FormatRaw, MaxResult: 64 << 20},
		Result:   &task.Result{ContentType: "text/plain", Kept: int64(len(content)), Size: int64(len(content))},
	}
	return rec, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
}

func content(t *testing.T, b *Body) string {
	t.Helper()
	r, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(all)) != b.Size {
		t.Errorf("the body has %d bytes, and says %d", len(all), b.Size)
	}
	return string(all)
}

func filesIn(t *testing.T, folder string) int {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

func mustEncode(t *testing.T, e *Encoder, rec *task.Record, result Result) *Body {
	t.Helper()
	body, err := e.Encode(t.Context(), rec, result)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestFormats(t *testing.T) {
	t.Parallel()
	const result = `{"response":"a b"}`
	for _, test := range []struct{ name, format, profile, want, wantWithout string }{
		{"form", FormatForm, "", "response=a+b", "error=no+answer"},
		{"default", "", "", "response=a+b", "error=no+answer"},
		{"json", FormatJSON, "", `{"task_id":"1","status":"COMPLETE","upstream_status":200,"data":{"response":"a b"}}`,
			`{"task_id":"1","status":"COMPLETE","upstream_status":200,"data":null,"error":"no answer"}`},
		{"raw", FormatRaw, "", result, "error=no+answer"},
		{"raw of OpenFaaS", FormatRaw, "openfaas", result, ""},
		{"data", FormatData, "beam2", `{"data":{"response":"a b"}}`, `{"data":null,"error":"no answer"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := New(Options{Folder: filepath.Join(t.TempDir(), "encoded")})
			rec, open := record("1", "a:80", result)
			rec.Result.ContentType = "application/json"
			rec.Callback.Format, rec.Callback.Profile = test.format, test.profile
			body := mustEncode(t, e, rec, open)
			if got := content(t, body); got != test.want || body.InFile() {
				t.Errorf("the body is %s, want %s", got, test.want)
			}
			rec.Result, rec.Error = nil, "no answer"
			if got := content(t, mustEncode(t, e, rec, nil)); got != test.wantWithout {
				t.Errorf("the body without a result is %s, want %s", got, test.wantWithout)
			}
		})
	}
}

func TestLargeBodyIsEncodedOnceUntilDropped(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "encoded")
	e := New(Options{Folder: folder})
	large := strings.Repeat("x", 300<<10)
	rec, open := record("1", "a:80", large)
	opened := 0
	counting := func(ctx context.Context) (io.ReadCloser, error) { opened++; return open(ctx) }
	for range 3 {
		body := mustEncode(t, e, rec, counting)
		if !body.InFile() || content(t, body) != large || content(t, body) != large {
			t.Error("the body is not the result, in a file")
		}
		if body.Head.ContentType != "text/plain" {
			t.Errorf("the content type is %q", body.Head.ContentType)
		}
		body.Release()
	}
	if opened != 1 {
		t.Errorf("the result was read %d times", opened)
	}
	body := mustEncode(t, e, rec, counting)
	r, err := body.Open()
	if err != nil {
		t.Fatal(err)
	}
	e.Drop("1")
	body.Release()
	body.Release()
	if all, err := io.ReadAll(r); err != nil || len(all) != len(large) {
		t.Errorf("an open reader got %d bytes, %v", len(all), err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if n := filesIn(t, folder); n != 0 {
		t.Errorf("%d files remain", n)
	}
	mustEncode(t, e, rec, counting).Release()
	if opened != 2 {
		t.Errorf("the result was read %d times after it was dropped", opened)
	}
}

func TestFilesAreBounded(t *testing.T) {
	t.Parallel()
	const size = 300 << 10
	for name, o := range map[string]Options{"in number": {Files: 3}, "in size": {FilesSize: 3*size + 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Folder = filepath.Join(t.TempDir(), "encoded")
			e := New(o)
			var used []*Body
			for i := range 8 {
				rec, open := record(fmt.Sprint(i), "a:80", strings.Repeat("x", size))
				used = append(used, mustEncode(t, e, rec, open))
			}
			if n := filesIn(t, o.Folder); n != 8 {
				t.Errorf("%d files while 8 are in use", n)
			}
			for _, body := range used {
				body.Release()
			}
			if n := filesIn(t, o.Folder); n != 3 {
				t.Errorf("%d files wait, want 3", n)
			}
			// The first body is encoded again.
			rec, open := record("0", "a:80", strings.Repeat("x", size))
			if got := content(t, mustEncode(t, e, rec, open)); len(got) != size {
				t.Errorf("the body has %d bytes", len(got))
			}
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	e := New(Options{Folder: filepath.Join(t.TempDir(), "encoded"), InMemory: 250 << 10})
	inFile := 0
	for i := range 5 {
		rec, open := record(fmt.Sprint(i), "a:80", strings.Repeat("x", 100<<10))
		if mustEncode(t, e, rec, open).InFile() {
			inFile++
		}
	}
	if inFile != 3 {
		t.Errorf("%d of 5 bodies are in files, want 3", inFile)
	}
	rec, open := record("tiny", "a:80", "x")
	if mustEncode(t, e, rec, open).InFile() {
		t.Error("a tiny body is in a file")
	}
}

func TestNewAndCloseEmptyTheFolder(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "encoded")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "body-1"), []byte("of a process that died"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := New(Options{Folder: folder})
	if n := filesIn(t, folder); n != 0 {
		t.Errorf("%d files of the previous process remain", n)
	}
	rec, open := record("1", "a:80", strings.Repeat("x", 300<<10))
	mustEncode(t, e, rec, open).Release()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder remains: %v", err)
	}
}

func TestRemovedFolderIsRecreated(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "encoded")
	e := New(Options{Folder: folder})
	large := strings.Repeat("x", 300<<10)
	rec, open := record("1", "a:80", large)
	for range 2 {
		body := mustEncode(t, e, rec, open)
		if content(t, body) != large {
			t.Error("the body is not the result")
		}
		body.Release()
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 300<<10)
	t.Run("folder cannot be created", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		rec, open := record("1", "a:80", large)
		if _, err := New(Options{Folder: filepath.Join(file, "encoded")}).Encode(t.Context(), rec, open); !errors.Is(err, ErrSpool) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("result cannot be read", func(t *testing.T) {
		t.Parallel()
		gone := errors.New("gone")
		rec, _ := record("1", "a:80", large)
		e := New(Options{Folder: t.TempDir(), Budget: 1})
		for range 3 { // each failure frees its memory
			_, err := e.Encode(t.Context(), rec, func(context.Context) (io.ReadCloser, error) { return nil, gone })
			if !errors.Is(err, gone) {
				t.Errorf("the error is %v", err)
			}
		}
	})
}

// TestHostsTakeTurns holds the whole budget while one host waits with many results, and
// then another one with a single result.
func TestHostsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &budget{all: 10, free: 10}
		ctx := t.Context()
		if err := b.acquire(ctx, "other", 10); err != nil {
			t.Fatal(err)
		}
		var order bytes.Buffer
		wait := func(host string) {
			if err := b.acquire(ctx, host, 10); err != nil {
				t.Error(err)
			}
			order.WriteString(host)
			b.release(10)
		}
		for range 5 {
			go wait("a")
			synctest.Wait()
		}
		go wait("b")
		synctest.Wait()
		b.release(10)
		synctest.Wait()
		if got := order.String(); got != "abaaaa" {
			t.Errorf("the order is %s", got)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &budget{all: 10, free: 10}
		if err := b.acquire(t.Context(), "a", 4); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.acquire(ctx, "a", 1000) }()
		synctest.Wait()
		small := make(chan error, 1)
		go func() { small <- b.acquire(t.Context(), "b", 6) }()
		synctest.Wait()
		if len(small) != 0 {
			t.Error("a small encoding overtook one that waited before")
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		if err := <-small; err != nil {
			t.Error(err)
		}
		b.release(6)
		b.release(4)
		if b.free != 10 {
			t.Errorf("%d of 10 are free", b.free)
		}
	})
}

func TestCloudEventAttributes(t *testing.T) {
	t.Parallel()
	rec, result := record("0193b1de-7a4c-7cc3-98c4-dc0c0c07398f", "c.example:443", "done")
	rec.Callback.Format, rec.Route, rec.Status = FormatCloudEvents, "train queue", task.Failed
	body := mustEncode(t, New(Options{Folder: t.TempDir()}), rec, result)
	defer body.Release()
	const want = `{"specversion":"1.0","id":"0193b1de-7a4c-7cc3-98c4-dc0c0c07398f","source":"/train%20queue",` +
		`"type":"io.github.caddy-callback.task.failed","subject":"0193b1de-7a4c-7cc3-98c4-dc0c0c07398f",` +
		`"upstreamstatus":200,"datacontenttype":"text/plain; charset=utf-8","data":"done"}`
	if got := content(t, body); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestLargeResultsAreLinked(t *testing.T) {
	t.Parallel()
	const linked = `{"task_id":"1","status":"COMPLETE","upstream_status":200,"data":null,"result_url":"https://example.com/tasks/1/result?`
	gone := errors.New("gone")
	for name, test := range map[string]struct {
		change func(*task.Record)
		err    error // of opening the result
		want   string
	}{
		"over max_result":  {func(*task.Record) {}, nil, linked},
		"up to max_result": {func(r *task.Record) { r.Callback.MaxResult = 10 }, nil, `{"task_id":"1","status":"COMPLETE","upstream_status":200,"data":"0123456789"}`},
		"kept in part":     {func(r *task.Record) { r.Result.Size = 11 }, nil, `{"task_id":"1","status":"COMPLETE","upstream_status":200,"data":"01234567"}`},
		"evicted":          {func(*task.Record) {}, gone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			secret := func(context.Context) ([]byte, error) { return []byte("secret"), nil }
			e := New(Options{Folder: filepath.Join(t.TempDir(), "encoded"), Secret: secret})
			rec, open := record("1", "a:80", "0123456789")
			rec.Callback.Format, rec.Callback.MaxResult = FormatJSON, 8
			rec.Callback.Link = &task.Link{URL: "https://example.com/tasks", Valid: time.Hour}
			test.change(rec)
			body, err := e.Encode(t.Context(), rec, func(ctx context.Context) (io.ReadCloser, error) {
				if test.err != nil {
					return nil, test.err
				}
				return open(ctx)
			})
			if !errors.Is(err, test.err) {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			defer body.Release()
			if got := content(t, body); !strings.HasPrefix(got, test.want) {
				t.Errorf("the body is %s, want %s", got, test.want)
			}
		})
	}
}
