package main

import (
	"fmt"
	"strings"
	"time"
)

// clients is the number of connections that send at once, as in the targets.
const clients = 64

// filler returns a JSON object of about n bytes that begins with the members in head.
func filler(n int, head string) []byte {
	object := "{" + head + `"prompt":"`
	return []byte(object + strings.Repeat("x", max(0, n-len(object)-2)) + `"}`)
}

// sites returns two sites that differ in one line: the first has the callback directive.
func sites(withCallback, without, app string) string {
	return siteAt(withCallback, "callback\nreverse_proxy "+app) + siteAt(without, "reverse_proxy "+app)
}

// twoSites starts a gateway with two sites in front of an app, one with the callback
// directive and one without.
func twoSites(app string) (g *gateway, with, without string, err error) {
	if g, err = newGateway(); err != nil {
		return
	}
	if with, err = freeAddr(); err != nil {
		return
	}
	if without, err = freeAddr(); err != nil {
		return
	}
	_, err = g.start(g.options("", ""), sites(with, without, app))
	return
}

// proxied compares requests that are not tasks with the same requests to a site without
// the callback directive.
func proxied(b *bench) ([]row, error) {
	// Use many short rounds: long rounds vary by more than the targets allow.
	b = &bench{rounds: 5 * b.rounds, round: b.round / 4, scale: b.scale, budget: b.budget}
	app, err := serve("127.0.0.1:0", ok("application/json", []byte(`{"response":"example response"}`)))
	if err != nil {
		return nil, err
	}
	defer app.close()
	var addrs [3]string
	for i := range addrs {
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	with, without, buffered := addrs[0], addrs[1], addrs[2]
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	buffering := siteAt(buffered, "reverse_proxy "+app.addr+" {\nrequest_buffers 2MiB\n}")
	if _, err := g.start(g.options("", ""), sites(with, without, app.addr)+buffering); err != nil {
		return nil, err
	}
	var rows []row
	for _, c := range []struct {
		what    string
		request []byte
		clients int
		least   float64
		p99     bool
		large   bool // if so, also compare with a plain proxy that buffers the body
	}{
		{"a request that is no JSON, requests/s", post("a", "/", "text/plain", filler(200, "")), clients, 0.98, true, false},
		{"JSON of 1 KiB without the member, requests/s", post("a", "/", "application/json", filler(1<<10, "")), clients, 0.95, false, false},
		{"JSON of 1 MiB without the member, requests/s", post("a", "/", "application/json", filler(1<<20, "")), 4, 0.90, false, true},
	} {
		var rate, p99, floor pairs
		for i := range b.turns(1.0 / 3) {
			ours, theirs, err := turns(with, without, c.clients, b.round, c.request, i%2 == 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %s", c.what, err, g.lastLog())
			}
			if i == 0 {
				continue // warm-up
			}
			rate.add(ours.rate(), theirs.rate())
			if c.large {
				whole, err := closed(buffered, c.clients, b.round, 200, c.request)
				if err != nil {
					return nil, fmt.Errorf("%s: %w: %s", c.what, err, g.lastLog())
				}
				floor.add(ours.rate(), whole.rate())
			}
			p99.add(millis(ours.quantile(0.99)), millis(theirs.quantile(0.99)))
		}
		rows = append(rows, rate.atLeast(c.what, "", c.least))
		if c.p99 {
			rows = append(rows, p99.atMost("the same, p99", " ms", 1.05))
		}
		if c.large {
			rows = append(rows, floor.beside("the same beside `request_buffers 2MiB`", ""))
		}
	}
	return rows, nil
}

// turns measures two sites one after the other. swap reverses the order.
func turns(a, b string, clients int, d time.Duration, request []byte, swap bool) (first, second load, err error) {
	if swap {
		second, first, err = turns(b, a, clients, d, request, false)
		return first, second, err
	}
	if first, err = closed(a, clients, d, 200, request); err != nil {
		return
	}
	second, err = closed(b, clients, d, 200, request)
	return
}
