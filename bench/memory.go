package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// queued puts a task into the store that waits for a worker of the queue q.
func queued(ctx context.Context, e *engine.Engine) error {
	content := filler(200, "")
	return e.Enqueue(ctx, &task.Record{
		Task:    task.Task{ID: uuid.NewString(), Queue: "q", CreatedAt: time.Now().UTC()},
		Timeout: time.Hour,
		Request: &task.Request{
			Method: "POST", URI: "/", Proto: "HTTP/1.1", Host: "a", RemoteAddr: "127.0.0.1:1", Size: int64(len(content)),
			Header: map[string][]string{"Content-Type": {"application/json"}, "Content-Length": {fmt.Sprint(len(content))}},
		},
	}, content)
}

// memory compares what the gateway has resident with plain Caddy: the same
// program, without the callback app.
func memory(b *bench) ([]row, error) {
	plain, err := resident(func(g *gateway, site string) error {
		_, err := g.start("", siteAt(site, "respond ok"))
		return err
	})
	if err != nil {
		return nil, err
	}
	idle, err := resident(func(g *gateway, site string) error {
		_, err := g.start(g.options("", ""), siteAt(site, "callback\nrespond ok"))
		return err
	})
	if err != nil {
		return nil, err
	}
	full, err := resident(func(g *gateway, _ string) error {
		site, err := startQueue(g, "")
		if err != nil {
			return err
		}
		_, err = count(site, clients, b.some(100_000), 202, post("a", "/", "application/json", filler(200, "")))
		return err
	})
	if err != nil {
		return nil, err
	}
	retrying, err := resident(func(g *gateway, site string) error { return fillRetries(g, site, b.some(100_000)) })
	if err != nil {
		return nil, err
	}
	bare, err := scheduling(b.some(100_000))
	if err != nil {
		return nil, err
	}
	more := func(what string, have, limit float64) row {
		return row{what, number(have) + " MB", number(plain) + " MB", fmt.Sprintf("+%.0f MB", have-plain),
			fmt.Sprintf("≤ +%.0f MB", limit), have-plain <= limit}
	}
	return []row{
		more("idle", idle, 25),
		more("100,000 tasks queued over HTTP", full, 100),
		more("100,000 callbacks waiting for their next attempt", retrying, 200),
		{what: "the same beside a bare program with as many scheduled messages", measured: number(retrying) + " MB",
			against: number(bare) + " MB", ratio: fmt.Sprintf("%+.0f MB", retrying-bare)},
	}, nil
}

// resident returns what a gateway has resident some time after it was set to
// work.
func resident(work func(g *gateway, site string) error) (float64, error) {
	g, err := newGateway()
	if err != nil {
		return 0, err
	}
	defer g.remove()
	site, err := freeAddr()
	if err != nil {
		return 0, err
	}
	if err := work(g, site); err != nil {
		return 0, fmt.Errorf("%w: %s", err, g.said())
	}
	time.Sleep(calm)
	return g.memory()
}

// calm is how long after the load memory is read. Go gives it back over minutes, in
// part after a forced collection every two: this is what an operator sees soon
// after the load.
const calm = 30 * time.Second

// fillRetries makes n callbacks fail once and wait an hour.
func fillRetries(g *gateway, site string, n int) error {
	var arrived atomic.Int64
	rcv, err := serve("127.0.0.1:0", []byte("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"))
	if err != nil {
		return err
	}
	defer rcv.close()
	rcv.onRequest = func(string) { arrived.Add(1) }
	app, err := serve("127.0.0.1:0", ok("application/json", body))
	if err != nil {
		return err
	}
	defer app.close()
	if _, err := g.start(g.options("", "retry 1h"), siteAt(site, "callback\nreverse_proxy "+app.addr)); err != nil {
		return err
	}
	request := post("a", "/", "application/json", filler(200, fmt.Sprintf(`"callback_url":"http://%s/hook",`, rcv.addr)))
	if _, err := count(site, clients, n, 200, request); err != nil {
		return err
	}
	return awaitAll("attempts", n, func() int { return int(arrived.Load()) })
}
