package main

import (
	"fmt"
	"sync/atomic"
	"time"
)

// workload sends tasks with a callback through a running gateway.
type workload struct {
	g        *gateway
	app, rcv *peer
	busy     *peer
	site     string
	request  []byte
	status   int // of the responses
	clients  int // that send at once
	arrived  atomic.Int64
}

// newWorkload starts the gateway between an app and a receiver. It has a queue q, whose
// only worker never finishes its task. It keeps finished tasks.
func newWorkload(g *gateway) (*workload, error) {
	return startWorkload(g, "retention 24h 10000000\nqueue q {\nworkers 1\nmax_queued 10000000\n}", func(w *workload) string {
		return "handle /queue {\ntask_queue q {\nreverse_proxy " + w.busy.addr + "\n}\n}\ncallback\nreverse_proxy " + w.app.addr
	})
}

// startWorkload starts the gateway with options and a site.
func startWorkload(g *gateway, options string, site func(w *workload) string) (*workload, error) {
	return startWorkloadBeside(g, options, site, func(*workload) string { return "" })
}

// startWorkloadBeside starts the gateway with options and a site beside other sites.
func startWorkloadBeside(g *gateway, options string, site, others func(w *workload) string) (*workload, error) {
	w := &workload{g: g, status: 200, clients: clients}
	var err error
	if w.app, err = serve("127.0.0.1:0", ok("application/json", body)); err != nil {
		return nil, err
	}
	if w.rcv, err = serve("127.0.0.1:0", ok("text/plain", nil)); err != nil {
		return nil, err
	}
	w.rcv.onRequest = func(string) { w.arrived.Add(1) }
	if w.busy, err = serve("127.0.0.1:0", nil); err != nil {
		return nil, err
	}
	if w.site, err = freeAddr(); err != nil {
		return nil, err
	}
	w.request = post("a", "/", "application/json", filler(200, fmt.Sprintf(`"callback_url":"http://%s/hook",`, w.rcv.addr)))
	_, err = g.start(g.options(options, ""), siteAt(w.site, site(w))+others(w))
	return w, err
}

// count sends n tasks and waits for their callbacks.
func (w *workload) count(n, status int) error {
	before := w.arrived.Load()
	if _, err := count(w.site, w.clients, n, status, w.request); err != nil {
		return err
	}
	return awaitAll("callbacks", n, func() int { return int(w.arrived.Load() - before) })
}

// round sends tasks for a duration and waits for their callbacks. It returns the rate per
// second.
func (w *workload) round(d time.Duration) (float64, error) {
	before := w.arrived.Load()
	n := 0
	took, err := timed(func() error {
		sent, err := closed(w.site, w.clients, d, w.status, w.request)
		if err != nil {
			return err
		}
		n = sent.n
		return awaitAll("callbacks", n, func() int { return int(w.arrived.Load() - before) })
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, w.g.lastLog())
	}
	return float64(n) / took.Seconds(), nil
}

func (w *workload) close() {
	for _, s := range []*peer{w.app, w.rcv, w.busy} {
		s.close()
	}
}
