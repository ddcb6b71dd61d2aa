package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// newNetworks starts a receiver that listens on all loopback addresses, and returns its
// port.
func newNetworks(t *testing.T, answer http.HandlerFunc) (port int) {
	t.Helper()
	ln := freeaddr.ListenOn(t, "0.0.0.0")
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: answer}}
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return ln.Addr().(*net.TCPAddr).Port
}

// inNetwork returns a URL in the i-th of 250 networks.
func inNetwork(i, port int) string { return fmt.Sprintf("http://127.1.%d.1:%d/", i%250, port) }

// arrives sends a task for a receiver and waits for its callback.
func arrives(t *testing.T, g *gatewaytest.Gateway, rcv *gatewaytest.Receiver) {
	t.Helper()
	id := g.Task(rcv.URL)
	for rcv.Next(t).TaskID() != id {
		// A kill may have repeated an earlier callback.
	}
}

// sizedSite is a site whose app responds with 300 KiB.
func sizedSite(t *testing.T) string {
	return "callback {\nformat raw\n}\nreverse_proxy " + gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyN(w, zeros{}, 300<<10) // the gateway reports a broken response
	})
}

func TestSlowReceiversDoNotDelayHealthyOne(t *testing.T) {
	t.Parallel()
	const tasks = 300
	var begun atomic.Int64
	port := newNetworks(t, func(w http.ResponseWriter, r *http.Request) {
		var enough <-chan time.Time
		if begun.Add(1) < tasks/2 {
			enough = time.After(2 * time.Second)
		}
		select {
		case <-enough: // the others wait until the healthy receiver has its callbacks
		case <-r.Context().Done():
		}
	})
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("concurrency 8", "slow 8"), gatewaytest.ExampleSite(t))
	arrives(t, g, good)
	g.Tasks(tasks, func(i int) string { return inNetwork(i%20, port) })
	for range 3 {
		arrives(t, g, good)
	}
}

func TestLargeCallbacksDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	port := newNetworks(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done() // until the test ends
	})
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 1h"), sizedSite(t))
	g.Tasks(40, func(int) string { return inNetwork(0, port) })
	arrives(t, g, good)
}

// TestHangingReceiversDoNotDelayOthers uses hosts that respond once and then hang,
// before and after a restart. A known and an unknown healthy host must get their
// callbacks.
func TestHangingReceiversDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	answered := make(map[string]bool)
	held := make(chan struct{}, 10_000)
	port := newNetworks(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		first := !answered[r.Host]
		answered[r.Host] = true
		mu.Unlock()
		if !first {
			held <- struct{}{}
			<-r.Context().Done()
		}
	})
	good, fresh := gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 1h"), sizedSite(t))
	arrives(t, g, good)
	const hosts = 100
	g.Tasks(hosts, func(i int) string { return inNetwork(i, port) })
	g.Eventually("all hosts have answered", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(answered) < hosts {
			return fmt.Errorf("%d have", len(answered))
		}
		return nil
	})
	g.Tasks(5*hosts, func(i int) string { return inNetwork(i, port) })
	<-held
	arrives(t, g, good)
	g.Kill()
	g.Start()
	<-held
	arrives(t, g, good)
	arrives(t, g, fresh)
}
