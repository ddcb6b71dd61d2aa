package integration

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// numbers returns a text of n bytes that does not repeat.
func numbers(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d ", i)
	}
	return b.String()[:n]
}

func TestLargeResultIsTruncated(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	text := numbers(3 << 20)
	object := `{"response":"` + strings.Repeat("x", limit) + `"}`
	bodies := map[string]struct{ contentType, coding, body string }{
		"/exact":        {"text/plain", "", text[:limit]},
		"/over":         {"text/plain", "", text[:limit+1]},
		"/text":         {"text/plain", "", text},
		"/object":       {"application/json", "", object},
		"/gzip":         {"text/plain", "gzip", gzipped(t, text)},
		"/gzip-small":   {"text/plain", "gzip", gzipped(t, text[:limit+1])},
		"/gzip-exact":   {"text/plain", "gzip", gzipped(t, text[:limit])},
		"/gzip-twice":   {"text/plain", "gzip, gzip", gzipped(t, gzipped(t, text))},
		"/identity":     {"text/plain", "identity", text},
		"/unknown":      {"text/plain", "rot13", text},
		"/broken":       {"text/plain", "gzip", gzipped(t, text)[:600_000]},
		"/not-encoded":  {"text/plain", "gzip", text},
		"/small-broken": {"text/plain", "gzip", gzipped(t, text)[:2000]},
	}
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		b := bodies[r.URL.Path]
		w.Header().Set("Content-Type", b.contentType)
		if b.coding != "" {
			w.Header().Set("Content-Encoding", b.coding)
		}
		_, _ = io.Copy(w, struct{ io.Reader }{strings.NewReader(b.body)})
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nmax_result 64KiB\n}\nreverse_proxy "+app)
	for path, want := range map[string]struct {
		response  string
		truncated int
		base64    bool
	}{
		"/exact":        {text[:limit], 0, false},
		"/over":         {text[:limit], limit + 1, false},
		"/text":         {text[:limit], len(text), false},
		"/object":       {object[:limit], len(object), false},
		"/gzip":         {text[:limit], len(text), false},
		"/gzip-small":   {text[:limit], limit + 1, false},
		"/gzip-exact":   {text[:limit], 0, false},
		"/gzip-twice":   {text[:limit], len(text), false},
		"/identity":     {text[:limit], len(text), false},
		"/unknown":      {text[:limit], len(text), true},
		"/not-encoded":  {text[:limit], len(text), true},
		"/broken":       {text[:limit], len(bodies["/broken"].body), false},
		"/small-broken": {bodies["/small-broken"].body, 0, true},
	} {
		t.Run(path, func(t *testing.T) {
			req := jsonRequest(t, g, rcv)
			req.URL.Path = path
			req.Header.Set("Accept-Encoding", "gzip") // set by hand, so the transport decodes nothing
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if b := bodies[path]; err != nil || string(got) != b.body || resp.Header.Get("Content-Encoding") != b.coding {
				t.Errorf("the client got %d bytes of %d in %q, %v", len(got), len(b.body), resp.Header.Get("Content-Encoding"), err)
			}
			c := rcv.Next(t)
			form, err := url.ParseQuery(c.Body)
			if err != nil || c.Status() != "COMPLETE" {
				t.Fatalf("the callback is %s: %v", c.Status(), err)
			}
			response := form.Get("response")
			if want.base64 {
				decoded, err := base64.StdEncoding.DecodeString(response)
				if err != nil || c.Header.Get("callback-encoding") != "base64" {
					t.Errorf("callback-encoding is %q, %v", c.Header.Get("callback-encoding"), err)
				}
				response = string(decoded)
			}
			if response != want.response {
				t.Errorf("response= has %d bytes, not the first %d: %.60q", len(response), len(want.response), response)
			}
			truncated := ""
			if want.truncated != 0 {
				truncated = fmt.Sprint(want.truncated)
			}
			if got := c.Header.Get("callback-truncated"); got != truncated {
				t.Errorf("callback-truncated is %q, want %q", got, truncated)
			}
		})
	}
}

func TestTruncatedRawResultStaysEncoded(t *testing.T) {
	t.Parallel()
	body := gzipped(t, numbers(3<<20))
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/x-numbers")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nformat raw\nmax_result 64KiB\n}\nreverse_proxy "+app)
	g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
	c := rcv.Next(t)
	if c.Body != body[:64<<10] || c.Header.Get("Content-Encoding") != "gzip" || c.Header.Get("Content-Type") != "text/x-numbers" {
		t.Errorf("the callback has %d bytes in %q, %s", len(c.Body), c.Header.Get("Content-Encoding"), c.Header.Get("Content-Type"))
	}
	if got := c.Header.Get("callback-truncated"); got != fmt.Sprint(len(body)) {
		t.Errorf("callback-truncated is %q, want %d", got, len(body))
	}
}

// The store keeps results that are larger than a message elsewhere.
func TestLargeResultArrivesWhole(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.Atoi(r.URL.Path[1:])
		if err != nil {
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, strings.Repeat("x", size))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for _, size := range []int{0, 1, 800 << 10, 900 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1, 8<<20 - 1, 8 << 20} {
		req := jsonRequest(t, g, rcv)
		req.URL.Path = fmt.Sprint("/", size)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		c := rcv.Next(t)
		if len(c.Body) != len("response=")+size || c.Header.Get("callback-truncated") != "" {
			t.Errorf("of %d bytes %d arrived, truncated %q", size, len(c.Body)-len("response="), c.Header.Get("callback-truncated"))
		}
	}
}

func TestRangeResponseIsResult(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "numbers.txt", time.Time{}, bytes.NewReader([]byte(numbers(1000))))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+rcv.URL+"\nreverse_proxy "+app)
	resp, text := g.Do("GET", "/", "", "Range", "bytes=100-109")
	if want := numbers(1000)[100:110]; resp.StatusCode != 206 || text != want || resp.ContentLength != 10 {
		t.Errorf("the client got %s %q, want %q", resp.Status, text, want)
	}
	c := rcv.Next(t)
	if form, err := url.ParseQuery(c.Body); err != nil || form.Get("response") != text || c.Status() != "COMPLETE" {
		t.Errorf("the callback is %s %q, %v", c.Status(), c.Body, err)
	}
	if got := c.Header.Get("callback-upstream-status"); got != "206" {
		t.Errorf("callback-upstream-status is %q", got)
	}
}
