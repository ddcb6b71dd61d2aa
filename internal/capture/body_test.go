package capture

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/problem"
)

// object returns a JSON object of about size bytes whose last member is a callback URL.
func object(size int) []byte {
	letters := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(letters)
	for i, c := range letters {
		letters[i] = 'a' + c%16
	}
	return []byte(`{"a":"` + string(letters) + `","callback_url":"http://c.example/"}`)
}

func newRequest(body io.Reader) *http.Request {
	r := httptest.NewRequest("POST", "/", body)
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestLargeBodiesAreSpooled(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, firstRead, maxMemory - 60, maxMemory, maxMemory + 1, 3*maxMemory + 7, 2 << 20} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"at once":        func(r io.Reader) io.Reader { return r },
			"in halves":      iotest.HalfReader,
			"with its error": iotest.DataErrReader,
		} {
			want := object(size)
			r := newRequest(wrap(bytes.NewReader(want)))
			r.ContentLength = -1 // a body of known length may stay in memory
			dir := t.TempDir()
			value, _, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: dir + "/spool"})
			if value != "http://c.example/" || err != nil {
				t.Fatalf("%d bytes %s: %q, %v", size, name, value, err)
			}
			body := r.Body.(*Body)
			if spooled := body.spool != nil; spooled != (len(want) > maxMemory) || body.head.Len() > maxMemory {
				t.Errorf("%d bytes %s: %d bytes in memory, spooled: %v", size, name, body.head.Len(), spooled)
			}
			got, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(r.Body, 3)))
			rest, err2 := io.ReadAll(r.Body)
			if got = append(got, rest...); err != nil || err2 != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes %s: %d bytes read back, %v %v", size, name, len(got), err, err2)
			}
			body.Release()
			if left, _ := os.ReadDir(dir + "/spool"); len(left) > 0 {
				t.Errorf("%d bytes %s: %d files remain", size, name, len(left))
			}
		}
	}
}

// It is not parallel, because it takes the places of all bodies.
func TestLargeBodiesOfKnownLengthStayInMemory(t *testing.T) {
	var bodies []*Body
	defer func() {
		for _, body := range bodies {
			body.Release()
		}
	}()
	want := object(1 << 20)
	find := func(size int) *Body {
		r := newRequest(bytes.NewReader(want[:size]))
		if _, _, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, r.Body.(*Body))
		return bodies[len(bodies)-1]
	}
	for i := range maxLargeBodies {
		if body := find(len(want)); body.spool != nil || !body.large {
			t.Fatalf("body %d is in a file", i)
		}
	}
	if body := find(len(want)); body.spool == nil || body.large {
		t.Error("more bodies are in memory than there are places")
	}
	for _, body := range bodies {
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes read back, %v", len(got), err)
		}
	}
	if body := find(maxMemory); body.large {
		t.Error("a body of that length takes a place")
	}
	if body := find(len(want)); body.spool != nil {
		t.Error("bodies that were read keep their places")
	}
}

func TestBodyBeyondLimitIsRestored(t *testing.T) {
	t.Parallel()
	want := append(object(2<<20), object(1<<20)...)
	r := newRequest(bytes.NewReader(want))
	value, reason, err := Find(r, Options{Field: field, Limit: 1 << 20, Folder: t.TempDir()})
	if value != "" || reason != TooLarge || err != nil {
		t.Fatalf("%q, %q, %v", value, reason, err)
	}
	if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestBodyIsRestoredWithoutSpool(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := object(2 << 20)
	r := newRequest(bytes.NewReader(want))
	value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: file})
	if value != "" || reason != NoSpool || err != nil {
		t.Fatalf("%q, %q, %v", value, reason, err)
	}
	if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	// A body that has shown its member already wants a callback, so it is refused.
	early := append([]byte(`{"callback_url":"http://c.example/",`), want[1:]...)
	var refusal *problem.Problem
	if _, _, err = Find(newRequest(bytes.NewReader(early)), Options{Field: field, Limit: 8 << 20, Folder: file}); !errors.As(err, &refusal) || refusal.Status != 503 {
		t.Errorf("error is %v", err)
	}
}

// stalling is a connection whose body ends when the read deadline is set.
type stalling struct {
	http.ResponseWriter
	w *io.PipeWriter
}

func (s stalling) SetReadDeadline(time.Time) error { return s.w.CloseWithError(os.ErrDeadlineExceeded) }

func TestStalledBodyIsRefused(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]func(*http.Request, Options) error{
		"found":   func(r *http.Request, o Options) error { _, _, err := Find(r, o); return err },
		"spooled": Spool,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body, client := io.Pipe()
				go func() {
					for range 5 { // slow, but not stalled
						<-time.After(StallTimeout - time.Second)
						_, _ = io.WriteString(client, `{"a":[`)
					}
				}()
				begin := time.Now()
				err := read(newRequest(body), Options{Field: field, Limit: 8 << 20, Response: stalling{httptest.NewRecorder(), client}})
				var refusal *problem.Problem
				if !errors.As(err, &refusal) || refusal.Status != 408 {
					t.Errorf("error is %v", err)
				}
				if took := time.Since(begin); took != 6*StallTimeout-5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestForwardedBodyMayStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		body, client := io.Pipe()
		r := newRequest(body)
		go func() {
			_, _ = io.WriteString(client, `[1,`)
			<-time.After(10 * StallTimeout)
			_, _ = io.WriteString(client, `2]`)
			client.Close()
		}()
		value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20, Response: stalling{httptest.NewRecorder(), client}})
		if value != "" || reason != "" || err != nil {
			t.Fatalf("%q, %q, %v", value, reason, err)
		}
		if got, err := io.ReadAll(r.Body); string(got) != "[1,2]" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestSearchStopsEarly(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		contentType, begin string
		reason             Reason
	}{
		"grpc":            {"application/grpc+json", "\x00\x00\x00\x00\x02{}", Stream},
		"grpc-web":        {"application/grpc-web+JSON; x=y", "{", Stream},
		"connect":         {"application/connect+json", "\x00\x00\x00\x00\x02{}", Stream},
		"spring":          {"application/stream+json", "{}\n", Stream},
		"an array":        {"application/json", " \n[", ""},
		"a binary header": {"application/vnd.x+json", "\x00{", NotJSON},
		"JSONP":           {"application/json", "cb({", NotJSON},
		"two order marks": {"application/json", "\xef\xbb\xbf\xef\xbb\xbf{", NotJSON},
		"UTF-16":          {"application/json", "\xff\xfe{\x00", NotJSON},
		"a type twice":    {"application/json, application/json", "{", ContentType},
		"a quoted type":   {`"Application/JSON"`, "{", ContentType},
		"no semicolon":    {"application/json charset=utf-8", "{", ContentType},
		"a form":          {"application/x-www-form-urlencoded", "{", ContentType},
		"text":            {"text/plain; charset=utf-8", "{", ContentType},
		"no type":         {"", "{", ContentType},
		"an image":        {"image/png", "{", ""},
		"multipart":       {"multipart/form-data; boundary=x", "{", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body, client := io.Pipe()
			defer client.Close()
			go func() { _, _ = io.WriteString(client, tt.begin) }()
			r := newRequest(body) // the body never ends, so reading to its end would block
			r.Header.Set("Content-Type", tt.contentType)
			value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20})
			if value != "" || reason != tt.reason || err != nil {
				t.Fatalf("%q, %q, %v", value, reason, err)
			}
			got := make([]byte, len(tt.begin))
			if _, err := io.ReadFull(r.Body, got); err != nil || string(got) != tt.begin {
				t.Errorf("the handler reads %q, %v", got, err)
			}
		})
	}
}

func TestRequestWithoutBodyIsNotCounted(t *testing.T) {
	t.Parallel()
	r := newRequest(io.NopCloser(strings.NewReader(""))) // wrapped, as in servers that count bytes
	r.ContentLength = 0
	r.Header.Del("Content-Type")
	if value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20}); value != "" || reason != "" || err != nil {
		t.Errorf("%q, %q, %v", value, reason, err)
	}
}

func gzipped(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data) // a buffer never fails
	_ = w.Close()
	return out.Bytes()
}

func TestCodingsOfRequests(t *testing.T) {
	t.Parallel()
	const task = `{"callback_url":"http://c.example/"}`
	zeros := append([]byte(`{"callback_url":"http://c.example/","a":"`), bytes.Repeat([]byte("0"), 7<<20)...)
	for name, tt := range map[string]struct {
		coding string
		body   []byte
		value  string
		reason Reason
	}{
		"identity":                 {"identity", []byte(task), "http://c.example/", ""},
		"none":                     {"none", []byte(task), "http://c.example/", ""},
		"a charset":                {"UTF-8", []byte(task), "http://c.example/", ""},
		"a byte order mark":        {"", []byte("\xef\xbb\xbf" + task), "http://c.example/", ""},
		"gzip":                     {"gzip", gzipped([]byte(task)), "http://c.example/", ""},
		"gzip and identity":        {"identity, gzip", gzipped([]byte(task)), "http://c.example/", ""},
		"gzip of an order mark":    {"gzip", gzipped([]byte("\xef\xbb\xbf" + task)), "http://c.example/", ""},
		"gzip of a large object":   {"gzip", gzipped(object(4 << 20)), "http://c.example/", ""},
		"gzip twice":               {"gzip, gzip", gzipped(gzipped([]byte(task))), "", Coding},
		"an unknown coding":        {"compress", []byte(task), "", Coding},
		"no gzip":                  {"gzip", []byte(task), "", Encoded},
		"truncated gzip":           {"gzip", gzipped([]byte(task))[:30], "", Encoded},
		"a bomb":                   {"gzip", gzipped(zeros), "", Encoded},
		"no JSON":                  {"", []byte(`{'callback_url':'http://c.example/'}`), "", NotJSON},
		"truncated JSON":           {"", []byte(task[:len(task)-1]), "", NotJSON},
		"a name that is no member": {"", []byte(`{"a":"callback_url"}`), "", ""},
		"no JSON and no name":      {"", []byte(`{"a"`), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRequest(bytes.NewReader(tt.body))
			if tt.coding != "" {
				r.Header.Set("Content-Encoding", tt.coding)
			}
			value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: t.TempDir()})
			if value != tt.value || reason != tt.reason || err != nil {
				t.Errorf("%q, %q, %v", value, reason, err)
			}
			if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, tt.body) {
				t.Errorf("the handler reads %d bytes of %d, %v", len(got), len(tt.body), err)
			}
		})
	}
}

// incompressible returns a JSON object whose first member is the callback URL and that
// gzip hardly compresses, and its gzip encoding.
func incompressible(size int) (body, encoded []byte) {
	padding := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(padding)
	body = []byte(`{"callback_url":"http://c.example/","a":"` + base64.StdEncoding.EncodeToString(padding) + `"}`)
	return body, gzipped(body)
}

func TestFindUpToLimit(t *testing.T) {
	t.Parallel()
	plain, encoded := incompressible(3 << 10)
	// gzip makes this body larger. It is cut off at its encoded size, not at its decoded
	// one.
	var stored bytes.Buffer
	w, err := gzip.NewWriterLevel(&stored, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(plain) // a buffer never fails
	_ = w.Close()
	last := append([]byte(`{"a":"`+strings.Repeat("x", 1000)), `","callback_url":"http://c.example/"}`...)
	tooLarge := func(limit int) string {
		return fmt.Sprintf("callback_url: the body of a request with a callback is limited to %d bytes", limit)
	}
	for name, tt := range map[string]struct {
		body   []byte
		coding string
		limit  int
		value  string
		reason Reason
		detail string // of the refusal
	}{
		"exactly":                         {plain, "", len(plain), "http://c.example/", "", ""},
		"one byte over":                   {plain, "", len(plain) - 1, "", "", tooLarge(len(plain) - 1)},
		"far over":                        {plain, "", 100, "", "", tooLarge(100)},
		"the member over":                 {last, "", 500, "", TooLarge, ""},
		"encoded, exactly decoded":        {encoded, "gzip", len(plain), "http://c.example/", "", ""},
		"encoded, one byte over decoded":  {encoded, "gzip", len(plain) - 1, "", "", tooLarge(len(plain) - 1)},
		"encoded, over as it was sent":    {encoded, "gzip", len(encoded) - 1, "", "", tooLarge(len(encoded) - 1)},
		"encoded, far over as it is sent": {encoded, "gzip", 1 << 10, "", "", tooLarge(1 << 10)},
		"encoded to more, over as sent":   {stored.Bytes(), "gzip", len(plain) + 5, "", "", tooLarge(len(plain) + 5)},
		"encoded, the member over":        {gzipped(last), "gzip", 500, "", TooLarge, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRequest(bytes.NewReader(tt.body))
			if tt.coding != "" {
				r.Header.Set("Content-Encoding", tt.coding)
			}
			value, reason, err := Find(r, Options{Field: field, Limit: int64(tt.limit), Folder: t.TempDir()})
			if value != tt.value || reason != tt.reason {
				t.Errorf("%q, %q", value, reason)
			}
			var refusal *problem.Problem
			if refused := errors.As(err, &refusal); refused != (tt.detail != "") ||
				refused && (refusal.Status != http.StatusRequestEntityTooLarge || refusal.Detail != tt.detail) {
				t.Errorf("the error is %v", err)
			}
			if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, tt.body) {
				t.Errorf("the handler reads %d bytes of %d, %v", len(got), len(tt.body), err)
			}
		})
	}
}

func TestSpoolReadsOneByteMoreThanTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 100
	for _, size := range []int{0, 1, limit - 1, limit, limit + 1, limit + 2, 10 * limit} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			t.Parallel()
			want := bytes.Repeat([]byte("x"), size)
			from := bytes.NewReader(want)
			r := newRequest(io.NopCloser(from))
			if err := Spool(r, Options{Limit: limit, Folder: t.TempDir()}); err != nil {
				t.Fatal(err)
			}
			if read := size - from.Len(); read != min(size, limit+1) {
				t.Errorf("%d bytes read", read)
			}
			if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes read back, %v", len(got), err)
			}
		})
	}
}

// TestDecodingStopsEarly calls decode directly: from outside, only the time taken shows
// how much of a body was decoded.
func TestDecodingStopsEarly(t *testing.T) {
	t.Parallel()
	const limit = 8 << 20
	for name, tt := range map[string]struct {
		coding string
		body   []byte
		most   int // bytes read from the body
	}{
		"a bomb":                  {"gzip", gzipped(make([]byte, 64<<20)), 64 << 10},
		"empty metadata blocks":   {"br", append([]byte("\x0c"), bytes.Repeat([]byte("\x06"), limit)...), 1 << 20},
		"empty members":           {"gzip", bytes.Repeat(gzipped(nil), 300_000), 1 << 20},
		"empty frames":            {"zstd", bytes.Repeat([]byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), 1<<20), 1 << 20},
		"a table every few bytes": {"deflate", dynamicBlocks(limit, 20), 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := bytes.NewReader(tt.body)
			if data, _, err := decode(tt.coding, body, limit, false); err == nil {
				t.Fatalf("decoded to %d bytes", len(data))
			}
			if read := len(tt.body) - body.Len(); read > tt.most {
				t.Errorf("read %d of %d bytes", read, len(tt.body))
			}
		})
	}
}

// TestDecodeBase64 decodes base64, the real data that compresses least and takes
// longest.
func TestDecodeBase64(t *testing.T) {
	t.Parallel()
	random := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random) // never fails
	body := []byte(`{"image":"` + base64.StdEncoding.EncodeToString(random) + `","callback_url":"http://c.example/"}`)
	r := newRequest(bytes.NewReader(gzipped(body)))
	r.Header.Set("Content-Encoding", "gzip")
	value, reason, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: t.TempDir()})
	if value != "http://c.example/" || err != nil {
		t.Errorf("%q, %q, %v", value, reason, err)
	}
}

// BenchmarkFindHostile has bodies that are made to be expensive.
func BenchmarkFindHostile(b *testing.B) {
	for name, tt := range map[string]struct {
		coding string
		body   []byte
	}{
		"brackets":                {"", []byte(`{"callback_url":` + strings.Repeat("[", 8<<20-20))},
		"a bomb":                  {"gzip", gzipped(make([]byte, 64<<20))},
		"a table every few bytes": {"deflate", dynamicBlocks(8<<20, 144)},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(tt.body)))
			folder := b.TempDir()
			for b.Loop() {
				r := newRequest(bytes.NewReader(tt.body))
				if tt.coding != "" {
					r.Header.Set("Content-Encoding", tt.coding)
				}
				if value, _, err := Find(r, Options{Field: field, Limit: 8 << 20, Folder: folder}); value != "" || err != nil {
					b.Fatalf("%q, %v", value, err)
				}
				_ = r.Body.Close() // the body was read whole
			}
		})
	}
}

// dynamicBlocks returns deflate blocks that each have their own tables and hold text
// bytes, at most 144.
func dynamicBlocks(size, text int) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.HuffmanOnly)
	few := []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz0123456789", 4)[:text])
	for out.Len() < size {
		_, _ = w.Write(few) // a buffer never fails
		_ = w.Flush()
	}
	const header = 10
	return out.Bytes()[header:]
}
