package main

import (
	"context"
	"fmt"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// isolation compares how soon callbacks to 50 healthy hosts arrive with and without
// 10,000 callbacks that wait for a host that never responds. The floor is the time with
// as many tasks that wait in a queue without workers.
func isolation(b *bench) ([]row, error) {
	hole, err := serve("127.0.0.1:0", nil)
	if err != nil {
		return nil, err
	}
	defer hole.close()
	var p50, p99, floor pairs
	for range b.cold(1) {
		with, err := healthy(b, func(ctx context.Context, e engine.Engine, _ int) error {
			return addDelivery(ctx, e, "http://"+hole.addr+"/hook", hole.addr)
		})
		if err != nil {
			return nil, err
		}
		without, err := healthy(b, nil)
		if err != nil {
			return nil, err
		}
		stored, err := healthy(b, func(ctx context.Context, e engine.Engine, _ int) error { return queued(ctx, e) })
		if err != nil {
			return nil, err
		}
		floor.add(millis(quantile(with, 0.99)), millis(quantile(stored, 0.99)))
		p50.add(millis(quantile(with, 0.5)), millis(quantile(without, 0.5)))
		p99.add(millis(quantile(with, 0.99)), millis(quantile(without, 0.99)))
	}
	median := p50.atMost("the same, p50", " ms", 1.10)
	median.target = ""
	return []row{
		p99.atMost("result to callback beside 10,000 for that host, 200/s, p99", " ms", 1.10),
		median,
		floor.beside("p99, compared with 10,000 tasks in a queue without workers", " ms"),
	}, nil
}

// healthy returns the delivery times of callbacks to healthy hosts.
func healthy(b *bench, put func(context.Context, engine.Engine, int) error) ([]time.Duration, error) {
	arrived, answered := newStamps(), newStamps()
	app, err := serve("127.0.0.1:0", ok("application/json", body))
	if err != nil {
		return nil, err
	}
	defer app.close()
	app.onAnswer = answered.mark
	var hosts []*peer
	defer func() {
		for _, s := range hosts {
			s.close()
		}
	}()
	for i := range 50 {
		s, err := serve(fmt.Sprintf("127.0.2.%d:0", i+1), ok("text/plain", nil))
		if err != nil {
			return nil, err
		}
		s.onRequest = arrived.mark
		hosts = append(hosts, s)
	}
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	if put != nil {
		if err := fill(g.store(), b.some(10_000), put); err != nil {
			return nil, err
		}
	}
	site, err := freeAddr()
	if err != nil {
		return nil, err
	}
	// Attempts to the unresponsive host fail every few seconds and are retried, so its
	// backlog stays full.
	_, err = g.start(g.options("", "timeout 5s\nretry 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s"),
		siteAt(site, "callback\nreverse_proxy "+app.addr))
	if err != nil {
		return nil, err
	}
	var requests [][]byte
	for _, s := range hosts {
		requests = append(requests, post("a", "/", "application/json", filler(200, fmt.Sprintf(`"callback_url":"http://%s/hook",`, s.addr))))
	}
	send := func(d time.Duration) error {
		if err := steady(site, 200, d, 200, requests, nil); err != nil {
			return err
		}
		return awaitAll("callbacks", answered.len(), arrived.len)
	}
	// Warm up: open connections, and let the gateway find the host unresponsive.
	if err := send(5 * b.round / 2); err != nil {
		return nil, err
	}
	warm := len(arrived.since(answered))
	arrived.reset()
	answered.reset()
	if warm == 0 {
		return nil, fmt.Errorf("no callback came: %s", g.lastLog())
	}
	if err := send(b.round * 5 / 2); err != nil {
		return nil, err
	}
	return arrived.since(answered), nil
}
