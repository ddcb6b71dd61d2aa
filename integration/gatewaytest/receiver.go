package gatewaytest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
)

// Callback is a request to a receiver.
type Callback struct {
	Path   string // of the request
	Header http.Header
	Body   string
	At     time.Time
}

// TaskID returns the value of beam-task-id.
func (c Callback) TaskID() string { return c.Header.Get("beam-task-id") }

// Status returns the value of x-beam-task-status.
func (c Callback) Status() string { return c.Header.Get("x-beam-task-status") }

// Receiver is a server that receives callbacks.
type Receiver struct {
	*httptest.Server
	Got chan Callback
}

// NewReceiver starts a receiver. It responds with answer, or with 200 if answer is nil.
func NewReceiver(t testing.TB, answer http.HandlerFunc) *Receiver {
	t.Helper()
	r := &Receiver{Got: make(chan Callback, 100_000)}
	r.Server = NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the gateway was killed while sending
		}
		r.Got <- Callback{req.URL.Path, req.Header.Clone(), string(body), time.Now()}
		if answer != nil {
			answer(w, req)
		}
	}))
	r.Start()
	return r
}

// Next waits for the next callback.
func (r *Receiver) Next(t testing.TB) Callback {
	t.Helper()
	select {
	case c := <-r.Got:
		return c
	case <-time.After(Patience):
		t.Fatal("no callback arrived")
		panic("unreachable")
	}
}

// NewApp starts an endpoint behind the gateway and returns its address.
func NewApp(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	app := NewServer(t, handler)
	app.Start()
	return strings.TrimPrefix(app.URL, "http://")
}

// NewServer returns a server that is not started yet. No other server of the tests gets
// its port, even after it has closed. After the test it closes. It waits at most
// [Patience] for handlers: after a failure they may never return, and would block the
// other tests.
func NewServer(t testing.TB, handler http.Handler) *httptest.Server {
	t.Helper()
	srv := &httptest.Server{Listener: freeaddr.Listen(t), Config: &http.Server{Handler: handler}}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			srv.Close()
		}()
		select {
		case <-closed:
		case <-time.After(Patience):
			t.Error("a handler of the test does not return")
		}
	})
	return srv
}

// Arrivals counts callbacks by task until all tasks have one. Otherwise it fails the
// test.
func (r *Receiver) Arrivals(t testing.TB, seen map[string]int, tasks int) {
	t.Helper()
	for len(seen) < tasks {
		seen[r.Next(t).TaskID()]++
	}
}
