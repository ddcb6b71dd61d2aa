package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// largePattern returns n bytes that differ from their neighbours, as text.
func largePattern(n int) []byte {
	const line = 16
	b := make([]byte, 0, n+line)
	for i := 0; len(b) < n; i += line {
		b = fmt.Appendf(b, "%015d\n", i)
	}
	return b[:n]
}

// newLargeApp returns an endpoint that responds with a large result, compressed if the
// query asks for that.
func newLargeApp(t *testing.T, result []byte) string {
	return gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/csv")
		if r.URL.RawQuery != "gzip" {
			_, _ = w.Write(result)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		encoded := gzip.NewWriter(w)
		_, _ = encoded.Write(result)
		_ = encoded.Close()
	})
}

// postedLink returns the link of a callback, which must have no part of the result.
func postedLink(t *testing.T, format string, got gatewaytest.Callback) string {
	t.Helper()
	if n := got.Header.Get("Callback-Truncated"); n != "" || len(got.Body) > 2000 {
		t.Errorf("the callback has %d bytes, and callback-truncated %q", len(got.Body), n)
	}
	made := got.Header.Get("Callback-Result-Url")
	var doc struct {
		Data      any    `json:"data"`
		ResultURL string `json:"result_url"`
		DataRef   string `json:"dataref"`
	}
	switch format {
	case "raw":
		if got.Body != "" {
			t.Errorf("the body is %q", got.Body)
		}
		return made
	case "form":
		pairs, err := url.ParseQuery(got.Body)
		if err != nil || len(pairs) != 1 {
			t.Errorf("the body is %q: %v", got.Body, err)
		}
		return pairs.Get("result_url")
	}
	if err := json.Unmarshal([]byte(got.Body), &doc); err != nil || doc.Data != nil {
		t.Errorf("the body is %q: %v", got.Body, err)
	}
	return doc.ResultURL + doc.DataRef
}

// fetched requires a response to a link with a status and a body.
func fetched(t *testing.T, made string, status int, want []byte, header ...string) *http.Response {
	t.Helper()
	resp, body, err := gatewaytest.Send(http.MethodGet, made, nil, header...)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || body != string(want) {
		t.Fatalf("GET %s is answered with %s and %d bytes, want %d and %d bytes", made, resp.Status, len(body), status, len(want))
	}
	return resp
}

// refused requires that a request with a link is refused.
func refused(t *testing.T, method, made string, status int) {
	t.Helper()
	resp, body, err := gatewaytest.Send(method, made, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Errorf("%s %s is answered with %s %s, want %d", method, made, resp.Status, body, status)
	}
}

func TestLargeResultsArePostedAsLinks(t *testing.T) {
	t.Parallel()
	result := largePattern(300 << 10)
	app := newLargeApp(t, result)
	for _, format := range []string{"form", "json", "raw", "cloudevents"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			site := "task_status /tasks\ncallback {\nformat " + format + "\nmax_result 1KiB\nlarge_results link\n}\nreverse_proxy " + app
			g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
			g.Task(rcv.URL)
			got := rcv.Next(t)
			made := postedLink(t, format, got)
			if got.Status() != string(task.Complete) || !strings.HasPrefix(made, g.URL("/tasks/"+got.TaskID()+"/result?")) {
				t.Fatalf("the callback is %s, the link %q", got.Status(), made)
			}
			resp := fetched(t, made, http.StatusOK, result)
			if got := resp.Header.Get("Content-Type"); got != "text/csv" {
				t.Errorf("the type is %q", got)
			}
			etag := resp.Header.Get("Etag")
			part := fetched(t, made, http.StatusPartialContent, result[270_000:], "Range", "bytes=270000-", "If-Range", etag)
			if want := fmt.Sprintf("bytes 270000-%d/%d", len(result)-1, len(result)); part.Header.Get("Content-Range") != want {
				t.Errorf("the range is %q", part.Header.Get("Content-Range"))
			}
			resp, _, err := gatewaytest.Send(http.MethodHead, made, nil)
			if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(result)) {
				t.Errorf("HEAD is answered with %v, %v", resp, err)
			}
			fetched(t, made, http.StatusNotModified, nil, "If-None-Match", etag)

			other := g.Task(rcv.URL)
			refused(t, http.MethodGet, strings.Replace(made, got.TaskID(), other, 1), http.StatusForbidden)
			refused(t, http.MethodGet, strings.Replace(made, "expires=", "expires=1", 1), http.StatusForbidden)
			refused(t, http.MethodGet, made[:len(made)-1], http.StatusForbidden)
			refused(t, http.MethodGet, strings.Replace(made, "/result?", "?", 1), http.StatusForbidden)
			refused(t, http.MethodDelete, strings.Replace(made, "/result?", "?", 1), http.StatusForbidden)
		})
	}
}

func TestResultsThatAreLargeWithoutTheirCodingAreLinked(t *testing.T) {
	t.Parallel()
	result := bytes.Repeat([]byte("0123456789abcde\n"), 16<<10)
	app := newLargeApp(t, result)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "task_status /tasks\ncallback {\nmax_result 64KiB\nlarge_results link\n}\nrewrite /gzip /?gzip\nreverse_proxy " + app
	g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
	resp, _ := g.Do(http.MethodPost, "/gzip", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL), "Content-Type", "application/json", "Accept-Encoding", "gzip")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	made := postedLink(t, "form", rcv.Next(t))
	fetched(t, made, http.StatusOK, result, "Accept-Encoding", "identity")
	resp, body, err := gatewaytest.Send(http.MethodGet, made, nil, "Accept-Encoding", "gzip")
	if err != nil || resp.Header.Get("Content-Encoding") != "gzip" || len(body) >= len(result) {
		t.Errorf("with gzip, %d bytes come with the coding %q, %v", len(body), resp.Header.Get("Content-Encoding"), err)
	}
}

func TestLargeResultsOverMaxKeptAreTruncated(t *testing.T) {
	t.Parallel()
	result := largePattern(300 << 10)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "task_status /tasks\ncallback {\nmax_result 1KiB\nmax_kept 200KiB\nlarge_results link\n}\nreverse_proxy " + newLargeApp(t, result)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
	g.Task(rcv.URL)
	got := rcv.Next(t)
	if want := "response=" + url.QueryEscape(string(result[:1<<10])); got.Body != want || got.Header.Get("Callback-Truncated") != "307200" {
		t.Errorf("the callback has %q and %d bytes, want %d", got.Header.Get("Callback-Truncated"), len(got.Body), len(want))
	}
}

func TestLinksAreValidForTheRetention(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "task_status /tasks\ncallback {\nmax_result 1KiB\nlarge_results link\n}\nreverse_proxy " + newLargeApp(t, largePattern(2000))
	g := gatewaytest.Start(t, "retention 2s\n"+gatewaytest.ToLocal, site)
	g.Task(rcv.URL)
	made := postedLink(t, "form", rcv.Next(t))
	g.Eventually("the link expires", func() error {
		resp, body, err := gatewaytest.Send(http.MethodGet, made, nil)
		if err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "the link has expired") {
			return fmt.Errorf("%v %w", resp, err)
		}
		return nil
	})
}

func TestLinksPassAuthentication(t *testing.T) {
	t.Parallel()
	result := largePattern(2000)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := `@unsigned {
	not {
		path /tasks/*/result
		query signature=*
	}
}
handle /tasks/* {
	basic_auth @unsigned {
		bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
	task_status /tasks
}
handle {
	callback {
		max_result 1KiB
		large_results link
	}
	reverse_proxy ` + newLargeApp(t, result) + `
}`
	g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
	g.Task(rcv.URL)
	made := postedLink(t, "form", rcv.Next(t))
	fetched(t, made, http.StatusOK, result)
	plain, _, _ := strings.Cut(made, "?")
	refused(t, http.MethodGet, plain, http.StatusUnauthorized)
	refused(t, http.MethodGet, plain+"?signature=x", http.StatusForbidden)
	refused(t, http.MethodDelete, strings.TrimSuffix(plain, "/result")+"?signature=x", http.StatusUnauthorized)
}

func TestLargeResultsSurviveKills(t *testing.T) {
	t.Parallel()
	result := largePattern(100 << 20)
	app := newLargeApp(t, result)
	var accepting atomic.Bool
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !accepting.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	site := "task_status /tasks\ntask_queue /q q {\ncallback {\nlarge_results link\n}\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, gatewaytest.Delivering(gatewaytest.ManyTimes), site)
	id := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	first := postedLink(t, "form", rcv.Next(t))
	g.Kill()
	g.Start()
	accepting.Store(true)
	reaches(t, g, "/q", id, task.Done)
	last := rcv.Next(t)
	for len(rcv.Got) > 0 {
		last = rcv.Next(t)
	}
	for _, made := range []string{first, postedLink(t, "form", last)} {
		fetched(t, made, http.StatusOK, result)
		fetched(t, made, http.StatusPartialContent, result[99<<20:99<<20+10], "Range", fmt.Sprintf("bytes=%d-%d", 99<<20, 99<<20+9))
	}
	spool, err := os.ReadDir(filepath.Join(g.Folder(), "spool"))
	if len(spool) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%d files remain of captured responses, %v", len(spool), err)
	}
}

func TestLinksWorkOnEveryGateway(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	result := largePattern(5 << 20)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "task_status /tasks\ncallback {\nmax_result 1MiB\nlarge_results link\n}\nreverse_proxy " + newLargeApp(t, result)
	a, b := gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)
	a.Task(rcv.URL)
	made := postedLink(t, "form", rcv.Next(t))
	a.Kill()
	made = strings.Replace(made, a.Addr, b.Addr, 1)
	fetched(t, made, http.StatusOK, result)
	fetched(t, made, http.StatusPartialContent, result[3<<20:4<<20], "Range", fmt.Sprintf("bytes=%d-%d", 3<<20, 4<<20-1))
	refused(t, http.MethodGet, made+"x", http.StatusForbidden)
}

func TestLargeResultsNameWhatIsMissing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ options, site, want string }{
		"no task_status": {"", "callback {\nlarge_results link\n}", "receivers fetch results from a task_status, and there is none"},
		"two of them": {"", "task_status /a\ntask_status /b\ncallback {\nlarge_results link\n}",
			"there is a task_status at /a and at /b"},
		"an unknown path": {"", "@s path /a*\ntask_status @s\ncallback {\nlarge_results link\n}", "the path of task_status is not known"},
		"results that are not kept": {"keep_results off", "task_status /a\ncallback {\nlarge_results link\n}",
			"large_results link needs keep_results on"},
		"a size without links": {"", "callback {\nmax_kept 1GiB\n}", "max_kept needs large_results link"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.New(t, test.options, test.site)
			c := runCaddy(t, g.Dir, "run", "--config", g.File)
			if c.wantCode(t, 1); !strings.Contains(c.stderr, test.want) {
				t.Errorf("it prints %s", c.stderr)
			}
		})
	}
}
