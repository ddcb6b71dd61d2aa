package faults

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// accepts sends a request for a callback, and returns an error if it is refused.
func accepts(g *gatewaytest.Gateway, l *gatewaytest.Ledger, callbackURL string) error {
	g.T.Helper()
	resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s", resp.Status, text)
	}
	l.Accept(resp.Header.Get("beam-task-id"))
	return nil
}

// awaitAccepted waits until a gateway accepts a request for a callback.
func awaitAccepted(g *gatewaytest.Gateway, callbackURL string, l *gatewaytest.Ledger) {
	g.T.Helper()
	g.Eventually("callbacks are accepted", func() error { return accepts(g, l, callbackURL) })
}

// rig is a cluster with two gateways to which clients send tasks.
type rig struct {
	*gatewaytest.Cluster
	gateways []*gatewaytest.Gateway
	network  *gatewaytest.Network // between the first gateway and the cluster
}

// startRig starts a cluster and its gateways, and waits until both accept callbacks.
func startRig(t *testing.T, app http.HandlerFunc, rcv *gatewaytest.Receiver, l *gatewaytest.Ledger) *rig {
	t.Helper()
	r := &rig{Cluster: gatewaytest.NewCluster(t, 3), network: gatewaytest.NewNetwork(t)}
	r.Config = "cluster { no_advertise: true }" // otherwise the gateway would bypass the network
	for i := range r.Servers {
		r.Start(i)
	}
	r.Ready()
	through := r.Options()
	for _, s := range r.Servers {
		through = strings.Replace(through, s.Client, r.network.To(s.Client), 1)
	}
	site := mixed(t, app)
	r.gateways = []*gatewaytest.Gateway{gatewaytest.Start(t, through, site), gatewaytest.Start(t, r.Options(), site)}
	for _, g := range r.gateways {
		awaitAccepted(g, rcv.URL, l)
	}
	return r
}

// clusterFaults injects the faults in order, several times, while eight writers send
// tasks through two gateways. It reports a line of the table.
func clusterFaults(t *testing.T, name string, times int, faults ...func(r *rig)) {
	t.Helper()
	rcv := gatewaytest.NewReceiver(t, nil)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	r := startRig(t, gatewaytest.AnswerSoon, rcv, l)
	end := write(l, 8, r.gateways, rcv.URL, backOff)
	for range times {
		for _, fault := range faults {
			gatewaytest.Pause(500 * time.Millisecond)
			fault(r)
			for _, g := range r.gateways {
				awaitAccepted(g, rcv.URL, l) // accepts again, without a restart
			}
		}
	}
	end()
	l.Drain(t)
	report(t, name, times*len(faults), l.Tally())
}

// tasks is the stream whose leader is killed or disconnected.
const tasks = "CALLBACK"

func TestKilledClusterServersLoseNothing(t *testing.T) {
	t.Parallel()
	server := 0
	next := func(r *rig) {
		r.Kill(server)
		gatewaytest.Pause(time.Second)
		r.Start(server)
		r.Ready()
		server = (server + 1) % len(r.Servers)
	}
	clusterFaults(t, "9. NATS servers killed: the leader, each of three in turn, all at once", pick(1, 1, 20),
		func(r *rig) {
			leader := r.Leader(tasks)
			r.Kill(leader)
			r.Leader(tasks) // another server
			r.Start(leader)
			r.Ready()
		},
		next, next, next,
		func(r *rig) {
			for i := range r.Servers {
				r.Kill(i)
			}
			for i := range r.Servers {
				r.Start(i)
			}
			r.Ready()
		})
}

// partitionTime is how long a server or gateway is disconnected: long enough for
// others to replace it.
const partitionTime = 12 * time.Second

func TestClusterPartitionsLoseNothing(t *testing.T) {
	t.Parallel()
	kill := func(n int) func(r *rig) {
		return func(r *rig) {
			r.gateways[n].Kill()
			gatewaytest.Pause(time.Second)
			r.gateways[n].Start()
		}
	}
	clusterFaults(t, "9. leader stopped (SIGSTOP) for 12 s, a gateway disconnected for 12 s, each of two gateways killed", pick(1, 1, 20),
		func(r *rig) {
			leader := r.Leader(tasks)
			r.Suspend(leader)
			gatewaytest.Pause(partitionTime) // the others elect a new leader meanwhile
			r.Resume(leader)
			r.Ready()
		},
		func(r *rig) {
			r.network.Cut()
			gatewaytest.Pause(partitionTime)
			r.network.Restore()
		},
		kill(0), kill(1))
}

// pastLease is how long a node is unavailable: longer than its leases last.
const pastLease = 36 * time.Second

func TestExpiredLeaseCannotSettle(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(*rig) (end func()){
		"paused past its lease and resumed": func(r *rig) func() {
			r.gateways[0].Suspend()
			return r.gateways[0].Resume
		},
		"disconnected past its lease": func(r *rig) func() {
			r.network.Cut()
			return r.network.Restore
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rounds := pick(1, 1, 5)
			rcv := gatewaytest.NewReceiver(t, nil)
			l := gatewaytest.NewLedger(rcv, t.Context().Done())
			p := &pausedApp{begun: make(chan string, 100)}
			r := startRig(t, p.serve, rcv, l)
			for range rounds {
				interruptRound(t, l, p, r.gateways[0], r.gateways[1], rcv.URL, func() func() { return interrupt(r) })
				awaitAccepted(r.gateways[0], rcv.URL, l)
				l.Drain(t)
			}
			// When the node ends, it has settled everything that it would settle a second
			// time. The other node delivers that before later tasks.
			r.gateways[0].Stop()
			awaitAccepted(r.gateways[1], rcv.URL, l)
			l.Drain(t)
			r.gateways[1].Stop()
			report(t, "10. node of two "+name, rounds, l.Tally())
		})
	}
}

// pausedApp responds at once, except to the tasks of a round, which it keeps until the
// round ends.
type pausedApp struct {
	begun chan string

	mu   sync.Mutex
	open chan struct{} // closed when the round ends; nil before the first
}

func (p *pausedApp) round() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// next starts another round.
func (p *pausedApp) next() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

func (p *pausedApp) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Slow") != "" {
		open := p.round()
		select {
		case <-open: // a later run of the task
		default:
			p.begun <- r.Header.Get("beam-task-id")
			<-open
		}
	}
	// Each run has its own response: two results of one task would be noticed.
	fmt.Fprintf(w, "run at %d", time.Now().UnixNano())
}

// interruptRound lets a gateway start tasks and makes it unavailable for longer than its
// lease. Meanwhile the endpoint responds.
func interruptRound(t *testing.T, l *gatewaytest.Ledger, p *pausedApp, g, other *gatewaytest.Gateway, callbackURL string, interrupt func() (end func())) {
	t.Helper()
	const each = 8
	p.next()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	// A cluster that has just elected its leaders may refuse a publish. Clients retry
	// after a 503.
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
		go func() { _, _, _ = post("/") }() // the response is late or missing
		if resp, text, err := post("/q"); err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("the queue answered %v %s %v", resp, text, err)
		}
	}
	for range 2 * each {
		l.Accept(<-p.begun) // the endpoint knows the ID
	}
	end := interrupt()
	gatewaytest.Pause(pastLease / 2)
	close(p.round()) // the responses are ready when the gateway is back
	gatewaytest.Pause(pastLease / 2)
	awaitAccepted(other, callbackURL, l) // the other gateway is not affected
	end()
}
