package web_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// callback is the documented JSON of a callback.
type callback struct {
	Number          uint64    `json:"number"`
	ReceivedAt      time.Time `json:"received_at"`
	Method          string    `json:"method"`
	Path            string    `json:"path"`
	Query           string    `json:"query"`
	Proto           string    `json:"proto"`
	RemoteAddr      string    `json:"remote_addr"`
	TaskID          string    `json:"task_id"`
	Status          string    `json:"status"`
	Attempt         int       `json:"attempt"`
	UpstreamStatus  int       `json:"upstream_status"`
	SincePreviousMS *int64    `json:"since_previous_ms"`
	Signature       string    `json:"signature"`
	SignatureError  string    `json:"signature_error"`
	Headers         []pair    `json:"headers"`
	Pairs           []pair    `json:"pairs"`
	PairsTruncated  bool      `json:"pairs_truncated"`
	Body            string    `json:"body"`
	BodyBase64      []byte    `json:"body_base64"`
	BodyTruncated   bool      `json:"body_truncated"`
	BodySize        int64     `json:"body_size"`
	BodyKept        int64     `json:"body_kept"`
	BodyError       string    `json:"body_error"`
}

type pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// serve sends a request to a handler. headers are names and values in turn.
func serve(h http.Handler, method, target string, body io.Reader, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, body)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func post(h http.Handler, target, body string, headers ...string) *httptest.ResponseRecorder {
	return serve(h, http.MethodPost, target, strings.NewReader(body), headers...)
}

func list(t *testing.T, h http.Handler, target string) []callback {
	t.Helper()
	w := serve(h, http.MethodGet, target, nil, "Accept", "application/json")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%s: status %d, %s", target, w.Code, w.Header().Get("Content-Type"))
	}
	var answer struct {
		Callbacks []callback `json:"callbacks"`
	}
	decoder := json.NewDecoder(w.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&answer); err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	return answer.Callbacks
}

func numbers(callbacks []callback) []uint64 {
	var list []uint64
	for _, c := range callbacks {
		list = append(list, c.Number)
	}
	return list
}

func TestInboxRecordsCallback(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	server := httptest.NewServer(inbox)
	defer server.Close()
	r, err := http.NewRequest(http.MethodPost, server.URL+"/inbox/a%20b?x=1&x=%20", strings.NewReader("b=2&a=1&a=1&response=example+response"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{
		"Content-Type":             {"application/x-www-form-urlencoded"},
		"Beam-Task-Id":             {"5a1f"},
		"X-Beam-Task-Status":       {"COMPLETE"},
		"Callback-Attempt":         {"2"},
		"Callback-Upstream-Status": {"201"},
		"X-Twice":                  {"z", "a"},
		"Accept-Encoding":          {"identity"},
		"User-Agent":               {"test"},
	}
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if body, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK || string(body) != "recorded as 1\n" {
		t.Errorf("the sender got %d %q", answer.StatusCode, body)
	}

	callbacks := list(t, inbox, "/inbox")
	if len(callbacks) != 1 {
		t.Fatalf("%d callbacks are listed", len(callbacks))
	}
	got := callbacks[0]
	if age := time.Since(got.ReceivedAt); age < 0 || age > time.Minute {
		t.Errorf("received_at is %v ago", age)
	}
	if !strings.HasPrefix(got.RemoteAddr, "127.0.0.1:") {
		t.Errorf("remote_addr: %q", got.RemoteAddr)
	}
	if got.SincePreviousMS != nil {
		t.Errorf("the first of a task has since_previous_ms")
	}
	got.ReceivedAt, got.RemoteAddr = time.Time{}, ""
	want := callback{
		Number: 1, Method: "POST", Path: "/inbox/a b", Query: "x=1&x=%20", Proto: "HTTP/1.1",
		TaskID: "5a1f", Status: "COMPLETE", Attempt: 2, UpstreamStatus: 201, Signature: "unsigned",
		Headers: []pair{
			{"accept-encoding", "identity"}, {"beam-task-id", "5a1f"}, {"callback-attempt", "2"},
			{"callback-upstream-status", "201"}, {"content-length", "37"},
			{"content-type", "application/x-www-form-urlencoded"}, {"host", r.URL.Host}, {"user-agent", "test"},
			{"x-beam-task-status", "COMPLETE"}, {"x-twice", "z"}, {"x-twice", "a"},
		},
		Pairs: []pair{{"b", "2"}, {"a", "1"}, {"a", "1"}, {"response", "example response"}},
		Body:  "b=2&a=1&a=1&response=example+response", BodySize: 37, BodyKept: 37,
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestInboxDistinguishesViewsFromCallbacks(t *testing.T) {
	t.Parallel()
	const chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	tests := []struct {
		name, method, target string
		headers              []string
		recorded             bool
		status               int
		contentType          string
	}{
		{"browser", "GET", "/", []string{"Accept", chrome}, false, 200, "text/html; charset=utf-8"},
		{"JSON", "GET", "/", []string{"Accept", "application/json"}, false, 200, "application/json"},
		{"axios", "GET", "/", []string{"Accept", "application/json, text/plain, */*"}, false, 200, "application/json"},
		{"media type in capitals", "GET", "/", []string{"Accept", "Application/JSON;q=1"}, false, 200, "application/json"},
		{"second Accept header", "GET", "/", []string{"Accept", "a/b", "Accept", "text/html"}, false, 200, "text/html; charset=utf-8"},
		{"curl", "GET", "/", []string{"Accept", "*/*"}, true, 418, "text/plain; charset=utf-8"},
		{"GET without Accept", "GET", "/", nil, true, 418, "text/plain; charset=utf-8"},
		{"POST that accepts HTML", "POST", "/", []string{"Accept", chrome}, true, 418, "text/plain; charset=utf-8"},
		{"POST with ?body=1", "POST", "/?body=1", nil, true, 418, "text/plain; charset=utf-8"},
		{"GET with another query", "GET", "/?body=x&body=1", nil, true, 418, "text/plain; charset=utf-8"},
		{"HEAD", "HEAD", "/", []string{"Accept", chrome}, true, 418, "text/plain; charset=utf-8"},
		{"OPTIONS", "OPTIONS", "/", nil, true, 418, "text/plain; charset=utf-8"},
		{"unknown method", "PING", "/", nil, true, 418, "text/plain; charset=utf-8"},
		{"DELETE", "DELETE", "/", nil, false, 204, ""},
		{"body of an unknown callback", "GET", "/?body=7", nil, false, 404, "text/plain; charset=utf-8"},
		{"limit is not a number", "GET", "/?limit=all", []string{"Accept", "application/json"}, false, 400, "text/plain; charset=utf-8"},
		{"negative limit", "GET", "/?limit=-1", []string{"Accept", "application/json"}, false, 400, "text/plain; charset=utf-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(web.InboxConfig{Respond: 418})
			w := serve(inbox, tt.method, tt.target, nil, tt.headers...)
			if w.Code != tt.status || w.Header().Get("Content-Type") != tt.contentType {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Header().Get("Content-Type"), tt.status, tt.contentType)
			}
			if recorded := len(list(t, inbox, "/")) == 1; recorded != tt.recorded {
				t.Errorf("recorded: %v, want %v", recorded, tt.recorded)
			}
			for name, want := range map[string]string{
				"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
				"Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'none'; ") {
				t.Errorf("Content-Security-Policy: %q", w.Header().Get("Content-Security-Policy"))
			}
		})
	}
}

func TestInboxesByPath(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	for _, path := range []string{"/inbox", "/inbox/foo", "/inbox/foo/bar", "/inbox/food", "/inbox2", "/inbox/foo/"} {
		post(inbox, path, "")
	}
	tests := []struct {
		name, target string
		want         []uint64
	}{
		{"root", "/", []uint64{6, 5, 4, 3, 2, 1}},
		{"path", "/inbox", []uint64{6, 4, 3, 2, 1}},
		{"trailing slash", "/inbox/", []uint64{6, 4, 3, 2, 1}},
		{"longer path", "/inbox/foo", []uint64{6, 3, 2}},
		{"unused path", "/inbox/quux", nil},
		{"limit", "/inbox?limit=2", []uint64{6, 4}},
		{"limit of 0", "/inbox?limit=0", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := numbers(list(t, inbox, tt.target)); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestClear(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, target string
		headers      []string
		status       int
		left         []uint64
	}{
		{"page", "https://c.example/", []string{"Sec-Fetch-Site", "same-origin", "Origin", "https://c.example"}, 204, nil},
		{"curl", "/", nil, 204, nil},
		{"path", "/a", nil, 204, []uint64{3}},
		{"another site", "/", []string{"Sec-Fetch-Site", "cross-site"}, 403, []uint64{3, 2, 1}},
		{"sister site", "/", []string{"Sec-Fetch-Site", "same-site"}, 403, []uint64{3, 2, 1}},
		{"another site in an old browser", "https://c.example/", []string{"Origin", "https://evil.example"}, 403, []uint64{3, 2, 1}},
		{"sandboxed frame", "https://c.example/", []string{"Origin", "null"}, 403, []uint64{3, 2, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(web.InboxConfig{})
			post(inbox, "/a", "")
			post(inbox, "/a/b", "")
			post(inbox, "/c", "")
			if w := serve(inbox, http.MethodDelete, tt.target, nil, tt.headers...); w.Code != tt.status {
				t.Errorf("got %d, want %d", w.Code, tt.status)
			}
			if got := numbers(list(t, inbox, "/")); !slices.Equal(got, tt.left) {
				t.Errorf("left are %v, want %v", got, tt.left)
			}
			if post(inbox, "/a", ""); list(t, inbox, "/a")[0].Number != 4 {
				t.Error("a number was used again")
			}
		})
	}
}

func TestInboxAnswersConfiguredStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 204, 304, 410, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(web.NewInbox(web.InboxConfig{Respond: status}))
			defer server.Close()
			answer, err := server.Client().Post(server.URL, "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != status {
				t.Errorf("got %d", answer.StatusCode)
			}
		})
	}
}

func TestInboxShowsTimeSincePreviousAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{Keep: 3})
		steps := []struct {
			name, header, task string
			wait               time.Duration
			want               string
		}{
			{"first attempt", "beam-task-id", "a", 0, "-"},
			{"another task", "beam-task-id", "b", time.Second, "-"},
			{"second attempt", "beam-task-id", "a", 4500 * time.Millisecond, "5500"},
			{"no task", "", "", time.Second, "-"},
			{"no task again", "", "", time.Second, "-"},
			{"task in webhook-id", "webhook-id", "a", time.Hour, "3602000"},
			{"evicted previous attempt", "beam-task-id", "b", time.Second, "-"},
		}
		for _, step := range steps {
			<-time.After(step.wait) // on the fake clock
			post(inbox, "/", "", step.header+"x", "", step.header, step.task)
			got := "-"
			if since := list(t, inbox, "/?limit=1")[0].SincePreviousMS; since != nil {
				got = fmt.Sprint(*since)
			}
			if got != step.want {
				t.Errorf("%s: since_previous_ms is %s, want %s", step.name, got, step.want)
			}
		}
	})
}

func TestInboxUsesConfiguredHeaders(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{TaskHeader: "x-task", StatusHeader: "x-status"})
	post(inbox, "/", "", "x-task", "t", "x-status", "FAILED", "beam-task-id", "no", "x-beam-task-status", "no")
	if c := list(t, inbox, "/")[0]; c.TaskID != "t" || c.Status != "FAILED" {
		t.Errorf("task %q, status %q", c.TaskID, c.Status)
	}
}

func TestInvalidNumbersInHeadersAreIgnored(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "x", "-1", "1.5", "99999999999999999999", "0"} {
		inbox := web.NewInbox(web.InboxConfig{})
		post(inbox, "/", "", "callback-attempt", value, "callback-upstream-status", value)
		if c := list(t, inbox, "/")[0]; c.Attempt != 0 || c.UpstreamStatus != 0 {
			t.Errorf("%q: attempt %d, upstream_status %d", value, c.Attempt, c.UpstreamStatus)
		}
	}
}

func TestInboxConcurrentSenders(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{Keep: 10})
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for range 50 {
				post(inbox, "/a", "x", "beam-task-id", "same")
				serve(inbox, http.MethodGet, "/", nil, "Accept", "application/json")
				serve(inbox, http.MethodDelete, "/b", nil)
			}
		})
	}
	senders.Wait()
	if got := list(t, inbox, "/"); len(got) != 10 || got[0].Number != 400 || got[9].Number != 391 {
		t.Errorf("listed are %v", numbers(got))
	}
}
