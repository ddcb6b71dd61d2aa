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

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// newVoid starts a receiver that listens on all loopback addresses and never reads. It
// returns its port and the number of connections.
func newVoid(t *testing.T) (port int, called *atomic.Int64) {
	t.Helper()
	ln := freeaddr.ListenOn(t, "0.0.0.0")
	t.Cleanup(func() { ln.Close() })
	called = new(atomic.Int64)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			called.Add(1)
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port, called
}

func TestUnreadLargeResultsDoNotFillMemory(t *testing.T) {
	t.Parallel()
	const size, maxGrowth = 4 << 20, 160 << 20
	holes := gatewaytest.Fewer(60)
	large := strings.Repeat("é&=x", size/6)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := io.WriteString(w, large); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, app := range map[string]http.HandlerFunc{
		"plain": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, large)
		},
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed.Bytes())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port, called := newVoid(t)
			good := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 10m"), "callback\nreverse_proxy "+gatewaytest.NewApp(t, app))
			g.Task(good.URL)
			good.Next(t)
			before := g.Memory()
			for i := range holes {
				g.Task(fmt.Sprintf("http://127.1.0.%d:%d/", 1+i, port))
			}
			// All receivers have a large callback in flight, and a healthy host still
			// gets its callback.
			g.Eventually("all receivers are called", func() error {
				if n := called.Load(); n != int64(holes) {
					return fmt.Errorf("%d of %d are", n, holes)
				}
				return nil
			})
			g.Task(good.URL)
			if got := good.Next(t); len(got.Body) < size {
				t.Errorf("the callback has %d bytes", len(got.Body))
			}
			after := g.Memory()
			t.Logf("memory grew from %d MiB to %d MiB", before>>20, after>>20)
			// In memory, the bodies alone would be larger.
			if after > before+gatewaytest.Growth(maxGrowth) {
				t.Errorf("memory grew from %d MiB to %d MiB", before>>20, after>>20)
			}
			if n := called.Load(); n != int64(holes) {
				t.Errorf("%d attempts to %d hanging receivers, so some were repeated", n, holes)
			}
		})
	}
}
