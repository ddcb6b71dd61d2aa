package capture

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"unicode/utf8"
)

const field = "callback_url"

// find calls [Find] for a JSON request, without a folder.
func find(r *http.Request, limit int64) (string, error) {
	r.Header.Set("Content-Type", "application/json")
	value, _, err := Find(r, Options{Field: field, Limit: limit})
	return value, err
}

func TestCloseWhileReading(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Body, *io.PipeWriter) error{
		"closed":                  func(b *Body, _ *io.PipeWriter) error { return b.Close() },
		"released, and then sent": func(b *Body, client *io.PipeWriter) error { b.Release(); return client.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rest, client := io.Pipe() // a client that has stopped sending
				r := newRequest(rest)
				go func() { _, _ = io.WriteString(client, "[head") }()
				if _, err := find(r, 8<<20); err != nil {
					t.Fatal(err)
				}
				body := r.Body.(*Body)
				if head, err := io.ReadAll(io.LimitReader(body, 5)); err != nil || string(head) != "[head" {
					t.Fatalf("%q %v", head, err)
				}
				done := make(chan error, 1)
				go func() {
					_, err := body.Read(make([]byte, 1))
					done <- err
				}()
				synctest.Wait() // the reader waits for the client
				// If the reader held the lock, Close would block for ever, and the test
				// too.
				if !body.mu.TryLock() {
					client.Close()
					t.Fatal("the reader holds the lock while it waits")
				}
				body.mu.Unlock()
				if err := end(body, client); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err == nil {
					t.Error("the reader got data")
				}
				if _, err := body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) {
					t.Errorf("reading after Close: %v", err)
				}
			})
		})
	}
}

func TestClosedBodyDoesNotUseItsBuffer(t *testing.T) {
	t.Parallel()
	want := bytes.Repeat([]byte("mine "), 1000)
	for range 200 {
		r := httptest.NewRequest("POST", "/", bytes.NewReader(want))
		if _, err := find(r, 8<<20); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			got, _ := io.ReadAll(r.Body)
			if !bytes.HasPrefix(want, got) {
				t.Errorf("a closed body read %q from another body", got)
			}
		})
		wg.Go(func() {
			r.Body.Close()
			b := getBuffer() // may be the buffer of the body
			defer putBuffer(b)
			b.Write(bytes.Repeat([]byte("yours"), 1000))
		})
		wg.Wait()
	}
}

func TestHandlerGetsErrorOfBody(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader(`{"callback_url":"http://c.example"}`), errorReader{broken}))
	if value, err := find(r, 8<<20); value != "" || err != nil {
		t.Errorf("it names %q, %v", value, err)
	}
	if got, err := io.ReadAll(r.Body); string(got) != `{"callback_url":"http://c.example"}` || err != broken {
		t.Errorf("the handler reads %q, %v", got, err)
	}
}

// A body is searched in parts while it arrives.
func TestMemberIsFoundAtEveryOffset(t *testing.T) {
	t.Parallel()
	for _, member := range []string{`"callback_url":"http://c.example/"`, `"callback\u005Furl":"http://c.example/"`} {
		for _, border := range []int{searchEvery, 2 * searchEvery} {
			for before := border - len(member) - 2; before <= border+2; before++ {
				head := `{"filler":"`
				data := head + strings.Repeat("x", before-len(head)-2) + `",` + member + strings.Repeat(" ", 100) + "}"
				r := httptest.NewRequest("POST", "/", strings.NewReader(data))
				if value, err := find(r, 8<<20); value != "http://c.example/" || err != nil {
					t.Fatalf("%s at byte %d: %q, %v", member, before, value, err)
				}
				if got, err := io.ReadAll(r.Body); string(got) != data || err != nil {
					t.Fatalf("%s at byte %d: the handler reads %d bytes of %d, %v", member, before, len(got), len(data), err)
				}
			}
		}
	}
}

// BenchmarkFindURL reads and searches texts without the member.
func BenchmarkFindURL(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20} {
		text := strings.Repeat("a prompt, such as this_one, can be called caf\\u00e9.\\n", size/52)
		data := []byte(`{"prompt":"` + text + `"}`)
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			from := bytes.NewReader(data)
			r := httptest.NewRequest("POST", "/", nil)
			r.ContentLength = int64(len(data))
			for b.Loop() {
				from.Reset(data)
				r.Body = io.NopCloser(from)
				if value, err := find(r, 8<<20); value != "" || err != nil {
					b.Fatal(value, err)
				}
				r.Body.Close()
			}
		})
	}
}

type errorReader struct{ error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.error }

// bodies are fuzzing seeds: valid and invalid documents.
var bodies = []string{
	``, ` `, `{}`, `[]`, `null`, `"callback_url"`, `5`, `{`, `{"callback_url"`, `{"callback_url":`,
	`{"callback_url":"http://c.example/"}`,
	`{"callback_url":null}`, `{"callback_url":""}`, `{"callback_url":1e400}`, `{"callback_url":{"a":[]}}`,
	`{"a":{"callback_url":"x"},"callback_url":"y"}`, `[{"callback_url":"x"}]`,
	`{"callback_url":"x","callback_url":"y"}`, `{"callback_url":"x","callback\u005furl":"y"}`,
	`{"call\u0062ack_url":"http:\/\/c.example\/\u00e9\ud83d\ude00"}`, `{"callback_url":"\ud800A"}`,
	`{"callback_url":"\ud800\u0041"}`, "{\"callback_url\":\"\xff\"}", "{\"\xff\":1,\"callback_url\":\"x\"}",
	"\xef\xbb\xbf{\"callback_url\":\"x\"}", "\n{ \"callback_url\"\t:\r\n\"x\" } ", `{"callback_url":"x"}{}`,
	`{"callback_url":"x",}`, `{"callback_url":x}`, `{"callback_url":"x" "y":1}`, `{"a":"\"callback_url\":\"x\""}`,
	`{"a":[[[[{"callback_url":1}]]]],"callback_url":"x"}`, `{"callback_url":nan}`, `{"callback_url":"a` + "\n" + `b"}`,
	strings.Repeat(`{"a":`, 20_000) + `"callback_url"`, strings.Repeat(`[`, 20_000),
}

// expected returns what encoding/json finds, which most Go programs use. refused means
// that the request must be refused.
func expected(data []byte, field string) (value string, refused bool) {
	if !json.Valid(data) {
		return "", false
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return "", false
	}
	var found []json.RawMessage
	for d.More() {
		key, err := d.Token()
		var raw json.RawMessage
		if err != nil || d.Decode(&raw) != nil {
			return "", false
		}
		if key == field {
			found = append(found, raw)
		}
	}
	switch {
	case len(found) == 0 || len(found) == 1 && string(found[0]) == "null":
		return "", false
	case len(found) > 1, !utf8.Valid(found[0]), json.Unmarshal(found[0], &value) != nil:
		return "", true
	}
	return value, false
}

func FuzzMember(f *testing.F) {
	for _, body := range bodies {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, refused := expected(data, field)
		got, _, err := member(data, field, false)
		if got != want || (err != nil) != refused {
			t.Errorf("the member is %q, %v, want %q, refused %v", got, err, want, refused)
		}
		_, _, _ = member(data, field, true)
	})
}

func FuzzFindURL(f *testing.F) {
	const limit = 100
	for _, body := range bodies {
		f.Add([]byte(body), "")
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = io.WriteString(w, body)
		_ = w.Close()
		f.Add(b.Bytes(), "gzip")
		f.Add(b.Bytes(), "gzip, br")
		f.Add([]byte(body), "deflate")
	}
	f.Fuzz(func(t *testing.T, data []byte, codings string) {
		r := httptest.NewRequest("POST", "/", bytes.NewReader(data))
		r.Header.Set("Content-Encoding", codings)
		value, err := find(r, limit)
		if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the body is put back as %q, %v, want %q", got, err, data)
		}
		if err := r.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if value != "" && int64(len(data)) > limit {
			t.Errorf("a body of %d bytes is a task, to %q", len(data), value)
		}
		if codings != "" || len(data) > limit {
			return
		}
		if want, refused := expected(bytes.TrimPrefix(data, utf8BOM), field); value != want || (err != nil) != refused {
			t.Errorf("the URL is %q, %v, want %q, refused %v", value, err, want, refused)
		}
	})
}
