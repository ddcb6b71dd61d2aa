package gatewaytest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
)

// NewPeer starts a receiver below HTTP, which calls serve for each connection and
// closes the connection when serve returns. It returns the receiver's URL.
func NewPeer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	return "http://" + ServeConns(t, serve) + "/hook"
}

// ServeConns calls serve for each connection, closes the connection when serve
// returns, and returns the address that it listens on.
func ServeConns(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	ln := freeaddr.Listen(t)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln.Addr().String()
}

// ReadCallback reads a callback from a connection.
func ReadCallback(conn net.Conn) (id string, err error) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return req.Header.Get("beam-task-id"), err
}

// Write writes to a peer and reports whether it is still connected.
func Write(conn net.Conn, s string) bool {
	_, err := io.WriteString(conn, s)
	return err == nil
}

// Drip writes s repeatedly and slowly, until the other side closes.
func Drip(conn net.Conn, s string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for Write(conn, s) {
		<-tick.C
	}
}

// Flood writes s repeatedly and counts the bytes.
func Flood(conn net.Conn, s string, sent *atomic.Int64) {
	for Write(conn, s) {
		sent.Add(int64(len(s)))
	}
}

const okLine = "HTTP/1.1 200 OK\r\n"

// Hostile are receivers that hang, drip, flood or send nonsense, by name.
var Hostile = map[string]func(net.Conn){
	"closes at once":                func(net.Conn) {},
	"closes after the request":      afterCallback(func(net.Conn) {}),
	"never reads and never answers": func(conn net.Conn) { Drip(conn, "") },
	"never answers":                 afterCallback(awaitHangUp),
	"resets in the middle of the header": afterCallback(func(conn net.Conn) {
		Write(conn, okLine+"X-Half")
		_ = conn.(*net.TCPConn).SetLinger(0)
	}),
	"drips its header": afterCallback(func(conn net.Conn) {
		Write(conn, okLine)
		Drip(conn, "X-Drip: 1\r\n")
	}),
	"drips a header line without end": afterCallback(func(conn net.Conn) {
		Write(conn, okLine+"X-Drip: ")
		Drip(conn, "1")
	}),
	"sends 1xx responses without end": afterCallback(func(conn net.Conn) {
		Flood(conn, "HTTP/1.1 103 Early Hints\r\n\r\n", new(atomic.Int64))
	}),
	"sends 10 MB of headers": afterCallback(func(conn net.Conn) {
		Write(conn, okLine)
		for range 10_000 {
			if !Write(conn, "X-Flood: "+strings.Repeat("x", 1000)+"\r\n") {
				return
			}
		}
		Write(conn, "Content-Length: 0\r\n\r\n")
	}),
	"sends no HTTP": afterCallback(func(conn net.Conn) { Write(conn, "SSH-2.0-OpenSSH_9.9\r\n") }),
	"switches protocols and sends nothing": afterCallback(func(conn net.Conn) {
		Write(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		awaitHangUp(conn)
	}),
	"responds 200 and resets the body": afterCallback(func(conn net.Conn) {
		Write(conn, okLine+"Content-Length: 100\r\n\r\nhalf")
	}),
	"responds 200 and drips the body": afterCallback(func(conn net.Conn) {
		Write(conn, okLine+"Content-Length: 100000\r\n\r\n")
		Drip(conn, "x")
	}),
	"responds 500 and drips the body": afterCallback(func(conn net.Conn) {
		Write(conn, "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
		Drip(conn, "1\r\nx\r\n")
	}),
	"responds 500 with a body without end": afterCallback(func(conn net.Conn) {
		Write(conn, "HTTP/1.1 500 No\r\n\r\n")
		Flood(conn, strings.Repeat("x", 64<<10), new(atomic.Int64))
	}),
	"responds 500 with a gzip bomb": afterCallback(func(conn net.Conn) {
		packed := Bomb()
		Write(conn, "HTTP/1.1 500 No\r\nContent-Encoding: gzip\r\nContent-Length: "+strconv.Itoa(len(packed))+"\r\n\r\n"+packed)
	}),
}

func afterCallback(answer func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = ReadCallback(conn)
		answer(conn)
	}
}

// awaitHangUp waits until the gateway disconnects.
func awaitHangUp(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }

// Bomb is gzip data that expands a thousandfold, to 80 MiB: one member, repeated.
var Bomb = sync.OnceValue(func() string {
	var member bytes.Buffer
	w := gzip.NewWriter(&member)
	_, _ = w.Write(bytes.Repeat([]byte("expanded"), 128<<10)) // writing to a buffer cannot fail
	_ = w.Close()
	return strings.Repeat(member.String(), 80)
})
