package faults

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// peers are hostile receivers that become well-behaved at the end of a test. Only from
// then on their callbacks count as arrived.
type peers struct {
	ledger *gatewaytest.Ledger
	relent chan struct{}
	mu     sync.Mutex
	called map[string]int // by kind
}

// serve returns a receiver of one kind.
func (p *peers) serve(kind string) func(net.Conn) {
	return func(conn net.Conn) {
		p.mu.Lock()
		p.called[kind]++
		p.mu.Unlock()
		select {
		case <-p.relent:
		default:
			gatewaytest.Hostile[kind](conn)
			return
		}
		if id, err := gatewaytest.ReadCallback(conn); err == nil {
			c := gatewaytest.Callback{Header: map[string][]string{"Beam-Task-Id": {id}}}
			p.ledger.Arrive(c)
			gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	}
}

// accepting are kinds that respond with 200 at once. The callback then counts as
// delivered, even if the body breaks.
var accepting = []string{"responds 200 and resets the body", "responds 200 and drips the body"}

func TestHostileReceiversCostBoundedTimeAndMemory(t *testing.T) {
	t.Parallel()
	each := pick(5, 40, 150)
	rcv := gatewaytest.NewReceiver(t, nil)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	hostile := &peers{ledger: l, relent: make(chan struct{}), called: make(map[string]int)}
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 1s", gatewaytest.ManyTimes), gatewaytest.ExampleSite(t))
	before := g.Memory()

	kinds := slices.Sorted(maps.Keys(gatewaytest.Hostile))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool { return slices.Contains(accepting, kind) })
	var urls []string
	for _, kind := range kinds {
		urls = append(urls, gatewaytest.NewPeer(t, hostile.serve(kind)))
	}
	most := before
	for range each {
		for _, url := range urls {
			l.Accept(g.Task(url))
		}
		l.Accept(g.Task(rcv.URL))
		most = max(most, g.Memory())
	}
	g.Eventually("the healthy receiver has its callbacks", func() error {
		if n := l.Tally().Arrived; n < each {
			return fmt.Errorf("it has %d of %d", n, each)
		}
		return nil
	})
	g.Eventually("each kind is called repeatedly", func() error {
		most = max(most, g.Memory())
		hostile.mu.Lock()
		defer hostile.mu.Unlock()
		for _, kind := range kinds {
			if n := hostile.called[kind]; n < each+2 {
				return fmt.Errorf("receiver that %s: called %d times", kind, n)
			}
		}
		return nil
	})
	close(hostile.relent)
	l.Drain(t)
	for _, got := range g.Attempts("") {
		if got.Duration > gatewaytest.Patience.Seconds()/2 {
			t.Errorf("an attempt took %vs", got.Duration)
		}
	}
	t.Logf("from %d MiB to at most %d MiB", before>>20, most>>20)
	if most > before+gatewaytest.Growth(300<<20) {
		t.Errorf("from %d MiB to %d MiB", before>>20, most>>20)
	}
	report(t, fmt.Sprintf("6. hostile receivers of %d kinds (memory from %d to %d MiB)", len(kinds), before>>20, most>>20),
		each*len(kinds), l.Tally())
}

func TestBlackHoleDelaysNoHealthyHost(t *testing.T) {
	t.Parallel()
	const hosts, perHost = 50, 20
	waiting := pick(2_000, 10_000, 10_000)
	hole := gatewaytest.NewBlackHole(t)
	good := make([]*gatewaytest.Receiver, hosts)
	for i := range good {
		good[i] = gatewaytest.NewReceiver(t, nil)
	}
	g := gatewaytest.Start(t, gatewaytest.Delivering("timeout 20s", gatewaytest.ManyTimes), gatewaytest.ExampleSite(t))
	before := g.Memory()

	// Half of the callbacks to healthy receivers are sent among the others, half after
	// them.
	toGood := func(i int) string { return good[i%hosts].URL }
	var clients sync.WaitGroup
	clients.Go(func() { g.Tasks(waiting, func(int) string { return hole.URL }) })
	clients.Go(func() { g.Tasks(hosts*perHost/2, toGood) })
	clients.Wait()
	g.Tasks(hosts*perHost/2, toGood)
	for i := range hosts * perHost {
		good[i%hosts].Next(t)
	}
	if err := hole.Delivered(1); err == nil {
		t.Fatal("the black hole answered")
	}
	after := g.Memory()
	if after > before+gatewaytest.Growth(300<<20) {
		t.Errorf("the waiting callbacks take %d MiB of memory", (after-before)>>20)
	}

	hole.Open()
	opened := time.Now()
	g.Eventually("all callbacks are delivered", func() error { return hole.Delivered(waiting) })
	t.Logf("all are delivered %v after it opened", time.Since(opened))
	tally := gatewaytest.Tally{Accepted: waiting + hosts*perHost, Arrived: hosts * perHost}
	for id, n := range hole.Answered() {
		tally.Arrived += n
		tally.Repeated += n - 1
		if n != 1 {
			t.Errorf("the callback of %s was accepted %d times", id, n)
		}
	}
	for _, rcv := range good {
		tally.Arrived += len(rcv.Got)
		tally.Repeated += len(rcv.Got)
	}
	if tally.Repeated > 0 {
		t.Errorf("%d callbacks were repeated", tally.Repeated)
	}
	report(t, fmt.Sprintf("7. a black hole with %d callbacks beside %d hosts (memory from %d to %d MiB)", waiting, hosts, before>>20, after>>20), 1, tally)
}
