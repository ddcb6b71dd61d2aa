//go:build !race

// With the race detector, a day of fake time takes minutes.

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile" // the adapter

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// A fakeGateway is a complete Caddy in a bubble of testing/synctest, where three days
// take seconds. Its parts communicate through pipes, because fake time stops while a
// goroutine waits for a socket. Callbacks use sockets, and receivers must not keep
// connections open.
type fakeGateway struct {
	t      *testing.T
	client *http.Client
}

// The only listener of the gateway in a bubble.
var pipes struct {
	sync.Mutex
	ln *pipeListener
}

func init() {
	caddy.RegisterNetwork("pipe", func(context.Context, string, string, string, uint, net.ListenConfig) (any, error) {
		pipes.Lock()
		defer pipes.Unlock()
		pipes.ln = &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		return pipes.ln, nil
	})
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe:80" }

// startFake starts a gateway in the caller's bubble. options are those of the callback
// app, and site is the block of the only site.
func startFake(t *testing.T, dir, options, site string) *fakeGateway {
	t.Helper()
	// A sync every few milliseconds would take most of a simulated day.
	text := fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %s/caddy
	log {
		level ERROR
	}
	servers {
		protocols h1
	}
	callback {
		engine sqlite %s/store {
			sync 24h
		}
		retention 1000h
		%s
	}
}
http://gateway {
	bind pipe/gateway
	%s
}
`, dir, dir, options, site)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	return &fakeGateway{t: t, client: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			near, far := net.Pipe()
			select {
			case pipes.ln.conns <- far:
				return near, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}}}
}

func (g *fakeGateway) stop() {
	g.t.Helper()
	g.client.CloseIdleConnections()
	if err := caddy.Stop(); err != nil {
		g.t.Error(err)
	}
	gatewaytest.Pause(time.Minute) // the engine closes in the background
}

// post sends a request for a callback and returns the task's ID.
func (g *fakeGateway) post(path, callbackURL string) string {
	g.t.Helper()
	resp, err := g.client.Post("http://gateway"+path, "application/json", strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, callbackURL)))
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		g.t.Fatalf("a request got %s %s: %v", resp.Status, body, err)
	}
	return resp.Header.Get("beam-task-id")
}

// document has the fields of a task document that the tests read.
type document struct {
	State       string     `json:"state"`
	Status      string     `json:"status"`
	NextAttempt *time.Time `json:"next_attempt_at"`
	Attempts    []struct {
		At         time.Time `json:"at"`
		StatusCode int       `json:"status_code"`
	} `json:"attempts"`
}

// admin sends a request to the API on Caddy's admin endpoint.
func (g *fakeGateway) admin(method, path string, answer any) {
	g.t.Helper()
	info, err := caddy.GetModule("admin.api.callback")
	if err != nil {
		g.t.Fatal(err)
	}
	handler := info.New().(caddy.AdminRouter).Routes()[0].Handler
	rec := httptest.NewRecorder()
	err = handler.ServeHTTP(rec, httptest.NewRequest(method, "/callback/"+path, nil))
	if err == nil && rec.Code >= 300 {
		err = errors.New(rec.Body.String())
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(rec.Body.Bytes(), answer)
	}
	if err != nil {
		g.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// task returns a task's document.
func (g *fakeGateway) task(id string) (doc document) {
	g.t.Helper()
	g.admin(http.MethodGet, "tasks/"+id, &doc)
	return doc
}

// fakeReceiver is a receiver outside of the bubble. It reads the bubble's time from the
// signed timestamps.
type fakeReceiver struct {
	URL    string
	ledger *gatewaytest.Ledger // accepted callbacks

	mu    sync.Mutex
	calls map[string][]time.Time // by task
}

// newFakeReceiver starts a receiver that responds with answer. before is how often the
// task's callback was sent before.
func newFakeReceiver(t *testing.T, answer func(w http.ResponseWriter, path string, before int) (status int)) *fakeReceiver {
	t.Helper()
	f := &fakeReceiver{ledger: gatewaytest.NewLedger(&gatewaytest.Receiver{}, t.Context().Done()), calls: make(map[string][]time.Time)}
	f.URL = receive(t, func(w http.ResponseWriter, path string, c gatewaytest.Callback) {
		f.mu.Lock()
		defer f.mu.Unlock()
		id := c.TaskID()
		w.Header().Set("Connection", "close")
		status := answer(w, path, len(f.calls[id]))
		f.calls[id] = append(f.calls[id], time.Unix(stamp(t, c), 0).UTC())
		if status < 300 {
			f.ledger.Arrive(c)
		}
		w.WriteHeader(status)
	})
	return f
}

// times returns when a task's callback was sent, by the timestamps of its signatures.
func (f *fakeReceiver) times(id string) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[id]
}
