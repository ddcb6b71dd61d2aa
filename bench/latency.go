package main

import (
	"fmt"
	"time"
)

// latencies measures, at 200 tasks per second, the time from the last byte of the
// endpoint's response to the callback, and from the 202 of a queue to the start of the
// task.
func latencies(b *bench) ([]row, error) {
	const rate = 200
	arrived, answered, begun, accepted := newStamps(), newStamps(), newStamps(), newStamps()
	app, err := serve("127.0.0.1:0", ok("application/json", body))
	if err != nil {
		return nil, err
	}
	defer app.close()
	app.onAnswer = answered.mark
	work, err := serve("127.0.0.1:0", ok("application/json", body))
	if err != nil {
		return nil, err
	}
	defer work.close()
	work.onRequest = begun.mark
	rcv, err := serve("127.0.0.1:0", ok("text/plain", nil))
	if err != nil {
		return nil, err
	}
	defer rcv.close()
	rcv.onRequest = arrived.mark

	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	waiting, err := freeAddr()
	if err != nil {
		return nil, err
	}
	queued, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, err = g.start(g.options("", ""), siteAt(waiting, "callback\nreverse_proxy "+app.addr)+
		siteAt(queued, "task_queue q {\nreverse_proxy "+work.addr+"\n}"))
	if err != nil {
		return nil, err
	}
	d := b.round * time.Duration(b.rounds)
	request := post("a", "/", "application/json", filler(200, fmt.Sprintf(`"callback_url":"http://%s/hook",`, rcv.addr)))
	if err := steady(waiting, rate, d, 200, [][]byte{request}, nil); err != nil {
		return nil, err
	}
	if err := awaitAll("callbacks", answered.len(), arrived.len); err != nil {
		return nil, err
	}
	if err := steady(queued, rate, d, 202, [][]byte{post("a", "/", "application/json", filler(200, ""))}, accepted.mark); err != nil {
		return nil, err
	}
	if err := awaitAll("queued tasks", accepted.len(), begun.len); err != nil {
		return nil, err
	}
	var rows []row
	for _, c := range []struct {
		what  string
		waits []time.Duration
	}{
		{"from the upstream's last byte to the callback at the receiver, 200/s", arrived.since(answered)},
		{"a queue's task, from its 202 to its start, 200/s", begun.since(accepted)},
	} {
		for _, q := range []struct {
			name  string
			at    float64
			limit time.Duration
		}{{"p50", 0.5, time.Millisecond}, {"p99", 0.99, 5 * time.Millisecond}} {
			got := quantile(c.waits, q.at)
			rows = append(rows, row{
				what: c.what + ", " + q.name, measured: number(millis(got)) + " ms", against: "", ratio: "",
				target: "< " + number(millis(q.limit)) + " ms", met: got < q.limit,
			})
		}
	}
	return rows, nil
}
