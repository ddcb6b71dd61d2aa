package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// refuseWhile makes a receiver refuse callbacks while refuse is set.
func refuseWhile(refuse *atomic.Bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if refuse.Load() {
			w.WriteHeader(500)
		}
	}
}

// retrySoon retries a refused callback while a test waits.
var retrySoon = strings.Replace(gatewaytest.ToLocal, "delivery {", "delivery {\nretry"+strings.Repeat(" 300ms", 1000), 1)

// The result is stored before the client has its whole response, so that a crash does not
// lose it.
func TestResultIsStoredBeforeResponseEnds(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/known-length":
			w.Header().Set("Content-Length", "11")
			_, _ = io.WriteString(w, "hello ")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "world")
		case "/large":
			large := bytes.Repeat([]byte("0123456789abcdef"), 128<<10) // sent while it is read
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
			_, _ = w.Write(large)
		case "/chunked":
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "hello world")
		case "/no-content":
			w.WriteHeader(http.StatusNoContent)
		case "/not-modified":
			w.WriteHeader(http.StatusNotModified)
		case "/empty":
			w.Header().Set("Content-Length", "0")
		}
	})
	for _, path := range []string{"/known-length", "/large", "/chunked", "/no-content", "/not-modified", "/empty"} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
			t.Run(proto+path, func(t *testing.T) {
				t.Parallel()
				var refuse atomic.Bool
				rcv := gatewaytest.NewReceiver(t, refuseWhile(&refuse))
				g, client := startH2C(t, retrySoon, "callback\nreverse_proxy "+app+" {\nflush_interval -1\n}")
				if proto == "HTTP/1.1" {
					client = &http.Client{Transport: new(http.Transport)}
				}
				for range 4 {
					refuse.Store(true)
					req := jsonRequest(t, g, rcv)
					req.URL.Path = path
					resp, err := client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Fatal(err)
					}
					g.Kill()
					resp.Body.Close()
					client.CloseIdleConnections()
					refuse.Store(false)
					g.Start()
					id := resp.Header.Get("beam-task-id")
					c := rcv.Next(t)
					for c.TaskID() != id { // refused before, or delivered twice: delivery is at least once
						c = rcv.Next(t)
					}
					if c.Status() != "COMPLETE" {
						t.Errorf("the client had its response; the callback is %s %q", c.Status(), c.Body)
					}
				}
			})
		}
	}
}

func TestTaskOfKilledGatewayFails(t *testing.T) {
	t.Parallel()
	started, end := make(chan struct{}, 10), make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/streaming" {
			_, _ = io.WriteString(w, "some of it")
			_ = http.NewResponseController(w).Flush()
		}
		started <- struct{}{}
		<-end
	})
	defer close(end)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	ids := make(chan string, 2)
	for _, path := range []string{"/silent", "/streaming"} {
		req := jsonRequest(t, g, rcv)
		req.URL.Path = path
		go func() {
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				ids <- "" // killed before the response header
				return
			}
			defer resp.Body.Close()
			ids <- resp.Header.Get("beam-task-id")
			_, _ = io.Copy(io.Discard, resp.Body)
		}()
	}
	<-started
	<-started
	accepted := <-ids // the streaming task
	g.Kill()
	<-ids
	g.Start()
	seen := make(map[string]bool)
	for range 2 {
		c := rcv.Next(t)
		if message := errorOf(t, c); c.Status() != "FAILED" || message != "the gateway that held the task stopped before the endpoint answered" {
			t.Errorf("the callback is %s, error=%s", c.Status(), message)
		}
		seen[c.TaskID()] = true
	}
	if len(seen) != 2 || !seen[accepted] {
		t.Errorf("the callbacks are of tasks %v; the client got the ID %s", seen, accepted)
	}
}

func TestStopFailsTasksAfterGracePeriod(t *testing.T) {
	t.Parallel()
	started, end := make(chan struct{}), make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		select {
		case <-end:
		case <-r.Context().Done():
		}
	})
	defer close(end)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.ToLocal, "header X-Before yes\ncallback\nreverse_proxy "+app)
	g.Edit("auto_https off", "auto_https off\ngrace_period 500ms")
	g.Start()
	answer := make(chan string, 1)
	req := jsonRequest(t, g, rcv)
	go func() {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		resp.Body.Close()
		answer <- resp.Status + ", X-Before: " + resp.Header.Get("X-Before")
	}()
	<-started
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	if status := <-answer; status != "503 Service Unavailable, X-Before: yes" {
		t.Errorf("the client got %s", status)
	}
	g.Start()
	c := rcv.Next(t)
	if message := errorOf(t, c); c.Status() != "FAILED" || message != "the gateway was stopped before the endpoint answered" {
		t.Errorf("the callback is %s, error=%s", c.Status(), message)
	}
}
