package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// contents is the content of a store before a measurement.
type contents struct {
	what          string
	queued, ended int
	least         float64
}

// depth compares the rate of tasks with a callback of a gateway that has many tasks in
// its store with that of a gateway whose store is empty.
func depth(b *bench) ([]row, error) {
	var rows []row
	for _, s := range []contents{
		{what: "beside 100,000 ended and 100,000 waiting tasks, tasks/s", queued: 100_000, ended: 100_000, least: 0.95},
		{what: "beside 1,000,000 waiting, tasks/s", queued: 1_000_000, least: 0.90},
	} {
		full, err := newGateway()
		if err != nil {
			return nil, err
		}
		defer full.remove()
		if err := fillStore(full.store(), b.some(s.queued), b.some(s.ended)); err != nil {
			return nil, err
		}
		empty, err := newGateway()
		if err != nil {
			return nil, err
		}
		defer empty.remove()
		var rate pairs
		a, err := newWorkload(full)
		if err != nil {
			return nil, err
		}
		defer a.close()
		z, err := newWorkload(empty)
		if err != nil {
			return nil, err
		}
		defer z.close()
		for i := range b.rounds + 1 {
			ours, err := a.round(b.round)
			if err != nil {
				return nil, err
			}
			theirs, err := z.round(b.round)
			if err != nil {
				return nil, err
			}
			if i > 0 { // the first round is a warm-up
				rate.add(ours, theirs)
			}
		}
		rows = append(rows, rate.atLeast(s.what, "", s.least))
		full.kill()
		empty.kill()
	}
	return rows, nil
}

// fillStore fills a store with tasks that wait in a queue and finished tasks.
func fillStore(folder string, waiting, ended int) error {
	return stocked(fmt.Sprintf("%d waiting and %d finished tasks", waiting, ended), folder, func(folder string) error {
		return fill(folder, waiting+ended, func(ctx context.Context, e engine.Engine, i int) error {
			if i < waiting {
				return queued(ctx, e)
			}
			rec := record("", "")
			rec.Callback, rec.Queue, rec.Request = nil, "q", &task.Request{Method: "POST", URI: "/"}
			lease, err := e.Claim(ctx, rec)
			if err != nil {
				return err
			}
			return lease.Settle(ctx, rec, bytes.NewReader(body))
		})
	})
}

// starts compares the time until the first response after kill -9: a gateway with
// 1,000,000 callbacks in its store, and plain Caddy.
func starts(b *bench) ([]row, error) {
	full, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer full.remove()
	if err := fillDue(full.store(), b.some(1_000_000), 1); err != nil {
		return nil, err
	}
	plain, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer plain.remove()
	var times pairs
	for range b.rounds {
		ours, err := toFirst(full, full.options("", ""), "callback\nrespond ok")
		if err != nil {
			return nil, err
		}
		theirs, err := toFirst(plain, "", "respond ok")
		if err != nil {
			return nil, err
		}
		times.add(ours.Seconds(), theirs.Seconds())
	}
	more := median(times.ours) - median(times.theirs)
	return []row{{
		"from the start to the first request served, 1,000,000 callbacks waiting", number(median(times.ours)) + " s",
		number(median(times.theirs)) + " s", fmt.Sprintf("+%.2f s", more), "≤ +0.3 s", more <= 0.3,
	}}, nil
}

// toFirst starts a gateway as after kill -9. It returns the time until the first
// response.
func toFirst(g *gateway, options, site string) (time.Duration, error) {
	defer g.kill()
	addr, err := freeAddr()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := g.start(options, siteAt(addr, site)); err != nil {
		return 0, err
	}
	_, err = count(addr, 1, 1, 200, post("a", "/", "text/plain", nil))
	return time.Since(began), err
}
