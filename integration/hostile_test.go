package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// write writes to a peer that may have gone, which ends the test's own loops.
func write(conn net.Conn, s string) bool {
	_, err := io.WriteString(conn, s)
	return err == nil
}

// drip writes s again and again, slowly, until the other side has enough.
func drip(conn net.Conn, s string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for write(conn, s) {
		<-tick.C
	}
}

// flood writes s again and again and counts the bytes.
func flood(conn net.Conn, s string, sent *atomic.Int64) {
	for write(conn, s) {
		sent.Add(int64(len(s)))
	}
}

const timeoutError = "no answer within 1s"

func TestHostileReceiversCostAnAttemptItsTimeoutAndNoMore(t *testing.T) {
	t.Parallel()
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, test := range map[string]struct {
		serve func(conn net.Conn)
		state string
		code  int
		err   string // how it begins
	}{
		"closes at once": {func(net.Conn) {}, "retry", 0, ""},
		"closes after the request": {func(conn net.Conn) { _, _ = readCallback(conn) },
			"retry", 0, "EOF"},
		"never reads and never answers": {func(conn net.Conn) { drip(conn, "") }, "retry", 0, timeoutError},
		"never answers": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			_, _ = conn.Read(make([]byte, 1))
		}, "retry", 0, timeoutError},
		"resets in the middle of the header": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "HTTP/1.1 200 OK\r\nX-Half")
			_ = conn.(*net.TCPConn).SetLinger(0)
		}, "retry", 0, ""},
		"drips its header": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "HTTP/1.1 200 OK\r\n")
			drip(conn, "X-Drip: 1\r\n")
		}, "retry", 0, timeoutError},
		"drips a header line without end": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "HTTP/1.1 200 OK\r\nX-Drip: ")
			drip(conn, "1")
		}, "retry", 0, timeoutError},
		"informs without end": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			flood(conn, "HTTP/1.1 103 Early Hints\r\n\r\n", new(atomic.Int64))
		}, "retry", 0, ""},
		"sends 10 MB of headers": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, ok)
			for range 10_000 {
				if !write(conn, "X-Flood: "+strings.Repeat("x", 1000)+"\r\n") {
					return
				}
			}
			write(conn, "Content-Length: 0\r\n\r\n")
		}, "retry", 0, "net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded"},
		"is no HTTP": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "SSH-2.0-OpenSSH_9.9\r\n")
		}, "retry", 0, "the answer is not HTTP"},
		"changes the protocol and says nothing": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = conn.Read(make([]byte, 1))
		}, "retry", 101, ""},
		"accepts and resets its body": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, ok+"Content-Length: 100\r\n\r\nhalf")
		}, "delivered", 200, ""},
		"accepts and drips its body": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, ok+"Content-Length: 100000\r\n\r\n")
			drip(conn, "x")
		}, "delivered", 200, ""},
		"refuses and drips its body": {func(conn net.Conn) {
			_, _ = readCallback(conn)
			write(conn, "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
			drip(conn, "1\r\nx\r\n")
		}, "retry", 500, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 1s", "retry 1h"), gatewaytest.ExampleSite(t))
			id := g.Task(newPeer(t, test.serve))
			got := g.Attempted(id, 1)[0]
			if got.State != test.state || got.StatusCode != test.code || !strings.HasPrefix(got.Error, test.err) {
				t.Errorf("it is logged as %+v", got)
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

func TestAnAnswerIsReadTo16KiBAndNoFurther(t *testing.T) {
	t.Parallel()
	// What is sent beyond 16 KiB stays in the buffers of the two sockets.
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
			id := g.Task(newPeer(t, func(conn net.Conn) {
				defer close(ended)
				_, _ = readCallback(conn)
				write(conn, "HTTP/1.1 503 No\r\n"+header+"\r\n")
				flood(conn, chunk, sent)
			}))
			got := g.Attempted(id, 1)[0]
			if got.State != "retry" || got.StatusCode != 503 {
				t.Errorf("it is logged as %+v", got)
			}
			<-ended // the gateway has hung up
			if n := sent.Load(); n > buffers {
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

func TestAGzipBombIsNotExpanded(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	if _, err := io.WriteString(w, strings.Repeat("expanded", 10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(http.StatusGone)
		_, _ = w.Write(bomb.Bytes())
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	if got := rcv.Next(t).Header.Get("Accept-Encoding"); got != "" {
		t.Errorf("Accept-Encoding is %q", got)
	}
	g.Attempted(id, 1)
	g.Stop()
	if kept := g.Dead()[id]; !strings.Contains(kept, `"response":"`) || strings.Contains(kept, "expandedexpanded") {
		t.Errorf("of the answer is kept: %.1000q", kept)
	}
}

func TestHostileReceiversLeaveMemoryBounded(t *testing.T) {
	t.Parallel()
	chunk := strings.Repeat("x", 64<<10)
	peer := newPeer(t, func(conn net.Conn) {
		_, _ = readCallback(conn)
		write(conn, "HTTP/1.1 500 No\r\n\r\n")
		flood(conn, chunk, new(atomic.Int64))
	})
	heads := newPeer(t, func(conn net.Conn) {
		_, _ = readCallback(conn)
		write(conn, "HTTP/1.1 500 No\r\n")
		flood(conn, "X-Flood: "+chunk+"\r\n", new(atomic.Int64))
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 5s", "retry 1h"), gatewaytest.ExampleSite(t))
	before := g.Memory()
	for range 200 {
		g.Task(peer)
		g.Task(heads)
	}
	g.Attempted("", 400)
	if after := g.Memory(); after > before+growth(200<<20) {
		t.Errorf("from %d MiB to %d MiB", before>>20, after>>20)
	}
}

func TestConnectionsToAReceiverThatNeverShakesHandsDoNotPileUp(t *testing.T) {
	t.Parallel()
	var open atomic.Int64
	peer := newPeer(t, func(conn net.Conn) {
		open.Add(1)
		defer open.Add(-1)
		_, _ = io.Copy(io.Discard, conn) // until the gateway hangs up
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 500ms", "retry 100ms 100ms 100ms 100ms"), gatewaytest.ExampleSite(t))
	id := g.Task(strings.Replace(peer, "http://", "https://", 1))
	for _, got := range g.Attempted(id, 5) {
		if got.Error != "no answer within 500ms" && !strings.Contains(got.Error, "timeout") {
			t.Errorf("it is logged as %+v", got)
		}
	}
	g.Eventually("no connection is left", func() error {
		if n := open.Load(); n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}
