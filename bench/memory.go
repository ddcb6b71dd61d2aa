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

// fillDue stores n callbacks for hosts without a listener: 127.1.0.1 and up.
func fillDue(folder string, n, hosts int) error {
	return stocked(fmt.Sprintf("%d callbacks for %d hosts", n, hosts), folder, func(folder string) error {
		return fill(folder, n, func(ctx context.Context, e engine.Engine, i int) error {
			i %= hosts
			host := fmt.Sprintf("127.%d.%d.%d:1", 1+i>>16, i>>8&255, i&255)
			return addDelivery(ctx, e, "http://"+host+"/hook", host)
		})
	})
}

// memory compares the resident memory of the gateway with that of plain Caddy, which is
// the same program without the callback app.
func memory(b *bench) ([]row, error) {
	plain, err := resident(nil, func(*gateway) string { return "" }, "respond ok")
	if err != nil {
		return nil, err
	}
	options := func(g *gateway) string { return g.options("", "retry 1h") }
	idle, err := resident(nil, options, "callback\nrespond ok")
	if err != nil {
		return nil, err
	}
	n := b.some(1_000_000)
	rows := []row{grown("idle", idle, plain, 15)}
	for _, c := range []struct {
		what  string
		hosts int
	}{{"1,000,000 callbacks waiting for one host", 1}, {"1,000,000 callbacks waiting for as many hosts", n}} {
		full, err := resident(func(folder string) error { return fillDue(folder, n, c.hosts) }, options, "callback\nrespond ok")
		if err != nil {
			return nil, err
		}
		rows = append(rows, grown(c.what, full, plain, 60))
	}
	return rows, nil
}

func grown(what string, have, plain, limit float64) row {
	return row{what, number(have) + " MB", number(plain) + " MB", fmt.Sprintf("+%.0f MB", have-plain),
		fmt.Sprintf("≤ +%.0f MB", limit), have-plain <= limit}
}

// resident returns the resident memory of a gateway some time after its start on a store.
func resident(fill func(folder string) error, options func(*gateway) string, site string) (float64, error) {
	g, err := newGateway()
	if err != nil {
		return 0, err
	}
	defer g.remove()
	if fill != nil {
		if err := fill(g.store()); err != nil {
			return 0, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return 0, err
	}
	if _, err := g.start(options(g), siteAt(addr, site)); err != nil {
		return 0, err
	}
	time.Sleep(calm)
	return g.memory()
}

// calm is the time from the start to reading the memory. Go returns memory to the system
// over minutes, so the figure is what an operator sees soon after the start.
const calm = 30 * time.Second
