package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// queued stores a task that waits for a worker of the queue q.
func queued(ctx context.Context, e engine.Engine) error {
	content := filler(200, "")
	_, _, err := e.Enqueue(ctx, &task.Record{
		Task:    task.Task{ID: newID(), Queue: "q", CreatedAt: time.Now().UTC()},
		Timeout: time.Hour,
		Request: &task.Request{
			Method: "POST", URI: "/", Proto: "HTTP/1.1", Host: "a", RemoteAddr: "127.0.0.1:1", Size: int64(len(content)),
			Header: map[string][]string{"Content-Type": {"application/json"}, "Content-Length": {fmt.Sprint(len(content))}},
		},
	}, bytes.NewReader(content), engine.EnqueueOptions{})
	return err
}

// memory compares the resident memory of the gateway with that of plain Caddy, which is
// the same program without the callback app.
func memory(b *bench) ([]row, error) {
	const site = "callback\nrespond ok"
	options := func(g *gateway) string { return g.options("", "retry 1h") }
	none := func(string) error { return nil }
	fixture := func(name string) func(string) error {
		return func(folder string) error { return copyFixture(name, folder) }
	}
	// The first two gateways are idle, so they do not affect the third.
	used, err := resident(b,
		instance{none, func(*gateway) string { return "" }, "respond ok"}, instance{none, options, site}, instance{fixture(oneHost), options, site})
	if err != nil {
		return nil, err
	}
	more, err := resident(b, instance{fixture(manyHosts), options, site})
	if err != nil {
		return nil, err
	}
	plain := used[0]
	return []row{
		grown("idle", used[1], plain, 15),
		grown("1,000,000 callbacks waiting for one host", used[2], plain, 60),
		grown("1,000,000 callbacks waiting for as many hosts", more[0], plain, 60),
	}, nil
}

func grown(what string, have, plain, limit float64) row {
	return row{what, number(have) + " MB", number(plain) + " MB", fmt.Sprintf("%+.0f MB", have-plain),
		fmt.Sprintf("≤ +%.0f MB", limit), have-plain <= limit}
}

// instance is a gateway whose memory is measured.
type instance struct {
	fill    func(folder string) error
	options func(*gateway) string
	site    string
}

// resident returns the resident memory of gateways some time after their start.
func resident(b *bench, instances ...instance) ([]float64, error) {
	var started []*gateway
	defer func() {
		for _, g := range started {
			g.remove()
		}
	}()
	for _, i := range instances {
		g, err := newGateway()
		if err != nil {
			return nil, err
		}
		started = append(started, g)
		if err := i.fill(g.store()); err != nil {
			return nil, err
		}
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		if _, err := g.start(i.options(g), siteAt(addr, i.site)); err != nil {
			return nil, err
		}
	}
	// Go returns memory to the system over minutes, so the figure is what an operator
	// sees soon after the start.
	time.Sleep(15 * b.round)
	var used []float64
	for _, g := range started {
		mb, err := g.memory()
		if err != nil {
			return nil, err
		}
		used = append(used, mb)
	}
	return used, nil
}
