package integration

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func to(url string) func(int) string { return func(int) string { return url } }

func TestTenHangingHostsDoNotDelayHealthyHost(t *testing.T) {
	t.Parallel()
	const each, healthy = 100, 200
	holes := make([]*gatewaytest.BlackHole, 10)
	for i := range holes {
		holes[i] = gatewaytest.NewBlackHole(t)
	}
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 5s", gatewaytest.ManyTimes), gatewaytest.ExampleSite(t))
	g.Tasks(len(holes)*each, func(i int) string { return holes[i%len(holes)].URL })
	g.Tasks(healthy, to(good.URL))
	for range healthy {
		good.Next(t)
	}
	for _, hole := range holes {
		hole.Next(t)
		if err := hole.Delivered(1); err == nil {
			t.Error("a black hole responded")
		}
		hole.Open()
	}
	for i, hole := range holes {
		g.Eventually(fmt.Sprintf("hole %d gets its callbacks", i), func() error { return hole.Delivered(each) })
	}
}

// TestThousandHangingHostsDoNotDelayKnownHost does not run beside others, and sends one
// callback at a time to the healthy host: on a busy machine it can take longer than a fast
// host may.
func TestThousandHangingHostsDoNotDelayKnownHost(t *testing.T) {
	const holes, healthy, slow = 1000, 20, 32
	port, called := newVoid(t)
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 10m", "concurrency 16", fmt.Sprintf("slow %d", slow), "per_host 4"), gatewaytest.ExampleSite(t))
	arrives(t, g, good)
	g.Tasks(holes, func(i int) string { return fmt.Sprintf("http://127.1.%d.%d:%d/", i/250, 1+i%250, port) })
	for range healthy {
		arrives(t, g, good)
	}
	// Hosts that never responded use all slow slots and no other slots.
	g.Eventually("all slow slots are taken", func() error {
		if n := called.Load(); n != slow {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	for range healthy {
		arrives(t, g, good)
	}
	if n := called.Load(); n != slow {
		t.Errorf("%d attempts to hanging hosts are made at once, with slow %d", n, slow)
	}
}

func TestFloodToOneHostIsFair(t *testing.T) {
	t.Parallel()
	const flood, others = 3000, 300
	// The flooded host responds only after other hosts got callbacks, one for each ten
	// of its own. If the others had to wait for it, the test would hang.
	tokens := make(chan struct{}, flood+10*others)
	flooded := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {
		select {
		case <-tokens:
		case <-t.Context().Done(): // the test has failed
		}
	})
	other := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {
		for range 10 {
			tokens <- struct{}{}
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 10m"), gatewaytest.ExampleSite(t))
	g.Tasks(flood, to(flooded.URL))
	g.Tasks(others, to(other.URL))
	for range others {
		other.Next(t)
	}
	for range flood {
		flooded.Next(t)
	}
	if n := len(flooded.Got) + len(other.Got); n > 0 {
		t.Errorf("%d callbacks arrived twice", n)
	}
}
