package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// soon is more than a healthy receiver waits on a busy machine, and much less than if
// it waited for a hanging receiver.
const soon = 10 * time.Second

// newNetworks starts a receiver that listens on all loopback addresses, and returns its
// port.
func newNetworks(t *testing.T, answer http.HandlerFunc) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
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

// arrivesSoon sends a task for a receiver and waits for its callback.
func arrivesSoon(t *testing.T, g *gatewaytest.Gateway, rcv *gatewaytest.Receiver) {
	t.Helper()
	start := time.Now()
	g.Task(rcv.URL)
	select {
	case <-rcv.Got:
	case <-time.After(gatewaytest.Patience):
		t.Fatal("got no callback")
	}
	if took := time.Since(start); took > soon {
		t.Errorf("the callback of a healthy receiver took %v", took)
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
	port := newNetworks(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
		}
	})
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("concurrency 8", "slow 8"), gatewaytest.ExampleSite(t))
	g.Task(good.URL)
	good.Next(t)
	g.Tasks(600, func(i int) string { return inNetwork(i%20, port) })
	for range 3 {
		arrivesSoon(t, g, good)
	}
}

func TestLargeCallbacksDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	port := newNetworks(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-time.After(5 * time.Second):
		case <-r.Context().Done():
		}
	})
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), sizedSite(t))
	g.Tasks(40, func(int) string { return inNetwork(0, port) })
	arrivesSoon(t, g, good)
}

// TestHangingReceiversDoNotDelayOthers uses hosts that respond once and then hang,
// before and after a restart. A known and an unknown healthy host must get their
// callbacks. It does not run beside others: it measures a delay.
func TestHangingReceiversDoNotDelayOthers(t *testing.T) {
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
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 10m"), sizedSite(t))
	g.Task(good.URL)
	good.Next(t)
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
	arrivesSoon(t, g, good)
	g.Kill()
	g.Start()
	<-held
	arrivesSoon(t, g, good)
	arrivesSoon(t, g, fresh)
}
