package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// largeSite is a site whose app responds with 4 MiB, which are posted unchanged.
func largeSite(t *testing.T) string {
	return "callback {\nformat raw\n}\nreverse_proxy " + gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyN(w, zeros{}, 4<<20) // the gateway reports a broken response
	})
}

// answerEarly responds after it has read a request's header, and closes the connection.
func answerEarly(conn net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func TestEarlyAnswerCounts(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	g := gatewaytest.Start(t, gatewaytest.Delivering("trusted_ca "+cert), largeSite(t))
	secure := gatewaytest.ServeConns(t, func(conn net.Conn) {
		answerEarly(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}))
	})
	for name, url := range map[string]string{"plain": gatewaytest.NewPeer(t, answerEarly), "TLS": "https://" + secure} {
		for range 5 {
			id := g.Task(url)
			for _, a := range g.Attempted(id, 1) {
				if a.State != "delivered" {
					t.Errorf("%s: the attempt is %+v", name, a)
				}
			}
		}
	}
}

func TestClosedIdleConnectionCostsNoAttempt(t *testing.T) {
	t.Parallel()
	var dropped atomic.Int64
	url := gatewaytest.NewPeer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for n := 0; ; n++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if n == 1 {
				dropped.Add(1)
				return
			}
			gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	for range 4 {
		if a := g.Attempted(g.Task(url), 1)[0]; a.State != "delivered" {
			t.Errorf("the attempt is %+v", a)
		}
	}
	if dropped.Load() == 0 {
		t.Error("no connection was kept")
	}
}

func TestEarlyAnswerCountsOverHTTP2(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	rcv := gatewaytest.NewServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("the callback was sent over %s", r.Proto)
		}
	}))
	rcv.EnableHTTP2, rcv.TLS = true, &tls.Config{Certificates: []tls.Certificate{pair}}
	rcv.StartTLS()
	g := gatewaytest.Start(t, gatewaytest.Delivering("trusted_ca "+cert), largeSite(t))
	for range 5 {
		if a := g.Attempted(g.Task(rcv.URL), 1)[0]; a.State != "delivered" {
			t.Errorf("the attempt is %+v", a)
		}
	}
}

func TestInvalidHeadersAreDropped(t *testing.T) {
	t.Parallel()
	app := gatewaytest.ServeConns(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Foo : bar\r\nX-Good: yes\r\n"+
				"idempotency-key: forged\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n"+
				"2\r\nok\r\n0\r\nX-Checksum: abc\r\n\r\n")
		}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	route /wait {
		callback {
			profile openfaas
		}
		reverse_proxy `+app+`
	}
	route /q* {
		task_queue q {
			callback {
				profile openfaas
			}
			reverse_proxy `+app+`
		}
	}
	route /bad {
		callback {
			profile openfaas
		}
		misbehave headers
	}`)
	for _, path := range []string{"/wait", "/q", "/bad"} {
		resp, _ := g.Do(http.MethodPost, path, "x", "X-Callback-Url", rcv.URL)
		got := rcv.Next(t)
		id := resp.Header.Get("X-Call-Id")
		if got.Header.Get("X-Call-Id") != id || got.Header.Get("X-Good") != "yes" || got.Body != "ok" || got.Header.Get("Idempotency-Key") != id {
			t.Errorf("%s: the callback is %q with %v", path, got.Body, got.Header)
		}
		for name := range got.Header {
			if strings.Contains(name, "Foo") || strings.Contains(name, "Checksum") || name == "Keep-Alive" || name == "X-Hop" || name == "X-Bad" {
				t.Errorf("%s: the callback has %s", path, name)
			}
		}
		if path != "/q" {
			continue
		}
		reaches(t, g, path, id, task.Done)
		if resp, text := g.Do(http.MethodGet, path+"/"+id+"/result", ""); text != "ok" || resp.Header.Get("X-Good") != "yes" {
			t.Errorf("the result is %q with %v", text, resp.Header)
		}
	}
}

func TestTrustedCA(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	rcv := gatewaytest.NewServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	rcv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	rcv.StartTLS()
	for _, tc := range []struct{ line, state string }{{"trusted_ca " + cert, "delivered"}, {"", "retry"}} {
		g := gatewaytest.Start(t, gatewaytest.Delivering(tc.line), gatewaytest.ExampleSite(t)+fmt.Sprintf("\nhandle /own {\ncallback %s/own\nrespond ok\n}", rcv.URL))
		if a := g.Attempted(g.Task(rcv.URL), 1)[0]; a.State != tc.state {
			t.Errorf("with %q the attempt is %+v", tc.line, a)
		}
		resp, _ := g.Post("/own", "{}")
		if a := g.Attempted(resp.Header.Get("beam-task-id"), 1)[0]; a.State != tc.state {
			t.Errorf("with %q the attempt at the operator's URL is %+v", tc.line, a)
		}
	}
}
