package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// accepts compares how many tasks a queue accepts a second with a bare loop
// that publishes messages of the same size to an engine of the same kind. The
// floor adds to it the time in which the gateway answers as many with 202 alone.
func accepts(b *bench) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		what, option string
		sync         time.Duration
	}{
		{"202s a second, 200-byte body, sync 10ms", "sync 10ms", 10 * time.Millisecond},
		{"202s a second, 200-byte body, sync always", "sync always", 0},
	} {
		var rate, floor pairs
		for range b.rounds {
			ours, answered, err := accepting(b, c.option)
			if err != nil {
				return nil, err
			}
			theirs, err := publishing(b, c.sync)
			if err != nil {
				return nil, err
			}
			rate.add(ours, theirs)
			floor.add(ours, 1/(1/answered+1/theirs))
		}
		rows = append(rows, rate.atLeast(c.what, "", 0.70),
			floor.beside("the same beside that loop and as many 202s of respond", ""))
	}
	return rows, nil
}

// accepting returns how many tasks a second a queue accepts, and how many such
// requests the same gateway answers with 202 and nothing else.
func accepting(b *bench, option string) (accepted, answered float64, err error) {
	g, site, err := queueGateway(option)
	if err != nil {
		return 0, 0, err
	}
	defer g.remove()
	request := func(path string) []byte { return post("a", path, "application/json", filler(200, "")) }
	took, err := closed(site, 2*clients, b.round, 202, request("/"))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, g.said())
	}
	bare, err := closed(site, 2*clients, b.round, 202, request("/respond"))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, g.said())
	}
	return took.rate(), bare.rate(), nil
}

// queueGateway starts a gateway with a queue whose one worker has work for ever:
// what is accepted waits.
func queueGateway(options string) (*gateway, string, error) {
	g, err := newGateway()
	if err != nil {
		return nil, "", err
	}
	site, err := startQueue(g, options)
	return g, site, err
}

func startQueue(g *gateway, options string) (string, error) {
	site, err := freeAddr()
	if err != nil {
		return "", err
	}
	busy, err := serve("127.0.0.1:0", nil)
	if err != nil {
		return "", err
	}
	_, err = g.start(g.options(options+"\nqueue q {\nworkers 1\nmax_queued 10000000\n}", ""),
		siteAt(site, "handle /respond {\nrespond 202\n}\nhandle {\ntask_queue q {\nreverse_proxy "+busy.addr+"\n}\n}"))
	return site, err
}

// asPublisher makes this program the bare loop: a process of its own, as the
// gateway is.
const asPublisher = "CALLBACK_BENCH_AS_PUBLISHER"

type publishPlan struct {
	Sync  time.Duration
	Round time.Duration
}

func publishing(b *bench, sync time.Duration) (float64, error) {
	return figureOf(asPublisher, publishPlan{sync, b.round})
}

// publish publishes for a while to an embedded server of the gateway's
// settings, each of the publishers the next message when the last is stored.
func publish(plan publishPlan) (float64, error) {
	js, stop, err := bareServer(plan.Sync)
	if err != nil {
		return 0, err
	}
	defer stop()
	ctx := context.Background()
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "BARE", Subjects: []string{"bare.*.*"}, Retention: jetstream.WorkQueuePolicy,
		MaxMsgsPerSubject: 1, AllowMsgSchedules: true, AllowDirect: true,
	})
	if err != nil {
		return 0, err
	}
	message := filler(200, "")
	counts := make([]int, 2*clients)
	began := time.Now()
	err = parallel(len(counts), len(counts), func(i int) error {
		for time.Since(began) < plan.Round {
			if _, err := js.Publish(ctx, "bare.q."+uuid.NewString(), message); err != nil {
				return err
			}
			counts[i]++
		}
		return nil
	})
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / time.Since(began).Seconds(), err
}
