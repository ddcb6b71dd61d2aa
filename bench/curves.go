package main

import (
	"bytes"
	"fmt"
)

// point is one measurement of a curve.
type point struct {
	x, y float64
}

// curves draws a picture for each measurement under a growing load.
func curves(b *bench) (table, error) {
	for _, c := range []struct {
		file, title, x, y string
		at                []int
		measure           func(b *bench, n int) (float64, error)
	}{
		{"queue-depth.svg", "Tasks with a callback beside tasks that wait in a queue", "waiting tasks", "tasks/s",
			[]int{1, 1_000, 10_000, 100_000, 1_000_000}, func(b *bench, n int) (float64, error) { return beside(b, n, 0) }},
		{"retained.svg", "Tasks with a callback beside ended tasks that can be looked up", "ended tasks", "tasks/s",
			[]int{1, 1_000, 10_000, 100_000, 1_000_000}, func(b *bench, n int) (float64, error) { return beside(b, 0, n) }},
		{"hosts.svg", "Deliveries of a full stream", "hosts", "deliveries/s",
			[]int{1, 3, 10, 30, 100, 300, 1000}, func(b *bench, n int) (float64, error) {
				ours, _, err := drain(n, concurrency, b.some(10_000))
				return ours, err
			}},
		{"result-size.svg", "Tasks with a callback by the size of the result", "bytes", "tasks/s",
			[]int{100, 1_000, 10_000, 100_000, 1_000_000, 8_000_000}, sized},
	} {
		var points []point
		for _, n := range c.at {
			y, err := c.measure(b, n)
			if err != nil {
				return table{}, fmt.Errorf("%s at %d: %w", c.file, n, err)
			}
			fmt.Printf("%s: %d %s, %s %s\n", c.file, n, c.x, number(y), c.y)
			points = append(points, point{float64(n), y})
		}
		if err := writeFile(c.file, draw(c.title, c.x, c.y, points)); err != nil {
			return table{}, err
		}
	}
	return table{}, nil
}

// beside returns the tasks per second with other tasks in the store.
func beside(b *bench, waiting, ended int) (float64, error) {
	g, err := newGateway()
	if err != nil {
		return 0, err
	}
	defer g.remove()
	if err := fillStore(g.store(), waiting, ended); err != nil {
		return 0, err
	}
	w, err := newWorkload(g)
	if err != nil {
		return 0, err
	}
	defer w.close()
	return medianOf(b, w)
}

// medianOf returns the median of several rounds of a workload, after a warm-up round.
func medianOf(b *bench, w *workload) (float64, error) {
	var rates []float64
	for i := range (b.rounds+1)/2 + 1 {
		rate, err := w.round(b.round)
		if err != nil {
			return 0, err
		}
		if i > 0 {
			rates = append(rates, rate)
		}
	}
	return median(rates), nil
}

// sized returns the tasks per second for results of n bytes.
func sized(b *bench, n int) (float64, error) {
	g, err := newGateway()
	if err != nil {
		return 0, err
	}
	defer g.remove()
	w, err := newWorkload(g)
	if err != nil {
		return 0, err
	}
	defer w.close()
	w.app.mu.Lock()
	w.app.answer = ok("text/plain", bytes.Repeat([]byte("x"), n))
	w.app.mu.Unlock()
	return medianOf(b, w)
}
