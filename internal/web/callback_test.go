package web_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/web"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

const (
	form = "application/x-www-form-urlencoded"
	mib  = 1 << 20
)

func mustKey(t *testing.T, s string) webhook.Key {
	t.Helper()
	key, err := webhook.ParseVerifyKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignatureVerdicts(t *testing.T) {
	t.Parallel()
	key := mustKey(t, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	other := mustKey(t, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
	const body = "response=example+response"
	signed := func(at time.Time) []string {
		return []string{
			webhook.HeaderID, "task-1",
			webhook.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10),
			webhook.HeaderSignature, webhook.Sign([]webhook.Key{key}, "task-1", at, []byte(body)),
		}
	}
	now := signed(time.Now())
	tests := []struct {
		name    string
		config  web.InboxConfig
		headers []string
		body    io.Reader
		verdict string
		reason  string
	}{
		{"valid signature", web.InboxConfig{Keys: []webhook.Key{key}}, now, strings.NewReader(body), "verified", ""},
		{"one of two keys", web.InboxConfig{Keys: []webhook.Key{other, key}}, now, strings.NewReader(body), "verified", ""},
		{"signature of another key", web.InboxConfig{Keys: []webhook.Key{other}}, now, strings.NewReader(body), "failed", "no signature matches"},
		{"signature of another body", web.InboxConfig{Keys: []webhook.Key{key}}, now, strings.NewReader(body + "!"), "failed", "no signature matches"},
		{
			"old signature", web.InboxConfig{Keys: []webhook.Key{key}}, signed(time.Now().Add(-time.Hour)), strings.NewReader(body),
			"failed", "the signature is right, its timestamp is more than 5 minutes off",
		},
		{"signature without an ID", web.InboxConfig{Keys: []webhook.Key{key}}, now[2:], strings.NewReader(body), "failed", "the ID or the timestamp is missing"},
		{"no signature", web.InboxConfig{Keys: []webhook.Key{key}}, nil, strings.NewReader(body), "unsigned", ""},
		{"no signature and no keys", web.InboxConfig{}, nil, strings.NewReader(body), "unsigned", ""},
		{"no keys", web.InboxConfig{}, now, strings.NewReader(body), "unchecked", "the inbox has no secret to check it with"},
		{
			"truncated body", web.InboxConfig{Keys: []webhook.Key{key}, MaxBody: 10}, now, strings.NewReader(body),
			"unchecked", "only the first 10 bytes of the body are kept",
		},
		{
			"incomplete body", web.InboxConfig{Keys: []webhook.Key{key}}, now,
			io.MultiReader(strings.NewReader(body), iotest.ErrReader(errors.New("gone"))), "unchecked", "the body is incomplete",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(tt.config)
			serve(inbox, http.MethodPost, "/", tt.body, tt.headers...)
			if c := list(t, inbox, "/")[0]; c.Signature != tt.verdict || c.SignatureError != tt.reason {
				t.Errorf("got %s (%s), want %s (%s)", c.Signature, c.SignatureError, tt.verdict, tt.reason)
			}
		})
	}
}

func TestPairs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, contentType, body string
		want                    []pair
	}{
		{"form with repeated names", form, "z=1&a=2&z=3", []pair{{"z", "1"}, {"a", "2"}, {"z", "3"}}},
		{"form type with parameters", form + "; charset=UTF-8", "a=1", []pair{{"a", "1"}}},
		{"escapes", form, "a%26=%C3%A4+b%2B", []pair{{"a&", "ä b+"}}},
		{"value with =", form, "a=b=c", []pair{{"a", "b=c"}}},
		{"name without a value", form, "a&&=&", []pair{{"a", ""}, {"", ""}}},
		{"malformed escapes", form, "a=%zz+%&b=%41", []pair{{"a", "%zz+%"}, {"b", "A"}}},
		{"semicolon", form, "a=1;b=2", []pair{{"a", "1;b=2"}}},
		{"empty form", form, "", nil},
		{
			"object", "application/json",
			`{"z": 12345678901234567890, "a": "x\u0041\n", "z": [1, {"b": 1.0}], "n": null, "t": true}`,
			[]pair{{"z", "12345678901234567890"}, {"a", "xA\n"}, {"z", `[1,{"b":1.0}]`}, {"n", "null"}, {"t", "true"}},
		},
		{"+json is JSON too", "application/vnd.x+json", `{"a":1}`, []pair{{"a", "1"}}},
		{"empty object", "application/json", `{}`, nil},
		{"array", "application/json", `[{"a":1}]`, nil},
		{"broken JSON", "application/json", `{"a":1,`, nil},
		{"two documents", "application/json", `{"a":1}{"b":2}`, nil},
		{"text", "text/plain", "a=1", nil},
		{"no content type", "", "a=1", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(web.InboxConfig{})
			post(inbox, "/", tt.body, "Content-Type", tt.contentType)
			c := list(t, inbox, "/")[0]
			if !slices.Equal(c.Pairs, tt.want) || c.PairsTruncated {
				t.Errorf("got %q (truncated: %v), want %q", c.Pairs, c.PairsTruncated, tt.want)
			}
			if c.Pairs == nil {
				t.Error("pairs is null, which jq cannot iterate over")
			}
			if c.Body != tt.body {
				t.Errorf("body: %q", c.Body)
			}
		})
	}
}

func TestPairsAreBounded(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		form:               strings.Repeat("a&", 1001),
		"application/json": "{" + strings.Repeat(`"a":1,`, 1000) + `"a":1}`,
	} {
		inbox := web.NewInbox(web.InboxConfig{})
		post(inbox, "/", body, "Content-Type", name)
		if c := list(t, inbox, "/")[0]; len(c.Pairs) != 1000 || !c.PairsTruncated {
			t.Errorf("%s: %d pairs, truncated: %v", name, len(c.Pairs), c.PairsTruncated)
		}
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	failing := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(errors.New("the line is dead")))
	tests := []struct {
		name        string
		contentType string
		body        io.Reader
		maxBody     int64
		want        callback
		kept        string // the response to ?body=
	}{
		{"text", "", strings.NewReader("ä\x00"), 0, callback{Body: "ä\x00", BodySize: 3, BodyKept: 3}, "ä\x00"},
		{"bytes", "", strings.NewReader("\xff\x00"), 0, callback{BodyBase64: []byte("\xff\x00"), BodySize: 2, BodyKept: 2}, "\xff\x00"},
		{"half a character", "", strings.NewReader("a\xc3"), 0, callback{BodyBase64: []byte("a\xc3"), BodySize: 2, BodyKept: 2}, "a\xc3"},
		{"no body", "", nil, 0, callback{}, ""},
		{"body of the maximum size", "", strings.NewReader("12345"), 5, callback{Body: "12345", BodySize: 5, BodyKept: 5}, "12345"},
		{"larger body", "", strings.NewReader("123456"), 5, callback{Body: "12345", BodyTruncated: true, BodySize: 6, BodyKept: 5}, "12345"},
		{"truncated between characters", "", strings.NewReader("1234ä"), 5, callback{Body: "1234", BodyTruncated: true, BodySize: 6, BodyKept: 5}, "1234\xc3"},
		{
			"truncated form", form, strings.NewReader("a=1&b=%41%42"), 11,
			callback{Body: "a=1&b=%41%4", Pairs: []pair{{"a", "1"}, {"b", "A"}}, PairsTruncated: true, BodyTruncated: true, BodySize: 12, BodyKept: 11}, "a=1&b=%41%4",
		},
		{"truncated JSON", "application/json", strings.NewReader(`{"a":1} `), 7, callback{Body: `{"a":1}`, BodyTruncated: true, BodySize: 8, BodyKept: 7}, `{"a":1}`},
		{"incomplete body", "", failing, 0, callback{Body: "half", BodySize: 4, BodyKept: 4, BodyError: "the line is dead"}, "half"},
		{
			"excerpt of a long body", "", strings.NewReader(strings.Repeat("x", mib+1)), 0,
			callback{Body: strings.Repeat("x", mib), BodyTruncated: true, BodySize: mib + 1, BodyKept: mib + 1}, strings.Repeat("x", mib+1),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(web.InboxConfig{MaxBody: tt.maxBody})
			serve(inbox, http.MethodPost, "/x", tt.body, "Content-Type", tt.contentType)
			c := list(t, inbox, "/")[0]
			want := tt.want
			if want.Pairs == nil {
				want.Pairs = []pair{}
			}
			got := callback{
				Body: c.Body, BodyBase64: c.BodyBase64, BodyTruncated: c.BodyTruncated, BodySize: c.BodySize,
				BodyKept: c.BodyKept, BodyError: c.BodyError, Pairs: c.Pairs, PairsTruncated: c.PairsTruncated,
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %.400s\nwant %.400s", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
			}
			w := serve(inbox, http.MethodGet, "/?body=1", nil)
			if w.Body.String() != tt.kept {
				t.Errorf("?body= gave %d bytes: %.40q", w.Body.Len(), w.Body.String())
			}
			if w.Header().Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(w.Header().Get("Content-Disposition"), "attachment;") {
				t.Errorf("?body= could be taken for a page: %v", w.Header())
			}
			if w := serve(inbox, http.MethodGet, "/y?body=1", nil); w.Code != http.StatusNotFound {
				t.Errorf("another path returned the body: %d", w.Code)
			}
		})
	}
}

// discard is a ResponseWriter that keeps only the status.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name         string
		keep         int
		sent         int
		body, header int // bytes of each
		least, most  int // how many callbacks may remain
	}{
		{"number", 3, 5, 0, 0, 3, 3},
		{"size of bodies", 0, 12, 10 * mib, 0, 4, 6},
		{"size of headers", 0, 200, 0, mib / 2, 100, 128},
		{"large newest callback", 0, 2, 80 * mib, 0, 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { // sequential, because they are large
			inbox := web.NewInbox(web.InboxConfig{Keep: tt.keep, MaxBody: 64 * mib})
			body, header := bytes.Repeat([]byte("x"), tt.body), strings.Repeat("h", tt.header)
			for range tt.sent {
				serve(inbox, http.MethodPost, "/", bytes.NewReader(body), "X-Large", header)
			}
			var left []int
			for number := range tt.sent {
				w := &discard{header: http.Header{}, status: http.StatusOK}
				inbox.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?body="+strconv.Itoa(number+1), nil))
				if w.status == http.StatusOK {
					left = append(left, number+1)
				}
			}
			if len(left) < tt.least || len(left) > tt.most || left[len(left)-1] != tt.sent {
				t.Errorf("%v are left, want the newest %d to %d", left, tt.least, tt.most)
			}
		})
	}
}

func TestConcurrentBodiesShareLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{MaxBody: 48 * mib})
		large := bytes.Repeat([]byte("x"), 40*mib)
		rest, more := io.Pipe()
		go serve(inbox, http.MethodPost, "/", io.MultiReader(bytes.NewReader(large), rest))
		synctest.Wait() // the first 40 MiB are received, and the sender blocks
		serve(inbox, http.MethodPost, "/", bytes.NewReader(large))
		if c := list(t, inbox, "/")[0]; c.BodyKept != 24*mib || c.BodySize != 40*mib {
			t.Errorf("beside 40 MiB that are coming in, %d of %d bytes are kept", c.BodyKept, c.BodySize)
		}
		_ = more.Close()
		synctest.Wait()
		serve(inbox, http.MethodPost, "/", bytes.NewReader(large))
		if c := list(t, inbox, "/")[0]; c.BodyKept != 40*mib || c.BodySize != 40*mib {
			t.Errorf("when the others are there, %d of %d bytes are kept", c.BodyKept, c.BodySize)
		}
	})
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestEndlessBodyIsCut(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{MaxBody: 10})
	serve(inbox, http.MethodPost, "/", endless{})
	if c := list(t, inbox, "/")[0]; c.BodyError != "only the first 1073741824 bytes were read" || c.BodySize != 1<<30 || c.BodyKept != 10 {
		t.Errorf("got %+v", c)
	}
}

// FuzzCallback checks that the list is JSON without a tag, and every pair is text, for
// any request.
func FuzzCallback(f *testing.F) {
	f.Add(form, []byte("a=%3C/script%3E&%zz&&=\xff+%e2%80%ae"), "</script>")
	f.Add("application/json", []byte(`{"<":{"</script>":1e999},"<":"\ud800"}`), "\u202e\x1b[31m")
	f.Add("application/json", []byte(strings.Repeat("[", 20000)), "")
	f.Fuzz(func(t *testing.T, contentType string, body []byte, header string) {
		inbox := web.NewInbox(web.InboxConfig{MaxBody: 4 << 10})
		serve(inbox, http.MethodPost, "/", bytes.NewReader(body), "Content-Type", contentType, "beam-task-id", header, "x-beam-task-status", header)
		w := serve(inbox, http.MethodGet, "/", nil, "Accept", "application/json")
		if bytes.ContainsAny(w.Body.Bytes(), "<>&") || !utf8.Valid(w.Body.Bytes()) {
			t.Errorf("unescaped: %q", w.Body)
		}
		if c := list(t, inbox, "/"); len(c) != 1 || len(c[0].Pairs) > 1000 {
			t.Errorf("listed: %+v", c)
		}
		if kept := serve(inbox, http.MethodGet, "/?body=1", nil).Body.Bytes(); !bytes.HasPrefix(body, kept) {
			t.Errorf("kept is %q of %q", kept, body)
		}
	})
}
