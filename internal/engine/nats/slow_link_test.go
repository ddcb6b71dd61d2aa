package engine

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// slowLink is an address behind which a server stands that takes no more than so
// many bytes a second.
func slowLink(t *testing.T, server string, perSecond int) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go passSlowly(client, server, perSecond)
		}
	}()
	return listener.Addr().String()
}

func passSlowly(client net.Conn, server string, perSecond int) {
	defer client.Close()
	_ = client.(*net.TCPConn).SetReadBuffer(16 << 10)
	conn, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() { _, _ = io.Copy(client, conn) }()
	const perTick = 20
	tick := time.NewTicker(time.Second / perTick)
	defer tick.Stop()
	for range tick.C {
		if _, err := io.CopyN(conn, client, int64(perSecond/perTick)); err != nil {
			return
		}
	}
}

// A result that takes longer to be stored than a step may, or than a lease lasts, is
// stored all the same, and the lease is kept.
func TestALargeResultIsStoredOverASlowLink(t *testing.T) {
	t.Parallel()
	const perSecond, size, lease = 512 << 10, 5 << 20, 4 * time.Second // ten seconds
	cfg := startServer(t, nil)
	cfg.URLs = []string{slowLink(t, strings.TrimPrefix(cfg.URLs[0], "nats://"), perSecond)}
	cfg.LeaseTime = lease
	e := openOn(t, cfg)
	rec := record("c.example:443")
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	start := time.Now()
	settle(t, claim(t, e, rec), rec, body)
	if took := time.Since(start); took < publishTimeout {
		t.Fatalf("the link is not slow: it took %v", took)
	}
	d := fetch(t, e)
	if d.Record.ID != rec.ID {
		t.Fatalf("due is %+v", d.Record)
	}
	got, err := d.Body(t.Context())
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("its result has %d bytes, %v", len(got), err)
	}
}
