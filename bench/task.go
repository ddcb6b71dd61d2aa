package main

import (
	"fmt"
	"sync/atomic"
)

// tasks compares tasks of waiting clients, until all their callbacks are delivered, with
// a lower bound: the time of the same requests through a plain proxy, plus that of as
// many plain POST requests to the receiver.
func tasks(b *bench) ([]row, error) {
	app, err := serve("127.0.0.1:0", ok("application/json", body))
	if err != nil {
		return nil, err
	}
	defer app.close()
	rcv, err := serve("127.0.0.1:0", ok("text/plain", nil))
	if err != nil {
		return nil, err
	}
	defer rcv.close()
	var arrived atomic.Int64
	rcv.onRequest = func(id string) {
		if id != "" {
			arrived.Add(1)
		}
	}
	g, with, without, err := twoSites(app.addr)
	if err != nil {
		return nil, err
	}
	defer g.remove()

	request := post("a", "/", "application/json", filler(200, fmt.Sprintf(`"callback_url":"http://%s/hook",`, rcv.addr)))
	n := b.some(20_000)
	var rate pairs
	for i := range b.turns(1) {
		proxied, err := count(without, clients, n, 200, request)
		if err != nil {
			return nil, err
		}
		posted, err := postLoop([]string{rcv.addr}, clients, n)
		if err != nil {
			return nil, err
		}
		before := arrived.Load()
		ours, err := timed(func() error {
			if _, err := count(with, clients, n, 200, request); err != nil {
				return err
			}
			return awaitAll("callbacks", n, func() int { return int(arrived.Load() - before) })
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, g.lastLog())
		}
		if i == 0 {
			continue // warm-up
		}
		limit := proxied.elapsed.Seconds() + float64(n)/posted
		rate.add(float64(n)/ours.Seconds(), float64(n)/limit)
	}
	return []row{rate.atLeast("200-byte JSON, 64 clients, tasks/s", "", 0.45)}, nil
}

// queueTasks compares tasks of a queue, from acceptance to delivery, with tasks of
// waiting clients.
func queueTasks(b *bench) ([]row, error) {
	return sideBySide(b, "from acceptance to delivery, tasks/s", 0.80,
		side{site: queueSite, status: 202, options: "queue q {\nworkers 64\nmax_queued 10000000\n}"}, side{site: waitingSite, status: 200})
}

// syncModes compares fsync before every acknowledgement with an fsync every 10 ms.
func syncModes(b *bench) ([]row, error) {
	return sideBySide(b, "a waiting client's task, tasks/s", 0.80,
		side{site: waitingSite, status: 200}, side{site: waitingSite, status: 200, engine: "sync 10ms"})
}

func waitingSite(w *workload) string { return "callback\nreverse_proxy " + w.app.addr }

func queueSite(w *workload) string {
	return "callback\ntask_queue q {\nreverse_proxy " + w.app.addr + "\n}"
}

// side is one of two workloads that are compared.
type side struct {
	engine, options string
	site            func(w *workload) string
	status          int
}

func sideBySide(b *bench, what string, least float64, sides ...side) ([]row, error) {
	var all []*workload
	for _, s := range sides {
		g, err := newGateway()
		if err != nil {
			return nil, err
		}
		defer g.remove()
		g.keepIn(s.engine)
		w, err := startWorkload(g, s.options, s.site)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, g.lastLog())
		}
		defer w.close()
		w.status = s.status
		all = append(all, w)
	}
	var rate pairs
	for i := range b.turns(1) {
		var rates []float64
		for _, w := range all {
			r, err := w.round(b.round)
			if err != nil {
				return nil, err
			}
			rates = append(rates, r)
		}
		if i > 0 { // the first round is a warm-up
			rate.add(rates[0], rates[1])
		}
	}
	return []row{rate.atLeast(what, "", least)}, nil
}
