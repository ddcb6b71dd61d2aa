package faults

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// pair starts two gateways on a cluster and waits until both take callbacks.
func pair(t *testing.T, c *gatewaytest.Cluster, site, callbackURL string, l *gatewaytest.Ledger) []*gatewaytest.Gateway {
	t.Helper()
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)}
	for _, g := range gateways {
		takes(g, callbackURL, l)
	}
	return gateways
}

// takes waits until a gateway takes a request for a callback.
func takes(g *gatewaytest.Gateway, callbackURL string, l *gatewaytest.Ledger) {
	g.T.Helper()
	g.Eventually("callbacks are accepted", func() error {
		resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		l.Accept(resp.Header.Get("beam-task-id"))
		return nil
	})
}

// leader returns which server leads the stream of the live tasks.
func leader(t *testing.T, c *gatewaytest.Cluster) (i int) {
	t.Helper()
	gatewaytest.Eventually(t, "the stream has a leader", func() error {
		nc, err := nats.Connect(c.URLs())
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		stream, err := js.Stream(t.Context(), "CALLBACK")
		if err != nil {
			return err
		}
		if cluster := stream.CachedInfo().Cluster; cluster == nil || cluster.Leader == "" {
			return errors.New("nobody leads")
		} else if _, err := fmt.Sscanf(cluster.Leader, "n%d", &i); err != nil {
			return fmt.Errorf("the leader is called %q: %w", cluster.Leader, err)
		}
		return nil
	})
	return i
}

// outTime is how long after a fault what was on its way to a gateway is handed out
// again. Until then another fault can lose it, see docs/cluster.md.
const outTime = 10 * time.Second

// clusterFault makes a fault some times while eight writers send tasks through
// two gateways, and writes the line of the table.
func clusterFault(t *testing.T, name string, times int, fault func(c *gatewaytest.Cluster, round int)) {
	c := gatewaytest.StartCluster(t, 3)
	rcv := gatewaytest.NewReceiver(t, nil)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	gateways := pair(t, c, mixed(t, gatewaytest.AnswerSoon), rcv.URL, l)
	end := write(l, 8, gateways, rcv.URL, backOff)
	for round := range times {
		gatewaytest.Pause(500 * time.Millisecond)
		if round > 0 {
			gatewaytest.Pause(outTime) // one fault at a time
		}
		fault(c, round)
		for _, g := range gateways {
			takes(g, rcv.URL, l) // again, without a restart
		}
	}
	end()
	l.Drain(t)
	report(t, name, times, l.Tally())
}

func TestServersOfAClusterThatAreKilledInTurnLoseNothing(t *testing.T) {
	t.Parallel()
	clusterFault(t, "9. each of three NATS servers killed and restarted in turn", pick(3, 3, 30), func(c *gatewaytest.Cluster, round int) {
		i := round % len(c.Servers)
		c.Kill(i)
		gatewaytest.Pause(time.Second)
		c.Start(i)
		c.Ready()
	})
}

func TestAClusterThatIsKilledAsAWholeLosesNothing(t *testing.T) {
	t.Parallel()
	clusterFault(t, "9. all three NATS servers killed at once and restarted", pick(1, 2, 20), func(c *gatewaytest.Cluster, _ int) {
		for i := range c.Servers {
			c.Kill(i)
		}
		for i := range c.Servers {
			c.Start(i)
		}
		c.Ready()
	})
}

func TestALeaderThatIsKilledDuringPublishesLosesNothing(t *testing.T) {
	t.Parallel()
	clusterFault(t, "9. leader killed during publishes", pick(1, 2, 20), func(c *gatewaytest.Cluster, _ int) {
		i := leader(t, c)
		c.Kill(i)
		leader(t, c) // another
		c.Start(i)
		c.Ready()
	})
}

func TestALeaderThatIsCutOffLosesNothing(t *testing.T) {
	t.Parallel()
	clusterFault(t, "9. leader cut off (SIGSTOP) for 12 s", pick(1, 2, 10), func(c *gatewaytest.Cluster, _ int) {
		cutOff := c.Servers[leader(t, c)].Cmd.Process
		send(t, cutOff, syscall.SIGSTOP)
		gatewaytest.Pause(12 * time.Second) // the others elect another meanwhile
		send(t, cutOff, syscall.SIGCONT)
		c.Ready()
	})
}

func send(t *testing.T, process *os.Process, sig syscall.Signal) {
	t.Helper()
	if err := process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// pastLease is how long a node is paused: longer than its leases.
const pastLease = 36 * time.Second

func TestANodeThatWasPausedPastItsLeaseSettlesNothingASecondTime(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 1, 5)
	c := gatewaytest.StartCluster(t, 3)
	rcv := gatewaytest.NewReceiver(t, nil)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	p := &pausedApp{begun: make(chan string, 100)}
	gateways := pair(t, c, mixed(t, p.serve), rcv.URL, l)
	for range rounds {
		pauseRound(t, l, p, gateways[0], gateways[1], rcv.URL)
		takes(gateways[0], rcv.URL, l)
		l.Drain(t)
	}
	// Whatever the node would settle once more it has settled when it ends, and the
	// other delivers it before what comes after it.
	gateways[0].Stop()
	takes(gateways[1], rcv.URL, l)
	l.Drain(t)
	gateways[1].Stop()
	report(t, "10. node of two paused past its lease and resumed", rounds, l.Tally())
}

func TestAGatewayThatWasPausedPastItsLeaseSettlesNothingASecondTime(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 1, 5)
	rcv := gatewaytest.NewReceiver(t, nil)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	p := &pausedApp{begun: make(chan string, 100)}
	g := gatewaytest.Start(t, gatewaytest.Delivering(), mixed(t, p.serve))
	for range rounds {
		pauseRound(t, l, p, g, nil, rcv.URL)
		takes(g, rcv.URL, l)
		l.Drain(t)
	}
	g.Stop()
	report(t, "10. single gateway paused past its lease and resumed", rounds, l.Tally())
}

// pausedApp answers at once but for the tasks of a round, which it keeps until
// the round lets them go.
type pausedApp struct {
	begun chan string

	mu   sync.Mutex
	open chan struct{} // closed when the round lets them go; nil before the first
}

func (p *pausedApp) round() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// next begins another round.
func (p *pausedApp) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

func (p *pausedApp) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Slow") != "" {
		open := p.round()
		select {
		case <-open: // it runs again
		default:
			p.begun <- r.Header.Get("beam-task-id")
			<-open
		}
	}
	// Each run has an answer of its own: two results of one task would show.
	fmt.Fprintf(w, "run at %d", time.Now().UnixNano())
}

// pauseRound has a gateway begin tasks, pauses it past its lease, and lets the
// endpoint answer while it is paused.
func pauseRound(t *testing.T, l *gatewaytest.Ledger, p *pausedApp, g, other *gatewaytest.Gateway, callbackURL string) {
	t.Helper()
	const each = 8
	p.next()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	// A cluster that has just elected its leaders may refuse a publish; a client that
	// is told so with 503 sends again.
	post := func(path string) (resp *http.Response, text string, err error) {
		for {
			resp, text, err = gatewaytest.Send(http.MethodPost, g.URL(path), strings.NewReader(body),
				"Content-Type", "application/json", "X-Slow", "1")
			if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
				return resp, text, err
			}
			gatewaytest.Pause(100 * time.Millisecond)
		}
	}
	for range each {
		go func() { _, _, _ = post("/") }() // the answer comes late, or never
		if resp, text, err := post("/q"); err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("the queue answered %v %s %v", resp, text, err)
		}
	}
	for range 2 * each {
		l.Accept(<-p.begun) // the endpoint was told
	}
	send(t, g.Cmd.Process, syscall.SIGSTOP)
	gatewaytest.Pause(pastLease / 2)
	close(p.round()) // the answers lie there when the gateway is back
	gatewaytest.Pause(pastLease / 2)
	if other != nil {
		takes(other, callbackURL, l) // it lacks nothing
	}
	send(t, g.Cmd.Process, syscall.SIGCONT)
}
