package integration

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestPlaceholdersAreUnchanged(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `callback
	handle {
		@large expression {http.request.body}.contains("large")
		method @large PUT
		request_header X-Body {http.request.body}
		request_header X-Method {http.request.method}
		reverse_proxy `+app+`
	}
	handle_errors {
		respond "{http.error.status_code}"
	}`)
	body := `{"size":"large","callback_url":"` + rcv.URL + `"}`
	resp, _ := g.Post("/", body)
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	a := <-got
	if a.body != body || a.Header.Get("X-Body") != body || a.Method != "PUT" || a.Header.Get("X-Method") != "PUT" {
		t.Errorf("the app got %s of %q, %q", a.Method, a.body, a.Header)
	}
	if c := rcv.Next(t); c.TaskID() != resp.Header.Get("beam-task-id") || c.Status() != "COMPLETE" {
		t.Errorf("the callback is of task %s, %s", c.TaskID(), c.Status())
	}
}

func TestUpstreamRetrySendsWholeBody(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	hangsUp := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})
	for name, site := range map[string]string{
		"after a connection error": "reverse_proxy " + freeaddr.New(t) + " " + app + " {\nlb_policy first\nlb_retries 2\nfail_duration 30s\n}",
		"after a buffered body was lost": "reverse_proxy " + hangsUp + " " + app + " {\nrequest_buffers 1MiB\n" +
			"lb_policy first\nlb_retries 2\nfail_duration 30s\nlb_retry_match {\nmethod POST\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\n"+site)
			body := `{"callback_url":"` + rcv.URL + `","text":"` + strings.Repeat("x", 300_000) + `"}`
			resp, _ := g.Post("/", body)
			if resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
			if a := <-got; a.body != body {
				t.Errorf("the app got %d bytes of %d", len(a.body), len(body))
			}
			if c := rcv.Next(t); c.TaskID() != resp.Header.Get("beam-task-id") || c.Status() != "COMPLETE" {
				t.Errorf("the callback is of task %s, %s", c.TaskID(), c.Status())
			}
		})
	}
}

// newH2App is newApp for an app that speaks HTTP/2 without TLS.
func newH2App(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	app := gatewaytest.NewServer(t, handler)
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	return strings.TrimPrefix(app.URL, "http://")
}

// A request that never ends gets its verdict at the deadline. The gateway does not read
// what the client sends after that.
func TestStalledUploadTimesOut(t *testing.T) {
	t.Parallel()
	stalled := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	for name, upstream := range map[string]string{
		"to HTTP/1.1": gatewaytest.NewApp(t, stalled),
		"to HTTP/2":   "h2c://" + newH2App(t, stalled),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g, client := startH2C(t, "", "callback "+rcv.URL+" {\ntimeout 500ms\nmax_request 64KiB\n}\nreverse_proxy "+upstream)
			reader, writer := io.Pipe()
			req, err := http.NewRequest("POST", g.URL("/"), reader)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			verdict := make(chan gatewaytest.Callback, 1)
			go func() {
				_, _ = io.WriteString(writer, `{"a":"`+strings.Repeat("x", 100<<10))
				verdict <- <-rcv.Got
				writer.Close()
			}()
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 504 {
				t.Errorf("the client got %s", resp.Status)
			}
			if c := <-verdict; c.TaskID() != resp.Header.Get("beam-task-id") || c.Status() != "TIMEOUT" {
				t.Errorf("the callback is of task %s, %s", c.TaskID(), c.Status())
			}
		})
	}
}

func TestTaskContinuesWhenClientStopsReading(t *testing.T) {
	t.Parallel()
	const size = 8 << 20 // more than the sockets between them buffer
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, strings.Repeat("x", size))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	g.Edit("auto_https off", "auto_https off\nservers {\ntimeouts {\nwrite_idle 300ms\n}\n}")
	g.Start()
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(conn.(*net.TCPConn).SetReadBuffer(4<<10), jsonRequest(t, g, rcv).Write(conn)); err != nil {
		t.Fatal(err)
	}
	if c := rcv.Next(t); c.Status() != "COMPLETE" || len(c.Body) != len("response=")+size {
		t.Errorf("the callback is %s with %d bytes", c.Status(), len(c.Body))
	}
}

func TestUpstreamTimeoutIsFailure(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app+" {\ntransport http {\nresponse_header_timeout 200ms\n}\n}")
	started := time.Now()
	resp, _ := g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
	if resp.StatusCode != 504 || time.Since(started) < 200*time.Millisecond {
		t.Errorf("the client got %s after %v", resp.Status, time.Since(started))
	}
	c := rcv.Next(t)
	if message := errorOf(t, c); c.Status() != "FAILED" || message != "the endpoint gave no answer (504 Gateway Timeout)" {
		t.Errorf("the callback is %s, error=%s", c.Status(), message)
	}
}

func TestCaddyRequestBodyLimit(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "request_body {\nmax_size 1KB\n}\ncallback\nreverse_proxy "+app)
	for _, padding := range []int{10, 10_000} {
		resp, _ := g.Post("/", `{"callback_url":"`+rcv.URL+`","a":"`+strings.Repeat("x", padding)+`"}`)
		id := resp.Header.Get("beam-task-id")
		if fits := padding < 1000; fits != (resp.StatusCode == 200) || fits != (id != "") {
			t.Errorf("with %d bytes more the client got %s, task %q", padding, resp.Status, id)
		}
	}
	if c := rcv.Next(t); c.Status() != "COMPLETE" {
		t.Errorf("the callback is %s %q", c.Status(), c.Body)
	}
}
