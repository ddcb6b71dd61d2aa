package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// manyTimes are waits for callbacks that are tried again until the test has
// seen enough.
var manyTimes = "retry" + strings.Repeat(" 2s", 200)

// blackHole is a receiver that answers nothing until it is opened.
type blackHole struct {
	*gatewaytest.Receiver
	opened   chan struct{}
	mu       sync.Mutex
	answered map[string]int // callbacks that were answered, by task
}

func newBlackHole(t *testing.T) *blackHole {
	t.Helper()
	b := &blackHole{opened: make(chan struct{}), answered: make(map[string]int)}
	b.Receiver = gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-b.opened:
			b.mu.Lock()
			defer b.mu.Unlock()
			b.answered[r.Header.Get("beam-task-id")]++
		default:
			<-r.Context().Done() // until the gateway gives up
		}
	})
	return b
}

// delivered returns nil once n callbacks were answered.
func (b *blackHole) delivered(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.answered) < n {
		return fmt.Errorf("%d of %d are delivered", len(b.answered), n)
	}
	return nil
}

func to(url string) func(int) string { return func(int) string { return url } }

func TestABlackHoleWithTenThousandCallbacksDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	const waiting, healthy = 10_000, 300
	hole := newBlackHole(t)
	good := []*gatewaytest.Receiver{gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)}
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 5s", manyTimes), gatewaytest.ExampleSite(t))
	before := g.Memory()

	// Half of the healthy ones' callbacks come among the others, half after them.
	var clients sync.WaitGroup
	clients.Go(func() { g.Tasks(waiting, to(hole.URL)) })
	clients.Go(func() { g.Tasks(healthy/2, func(i int) string { return good[i%3].URL }) })
	clients.Wait()
	g.Tasks(healthy/2, func(i int) string { return good[i%3].URL })
	for i := range healthy {
		good[i%3].Next(t)
	}
	if err := hole.delivered(1); err == nil {
		t.Fatal("the black hole has answered")
	}
	after := g.Memory()
	t.Logf("%d MiB of memory before, %d MiB with %d callbacks waiting", before>>20, after>>20, waiting)
	if after > before+growth(300<<20) {
		t.Errorf("the callbacks that wait take %d MiB", (after-before)>>20)
	}

	close(hole.opened)
	opened := time.Now()
	g.Eventually("all callbacks are delivered", func() error { return hole.delivered(waiting) })
	t.Logf("all are delivered %v after it opened", time.Since(opened))
	for id, n := range hole.answered {
		if n != 1 {
			t.Errorf("the callback of %s was accepted %d times", id, n)
		}
	}
	for _, rcv := range good {
		if n := len(rcv.Got); n > 0 {
			t.Errorf("%d callbacks too many came to a healthy host", n)
		}
	}
}

func TestTenBlackHolesLeaveRoomForAHealthyHost(t *testing.T) {
	t.Parallel()
	const each, healthy = 100, 200
	holes := make([]*blackHole, 10)
	for i := range holes {
		holes[i] = newBlackHole(t)
	}
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 5s", manyTimes), gatewaytest.ExampleSite(t))
	g.Tasks(len(holes)*each, func(i int) string { return holes[i%len(holes)].URL })
	g.Tasks(healthy, to(good.URL))
	for range healthy {
		good.Next(t)
	}
	for _, hole := range holes {
		if len(hole.Got) == 0 {
			t.Error("a black hole was not called")
		}
		if err := hole.delivered(1); err == nil {
			t.Error("a black hole has answered")
		}
		close(hole.opened)
	}
	for i, hole := range holes {
		g.Eventually(fmt.Sprintf("hole %d gets its callbacks", i), func() error { return hole.delivered(each) })
	}
}

func TestAThousandBlackHolesLeaveRoomForAHostThatIsKnownToAnswer(t *testing.T) {
	t.Parallel()
	const holes, healthy = 1000, 100
	port, called := newVoid(t)
	good := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 10m", "concurrency 32", "per_host 4"), gatewaytest.ExampleSite(t))
	g.Task(good.URL)
	good.Next(t)
	g.Tasks(holes, func(i int) string { return fmt.Sprintf("http://127.1.%d.%d:%d/", i/250, 1+i%250, port) })
	g.Tasks(healthy, to(good.URL))
	for range healthy {
		good.Next(t)
	}
	if n := called.Load(); n != 24 {
		t.Errorf("%d attempts to black holes are made at once, not 24 of 32", n)
	}
}

func TestAFloodToOneHostAdvancesNoFasterThanTheOthersAreServed(t *testing.T) {
	t.Parallel()
	const flood, others = 3000, 300
	// The flooded host answers ten callbacks for each that another host got: if
	// the others had to wait for it, nothing would go on.
	tokens := make(chan struct{}, flood+10*others)
	flooded := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) { <-tokens })
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
		t.Errorf("%d callbacks came twice", n)
	}
}
