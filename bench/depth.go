package main

import (
	"fmt"
	"time"
)

// depth compares the rate of tasks with a callback of a gateway that has many tasks in
// its store with that of a gateway whose store is empty.
func depth(b *bench) ([]row, error) {
	empty, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer empty.remove()
	z, err := newWorkload(empty)
	if err != nil {
		return nil, err
	}
	defer z.close()
	var rows []row
	for _, c := range []struct {
		what  string
		fill  func(folder string) error
		least float64
	}{
		{"beside 100,000 finished tasks, tasks/s", func(folder string) error { return fillMany(folder, b.some(100_000), 1, ended) }, 0.95},
		{"beside 1,000,000 waiting tasks, tasks/s", func(folder string) error { return copyFixture(mixed, folder) }, 0.90},
	} {
		rate, err := besideOthers(b, z, c.fill)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.what, err)
		}
		rows = append(rows, rate.atLeast(c.what, "", c.least))
	}
	return rows, nil
}

// besideOthers compares a gateway whose store has been filled by fill with an empty one.
func besideOthers(b *bench, empty *workload, fill func(folder string) error) (rate pairs, err error) {
	full, err := newGateway()
	if err != nil {
		return rate, err
	}
	defer full.remove()
	if err := fill(full.store()); err != nil {
		return rate, err
	}
	w, err := newWorkload(full)
	if err != nil {
		return rate, err
	}
	defer w.close()
	for i := range b.turns(0.4) {
		ours, err := w.round(b.round)
		if err != nil {
			return rate, err
		}
		theirs, err := empty.round(b.round)
		if err != nil {
			return rate, err
		}
		if i > 0 { // the first round is a warm-up
			rate.add(ours, theirs)
		}
	}
	return rate, nil
}

// starts compares the time until the first response after kill -9: a gateway with
// 1,000,000 callbacks in its store, and plain Caddy.
func starts(b *bench) ([]row, error) {
	full, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer full.remove()
	if err := copyFixture(oneHost, full.store()); err != nil {
		return nil, err
	}
	plain, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer plain.remove()
	var times pairs
	for range b.cold(1) {
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
		"with 1,000,000 callbacks waiting", number(median(times.ours)) + " s",
		number(median(times.theirs)) + " s", fmt.Sprintf("%+.2f s", more), "≤ +0.3 s", more <= 0.3,
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
