package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
)

// point is one measurement of a curve.
type point struct{ x, y float64 }

// line is a named series of points in a picture.
type line struct {
	name   string // "" if the picture has only one
	points []point
}

// curve is a picture of a figure that depends on the load.
type curve struct {
	file, title, x, y string
	at                []int
	lines             []string
	// open prepares the measurements of a line. measure returns the figure at n. close
	// stops the processes that open started.
	open func(b *bench, line string) (measure func(n int) (float64, error), close func(), err error)
}

var pictures = []curve{
	{"waiting.svg", "Tasks with a callback beside waiting tasks", "waiting tasks", "tasks/s",
		[]int{1_000, 10_000, 100_000, million}, []string{""}, besideFilled(waiting, mixed)},
	{"retained.svg", "Tasks with a callback beside finished tasks that are kept", "finished tasks", "tasks/s",
		[]int{1_000, 10_000, 100_000}, []string{""}, besideFilled(ended, "")},
	{"hosts.svg", "Deliveries from a full store", "hosts", "deliveries/s", []int{1, 10, 100, 1_000}, []string{""}, toHosts},
	{"result-size.svg", "Tasks with a callback by the size of the result", "bytes", "tasks/s",
		[]int{100, 10_000, 100_000, 1_000_000, 8_000_000}, []string{""}, sized},
	{"writers.svg", "Tasks with a callback by the number of clients", "clients at once", "tasks/s",
		[]int{1, 4, 16, 64, 256}, []string{"sync always", "sync 10ms"}, writers},
	{"gateways.svg", "Gateways on a NATS cluster of three, all on one machine", "gateways", "tasks/s",
		[]int{1, 2, 3, 4}, []string{""}, gateways},
}

// curves draws all pictures.
func curves(b *bench) (table, error) {
	t := table{head: []string{"", ""}}
	for _, c := range pictures {
		var lines []line
		for _, name := range c.lines {
			l, err := c.measure(b, name)
			if err != nil {
				return t, fmt.Errorf("%s: %w", c.file, err)
			}
			lines = append(lines, l)
		}
		if err := b.writePicture(c.file, draw(c, lines)); err != nil {
			return t, err
		}
		t.rows = append(t.rows, c.row(lines))
	}
	return t, nil
}

// measure measures the points of a line.
func (c curve) measure(b *bench, name string) (line, error) {
	l := line{name: name}
	measure, end, err := c.open(b, name)
	if err != nil {
		return l, err
	}
	defer end()
	for _, n := range c.at {
		y, err := measure(n)
		if err != nil {
			return l, fmt.Errorf("at %d %s: %w", n, c.x, err)
		}
		l.points = append(l.points, point{float64(n), y})
	}
	return l, nil
}

// row returns the picture and the first and last point of each line.
func (c curve) row(lines []line) []string {
	var texts []string
	for _, l := range lines {
		first, last := l.points[0], l.points[len(l.points)-1]
		text := fmt.Sprintf("%s %s at %s, %s at %s", number(first.y), c.y, short(first.x), number(last.y), short(last.x))
		if l.name != "" {
			text = "`" + l.name + "`: " + text
		}
		texts = append(texts, text)
	}
	return []string{fmt.Sprintf("![%s](images/%s)", c.title, c.file), strings.Join(texts, "<br>")}
}

// medianOf returns the median of two rounds of a workload, after a warm-up.
func medianOf(b *bench, workloads ...*workload) (float64, error) {
	var rates []float64
	for i := range 3 {
		each := make([]float64, len(workloads))
		errs := make([]error, len(workloads))
		var group sync.WaitGroup
		for k, w := range workloads {
			group.Go(func() { each[k], errs[k] = w.round(b.round / 3) })
		}
		group.Wait()
		sum := 0.0
		for k := range each {
			if errs[k] != nil {
				return 0, errs[k]
			}
			sum += each[k]
		}
		if i > 0 {
			rates = append(rates, sum)
		}
	}
	return median(rates), nil
}

// opened starts a workload whose gateway has the options of the embedded engine.
func opened(options string, fill func(folder string) error) (*workload, func(), error) {
	g, err := newGateway()
	if err != nil {
		return nil, nil, err
	}
	g.keepIn(options)
	if err := fill(g.store()); err != nil {
		g.remove()
		return nil, nil, err
	}
	w, err := newWorkload(g)
	if err != nil {
		g.remove()
		return nil, nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	return w, func() { w.close(); g.remove() }, nil
}

func nothing(string) error { return nil }

// besideFilled measures gateways whose store has n tasks. A million are copied from the
// fixture, if there is one.
func besideFilled(put putter, fixture string) func(*bench, string) (func(int) (float64, error), func(), error) {
	return func(b *bench, _ string) (func(int) (float64, error), func(), error) {
		return func(n int) (float64, error) {
			w, end, err := opened("", func(folder string) error {
				if n == million && fixture != "" {
					return copyFixture(fixture, folder)
				}
				return fillMany(folder, b.some(n), 1, put)
			})
			if err != nil {
				return 0, err
			}
			defer end()
			return medianOf(b, w)
		}, func() {}, nil
	}
}

// toHosts measures deliveries to n hosts.
func toHosts(b *bench, _ string) (func(int) (float64, error), func(), error) {
	return func(n int) (float64, error) {
		ours, _, err := drain(n, concurrency, b.some(10_000))
		return ours, err
	}, func() {}, nil
}

// sized measures tasks with results of n bytes.
func sized(b *bench, _ string) (func(int) (float64, error), func(), error) {
	w, end, err := opened("", nothing)
	if err != nil {
		return nil, nil, err
	}
	return func(n int) (float64, error) {
		w.app.respond(ok("text/plain", bytes.Repeat([]byte("x"), b.some(n))))
		w.clients = clients
		if n > 1_000_000 {
			w.clients = 8 // as many results are in memory
		}
		return medianOf(b, w)
	}, end, nil
}

// writers measures n clients at once, with a mode of fsync.
func writers(b *bench, mode string) (func(int) (float64, error), func(), error) {
	w, end, err := opened(mode, nothing)
	if err != nil {
		return nil, nil, err
	}
	return func(n int) (float64, error) {
		w.clients = n
		return medianOf(b, w)
	}, end, nil
}

// gateways measures n gateways that share a cluster of three servers. They share the
// clients too.
func gateways(b *bench, _ string) (func(int) (float64, error), func(), error) {
	c, err := startCluster(3)
	if err != nil {
		c.remove()
		return nil, nil, err
	}
	var all []*workload
	end := func() {
		for _, w := range all {
			w.close()
			w.g.remove()
		}
		c.remove()
	}
	return func(n int) (float64, error) {
		for len(all) < n {
			g, err := newGateway()
			if err != nil {
				return 0, err
			}
			c.use(g)
			w, err := startWorkload(g, "", waitingSite)
			if err != nil {
				return 0, fmt.Errorf("%w: %s", err, g.lastLog())
			}
			all = append(all, w)
		}
		for _, w := range all {
			w.clients = clients / n
		}
		return medianOf(b, all...)
	}, end, nil
}
