package integration

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWhatThePlaceholdersSayIsWhatTheyWouldSayWithoutUs(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := newReceiver(t, nil)
	g := startGateway(t, toLocal, `callback
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
	resp, _ := g.post("/", body)
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	a := <-got
	if a.body != body || a.Header.Get("X-Body") != body || a.Method != "PUT" || a.Header.Get("X-Method") != "PUT" {
		t.Errorf("the app got %s of %q, %q", a.Method, a.body, a.Header)
	}
	if c := rcv.next(t); c.id() != resp.Header.Get("beam-task-id") || c.status() != "COMPLETE" {
		t.Errorf("the callback is of task %s, %s", c.id(), c.status())
	}
}

func TestARequestIsTriedAgainWithItsWholeBody(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	hangsUp := newApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})
	for name, site := range map[string]string{
		"after nobody answered": "reverse_proxy " + freeAddr(t) + " " + app + " {\nlb_policy first\nlb_retries 2\nfail_duration 30s\n}",
		"after a buffered body was lost": "reverse_proxy " + hangsUp + " " + app + " {\nrequest_buffers 1MiB\n" +
			"lb_policy first\nlb_retries 2\nfail_duration 30s\nlb_retry_match {\nmethod POST\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			rcv := newReceiver(t, nil)
			g := startGateway(t, toLocal, "callback\n"+site)
			body := `{"callback_url":"` + rcv.URL + `","text":"` + strings.Repeat("x", 300_000) + `"}`
			resp, _ := g.post("/", body)
			if resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
			if a := <-got; a.body != body {
				t.Errorf("the app got %d bytes of %d", len(a.body), len(body))
			}
			if c := rcv.next(t); c.id() != resp.Header.Get("beam-task-id") || c.status() != "COMPLETE" {
				t.Errorf("the callback is of task %s, %s", c.id(), c.status())
			}
		})
	}
}

// newH2App is newApp for an app that speaks HTTP/2 without TLS.
func newH2App(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	app := httptest.NewUnstartedServer(handler)
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	t.Cleanup(app.Close)
	return strings.TrimPrefix(app.URL, "http://")
}

// A request whose end does not come has its verdict at the deadline all the
// same. What is sent after that is read by nobody.
func TestAnUploadThatStallsTimesOut(t *testing.T) {
	t.Parallel()
	stalled := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	for name, upstream := range map[string]string{
		"to HTTP/1.1": newApp(t, stalled),
		"to HTTP/2":   "h2c://" + newH2App(t, stalled),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := newReceiver(t, nil)
			g, client := startH2C(t, "", "callback "+rcv.URL+" {\ntimeout 500ms\nmax_request 64KiB\n}\nreverse_proxy "+upstream)
			reader, writer := io.Pipe()
			req, err := http.NewRequest("POST", g.url("/"), reader)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			verdict := make(chan callback, 1)
			go func() {
				_, _ = io.WriteString(writer, `{"a":"`+strings.Repeat("x", 100<<10))
				verdict <- <-rcv.got
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
			if c := <-verdict; c.id() != resp.Header.Get("beam-task-id") || c.status() != "TIMEOUT" {
				t.Errorf("the callback is of task %s, %s", c.id(), c.status())
			}
		})
	}
}

func TestAClientThatStopsReadingDoesNotStopItsTask(t *testing.T) {
	t.Parallel()
	const size = 8 << 20 // more than the sockets between take
	app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, strings.Repeat("x", size))
	})
	rcv := newReceiver(t, nil)
	g := newGateway(t, toLocal, "callback\nreverse_proxy "+app)
	g.edit("auto_https off", "auto_https off\nservers {\ntimeouts {\nwrite_idle 300ms\n}\n}")
	g.start()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(conn.(*net.TCPConn).SetReadBuffer(4<<10), jsonRequest(t, g, rcv).Write(conn)); err != nil {
		t.Fatal(err)
	}
	if c := rcv.next(t); c.status() != "COMPLETE" || len(c.body) != len("response=")+size {
		t.Errorf("the callback is %s with %d bytes", c.status(), len(c.body))
	}
}

func TestAnUpstreamsOwnTimeoutIsAFailure(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	app := newApp(t, func(http.ResponseWriter, *http.Request) { <-end })
	t.Cleanup(func() { close(end) })
	rcv := newReceiver(t, nil)
	g := startGateway(t, toLocal, "callback\nreverse_proxy "+app+" {\ntransport http {\nresponse_header_timeout 200ms\n}\n}")
	started := time.Now()
	resp, _ := g.post("/", `{"callback_url":"`+rcv.URL+`"}`)
	if resp.StatusCode != 504 || time.Since(started) < 200*time.Millisecond {
		t.Errorf("the client got %s after %v", resp.Status, time.Since(started))
	}
	c := rcv.next(t)
	if message := errorOf(t, c); c.status() != "FAILED" || message != "the endpoint gave no answer (504 Gateway Timeout)" {
		t.Errorf("the callback is %s, error=%s", c.status(), message)
	}
}

func TestALimitOfCaddysOwnHoldsAsItWould(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	rcv := newReceiver(t, nil)
	g := startGateway(t, toLocal, "request_body {\nmax_size 1KB\n}\ncallback\nreverse_proxy "+app)
	for _, padding := range []int{10, 10_000} {
		resp, _ := g.post("/", `{"callback_url":"`+rcv.URL+`","a":"`+strings.Repeat("x", padding)+`"}`)
		id := resp.Header.Get("beam-task-id")
		if fits := padding < 1000; fits != (resp.StatusCode == 200) || fits != (id != "") {
			t.Errorf("with %d bytes more the client got %s, task %q", padding, resp.Status, id)
		}
	}
	if c := rcv.next(t); c.status() != "COMPLETE" {
		t.Errorf("the callback is %s %q", c.status(), c.body)
	}
}
