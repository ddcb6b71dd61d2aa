package main

import (
	"fmt"
	"sync/atomic"
)

// tasks compares tasks of waiting clients, until all their callbacks are
// delivered, with the limit: the time that the same requests take through a
// plain proxy, and after it the time of as many plain POSTs to the receiver. To
// that the floor adds the time in which a bare loop stores as many tasks.
func tasks(b *bench) ([]row, error) {
	app, err := serve("127.0.0.1:0", ok("application/json", []byte(`{"response":"example response"}`)))
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
	var rate, floor pairs
	for i := range b.rounds + 1 {
		proxied, err := count(without, clients, n, 200, request)
		if err != nil {
			return nil, err
		}
		posted, err := postLoop([]string{rcv.addr}, clients, n)
		if err != nil {
			return nil, err
		}
		stored, err := storing(n, true)
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
			return nil, fmt.Errorf("%w: %s", err, g.said())
		}
		if i == 0 {
			continue // warming up
		}
		limit := proxied.elapsed.Seconds() + float64(n)/posted
		rate.add(float64(n)/ours.Seconds(), float64(n)/limit)
		floor.add(float64(n)/ours.Seconds(), float64(n)/(limit+float64(n)/stored))
	}
	return []row{
		rate.atLeast("a task with a callback, 200-byte JSON, all delivered, tasks/s", "", 0.80),
		floor.beside("the same beside the limit and the bare storing of as many tasks", ""),
	}, nil
}
