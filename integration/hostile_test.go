package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

const timeoutError = "no answer within 5s"

// hostileTimeout returns the timeout of attempts to a hostile receiver. It is short for
// those that never answer, and longer for an answer whose body has no end. The attempts
// to the others end by themselves.
func hostileTimeout(name, err string) string {
	switch {
	case err == timeoutError:
		return "timeout 5s"
	case strings.HasSuffix(name, "drips the body"):
		return "timeout 20s"
	default:
		return "timeout 2m"
	}
}

func TestHostileReceiversCostOneTimeout(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		state string
		code  int
		err   string // the beginning of the error
	}{
		"closes at once":                       {"retry", 0, ""},
		"closes after the request":             {"retry", 0, "EOF"},
		"never reads and never answers":        {"retry", 0, timeoutError},
		"never answers":                        {"retry", 0, timeoutError},
		"resets in the middle of the header":   {"retry", 0, ""},
		"drips its header":                     {"retry", 0, timeoutError},
		"drips a header line without end":      {"retry", 0, timeoutError},
		"sends 1xx responses without end":      {"retry", 0, ""},
		"sends 10 MB of headers":               {"retry", 0, "net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded"},
		"sends no HTTP":                        {"retry", 0, "the answer is not HTTP"},
		"switches protocols and sends nothing": {"retry", 101, ""},
		"responds 200 and resets the body":     {"delivered", 200, ""},
		"responds 200 and drips the body":      {"delivered", 200, ""},
		"responds 500 and drips the body":      {"retry", 500, ""},
		"responds 500 with a body without end": {"retry", 500, ""},
		"responds 500 with a gzip bomb":        {"retry", 500, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, gatewaytest.Delivering(hostileTimeout(name, test.err), "retry 1h"), gatewaytest.ExampleSite(t))
			id := g.Task(gatewaytest.NewPeer(t, gatewaytest.Hostile[name]))
			got := g.Attempted(id, 1)[0]
			if got.State != test.state || got.StatusCode != test.code || !strings.HasPrefix(got.Error, test.err) {
				t.Errorf("the attempt is logged as %+v", got)
			}
			if (got.StatusCode == 0) == (got.Error == "") {
				t.Errorf("status %d and error %q", got.StatusCode, got.Error)
			}
			if got.Duration > gatewaytest.Patience.Seconds()/2 {
				t.Errorf("the attempt took %vs", got.Duration)
			}
		})
	}
}

func TestAnswerLimit(t *testing.T) {
	t.Parallel()
	// The gateway reads 16 KiB. More bytes fit only in the buffers of the two sockets.
	const buffers = 16 << 20
	for name, header := range map[string]string{
		"endless":      "Connection: close\r\n",
		"chunked":      "Transfer-Encoding: chunked\r\n",
		"a terabyte":   "Content-Length: 1099511627776\r\n",
		"endless gzip": "Connection: close\r\nContent-Encoding: gzip\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sent, ended := new(atomic.Int64), make(chan struct{})
			chunk := strings.Repeat("x", 4096)
			if strings.Contains(header, "chunked") {
				chunk = "1000\r\n" + chunk + "\r\n"
			}
			g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 30s", "retry 1h"), gatewaytest.ExampleSite(t))
			id := g.Task(gatewaytest.NewPeer(t, func(conn net.Conn) {
				defer close(ended)
				_, _ = gatewaytest.ReadCallback(conn)
				gatewaytest.Write(conn, "HTTP/1.1 503 No\r\n"+header+"\r\n")
				gatewaytest.Flood(conn, chunk, sent)
			}))
			got := g.Attempted(id, 1)[0]
			if got.State != "retry" || got.StatusCode != 503 {
				t.Errorf("the attempt is logged as %+v", got)
			}
			<-ended // the gateway closed the connection
			if n := sent.Load(); n > buffers {
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

func TestGzipBombIsNotExpanded(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusGone)
		_, _ = io.WriteString(w, gatewaytest.Bomb())
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	if got := rcv.Next(t).Header.Get("Accept-Encoding"); got != "" {
		t.Errorf("Accept-Encoding is %q", got)
	}
	g.Attempted(id, 1)
	g.Stop()
	rec := g.Dead()[id].Record
	if rec == nil || len(rec.Attempts) != 1 {
		t.Fatalf("the dead letter is %+v", rec)
	}
	if kept := rec.Attempts[0].Response; kept == "" || strings.Contains(kept, "expandedexpanded") {
		t.Errorf("the stored part of the response is %.1000q", kept)
	}
}

func TestHostileReceiversDoNotFillMemory(t *testing.T) {
	t.Parallel()
	chunk := strings.Repeat("x", 64<<10)
	peer := gatewaytest.NewPeer(t, func(conn net.Conn) {
		_, _ = gatewaytest.ReadCallback(conn)
		gatewaytest.Write(conn, "HTTP/1.1 500 No\r\n\r\n")
		gatewaytest.Flood(conn, chunk, new(atomic.Int64))
	})
	heads := gatewaytest.NewPeer(t, func(conn net.Conn) {
		_, _ = gatewaytest.ReadCallback(conn)
		gatewaytest.Write(conn, "HTTP/1.1 500 No\r\n")
		gatewaytest.Flood(conn, "X-Flood: "+chunk+"\r\n", new(atomic.Int64))
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 5s", "retry 1h"), gatewaytest.ExampleSite(t))
	before := g.Memory()
	for range 200 {
		g.Task(peer)
		g.Task(heads)
	}
	g.Attempted("", 400)
	if after := g.Memory(); after > before+gatewaytest.Growth(200<<20) {
		t.Errorf("memory grew from %d MiB to %d MiB", before>>20, after>>20)
	}
}

func TestUnfinishedTLSHandshakesAreClosed(t *testing.T) {
	t.Parallel()
	var open atomic.Int64
	peer := gatewaytest.NewPeer(t, func(conn net.Conn) {
		open.Add(1)
		defer open.Add(-1)
		_, _ = io.Copy(io.Discard, conn) // until the gateway closes the connection
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 500ms", "retry 100ms 100ms 100ms 100ms"), gatewaytest.ExampleSite(t))
	id := g.Task(strings.Replace(peer, "http://", "https://", 1))
	for _, got := range g.Attempted(id, 5) {
		if got.Error != "no answer within 500ms" && !strings.Contains(got.Error, "timeout") {
			t.Errorf("the attempt is logged as %+v", got)
		}
	}
	g.Eventually("no connection is left", func() error {
		if n := open.Load(); n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}
