package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// manyTimes are waits for callbacks that are tried again until the test has
// seen enough.
var manyTimes = "retry" + strings.Repeat(" 2s", 200)

// blackHole is a receiver that answers nothing until it is opened.
type blackHole struct {
	*receiver
	opened   chan struct{}
	mu       sync.Mutex
	answered map[string]int // callbacks that were answered, by task
}

func newBlackHole(t *testing.T) *blackHole {
	t.Helper()
	b := &blackHole{opened: make(chan struct{}), answered: make(map[string]int)}
	b.receiver = newReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
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

// tasks sends n requests, several at a time.
func (g *gateway) tasks(n int, callbackURL func(i int) string) {
	g.t.Helper()
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL(int(i-1)))
				resp, err := client.Post(g.url("/"), "application/json", strings.NewReader(body))
				if err != nil {
					g.t.Errorf("a request failed: %v", err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					g.t.Errorf("a request got %s", resp.Status)
				}
			}
		})
	}
	clients.Wait()
}

func to(url string) func(int) string { return func(int) string { return url } }

func TestABlackHoleWithTenThousandCallbacksDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	const waiting, healthy = 10_000, 300
	hole := newBlackHole(t)
	good := []*receiver{newReceiver(t, nil), newReceiver(t, nil), newReceiver(t, nil)}
	g := startGateway(t, delivering("timeout 5s", manyTimes), exampleSite(t))
	before := g.memory()

	// Half of the healthy ones' callbacks come among the others, half after them.
	var clients sync.WaitGroup
	clients.Go(func() { g.tasks(waiting, to(hole.URL)) })
	clients.Go(func() { g.tasks(healthy/2, func(i int) string { return good[i%3].URL }) })
	clients.Wait()
	g.tasks(healthy/2, func(i int) string { return good[i%3].URL })
	for i := range healthy {
		good[i%3].next(t)
	}
	if err := hole.delivered(1); err == nil {
		t.Fatal("the black hole has answered")
	}
	after := g.memory()
	t.Logf("%d MiB of memory before, %d MiB with %d callbacks waiting", before>>20, after>>20, waiting)
	if after > before+growth(300<<20) {
		t.Errorf("the callbacks that wait take %d MiB", (after-before)>>20)
	}

	close(hole.opened)
	opened := time.Now()
	g.eventually("all callbacks are delivered", func() error { return hole.delivered(waiting) })
	t.Logf("all are delivered %v after it opened", time.Since(opened))
	for id, n := range hole.answered {
		if n != 1 {
			t.Errorf("the callback of %s was accepted %d times", id, n)
		}
	}
	for _, rcv := range good {
		if n := len(rcv.got); n > 0 {
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
	good := newReceiver(t, nil)
	g := startGateway(t, delivering("timeout 5s", manyTimes), exampleSite(t))
	g.tasks(len(holes)*each, func(i int) string { return holes[i%len(holes)].URL })
	g.tasks(healthy, to(good.URL))
	for range healthy {
		good.next(t)
	}
	for _, hole := range holes {
		if len(hole.got) == 0 {
			t.Error("a black hole was not called")
		}
		if err := hole.delivered(1); err == nil {
			t.Error("a black hole has answered")
		}
		close(hole.opened)
	}
	for i, hole := range holes {
		g.eventually(fmt.Sprintf("hole %d gets its callbacks", i), func() error { return hole.delivered(each) })
	}
}

func TestAThousandBlackHolesLeaveRoomForAHostThatIsKnownToAnswer(t *testing.T) {
	t.Parallel()
	const holes, healthy = 1000, 100
	port, called := newVoid(t)
	good := newReceiver(t, nil)
	g := startGateway(t, delivering("timeout 10m", "concurrency 32", "per_host 4"), exampleSite(t))
	g.task(good.URL)
	good.next(t)
	g.tasks(holes, func(i int) string { return fmt.Sprintf("http://127.1.%d.%d:%d/", i/250, 1+i%250, port) })
	g.tasks(healthy, to(good.URL))
	for range healthy {
		good.next(t)
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
	flooded := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-tokens })
	other := newReceiver(t, func(http.ResponseWriter, *http.Request) {
		for range 10 {
			tokens <- struct{}{}
		}
	})
	g := startGateway(t, delivering("timeout 10m"), exampleSite(t))
	g.tasks(flood, to(flooded.URL))
	g.tasks(others, to(other.URL))
	for range others {
		other.next(t)
	}
	for range flood {
		flooded.next(t)
	}
	if n := len(flooded.got) + len(other.got); n > 0 {
		t.Errorf("%d callbacks came twice", n)
	}
}
