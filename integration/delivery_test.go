package integration

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
)

// What the tests of deliveries share.

// newPeer starts a receiver below HTTP: each connection is handed to serve and
// closed when it returns. It returns the receiver's URL.
func newPeer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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
	return "http://" + ln.Addr().String() + "/hook"
}

// readCallback reads a callback off a connection.
func readCallback(conn net.Conn) (id string, err error) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return req.Header.Get("beam-task-id"), err
}

// hostOf returns the host and port of a URL.
func hostOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
