package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// timed returns the duration of f.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// fill opens a store and calls put for each task, several at a time. Bodies and records
// are like those of a gateway. They are only synced at the end.
func fill(folder string, n int, put func(ctx context.Context, e engine.Engine, i int) error) error {
	ctx := context.Background()
	e, err := sqlite.Open(ctx, sqlite.Config{Folder: folder, Sync: time.Minute, MaxSize: 100 << 30, Logger: zap.NewNop(),
		Settings: engine.Settings{Retention: 24 * time.Hour, RetentionCount: 1 << 40, Dead: 24 * time.Hour, DeadCount: 1 << 40, KeepResults: true}})
	if err != nil {
		return err
	}
	return errors.Join(parallel(256, n, func(i int) error { return put(ctx, e, i) }), e.Close(ctx))
}

// record returns the record of a task that has its result.
func record(url, host string) *task.Record {
	now := time.Now().UTC()
	return &task.Record{
		Task: task.Task{
			ID: newID(), Status: task.Complete, UpstreamStatus: 200,
			CreatedAt: now, StartedAt: now, FinishedAt: now, CallbackHost: host,
		},
		Callback: &task.Callback{URL: url, Format: "form", TaskHeader: "beam-task-id", StatusHeader: "x-beam-task-status", MaxResult: 8 << 20},
		Result:   &task.Result{ContentType: "application/json", Size: 31},
	}
}

var body = []byte(`{"response":"example response"}`)

// newID returns a task ID like those of the gateway.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// addDelivery stores a task whose callback is due.
func addDelivery(ctx context.Context, e engine.Engine, url, host string) error {
	rec := record(url, host)
	lease, err := e.Claim(ctx, rec)
	if err != nil {
		return err
	}
	return lease.Settle(ctx, rec, bytes.NewReader(body))
}

// receivers listens on n addresses of this machine, with one port, and counts requests.
func receivers(n int, arrived *atomic.Int64) (addrs []string, stop func(), err error) {
	var all []*peer
	stop = func() {
		for _, s := range all {
			s.close()
		}
	}
	port := "0"
	for i := range n {
		host := fmt.Sprintf("127.0.%d.%d", 1+i/250, 1+i%250)
		s, err := serve(net.JoinHostPort(host, port), ok("text/plain", nil))
		if err != nil {
			stop()
			return nil, nil, err
		}
		if i == 0 {
			_, port, _ = net.SplitHostPort(s.addr)
		}
		s.onRequest = func(string) { arrived.Add(1) }
		all, addrs = append(all, s), append(addrs, s.addr)
	}
	return addrs, stop, nil
}

// perHost and concurrency are the gateway's defaults.
const perHost, concurrency = 32, 256

// deliveries compares the delivery rate from a store full of callbacks with that of a
// loop that sends the same POST requests with the same number of workers.
func deliveries(b *bench) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		what    string
		hosts   int
		workers int
	}{
		{"to one host, deliveries/s", 1, perHost},
		{"to 1,000 hosts, deliveries/s", 1000, concurrency},
	} {
		var rate pairs
		for i := range b.turns(0.5) {
			n := b.some(20_000)
			ours, theirs, err := drain(c.hosts, c.workers, n)
			if err != nil {
				return nil, err
			}
			if i > 0 { // the first round is a warm-up
				rate.add(ours, theirs)
			}
		}
		rows = append(rows, rate.atLeast(c.what, "", 0.60))
	}
	return rows, nil
}

// drain measures one round: the gateway and the plain loop.
func drain(hosts, workers, n int) (ours, theirs float64, err error) {
	var arrived atomic.Int64
	addrs, stop, err := receivers(hosts, &arrived)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	if theirs, err = postLoop(addrs, workers, n); err != nil {
		return 0, 0, err
	}
	g, err := newGateway()
	if err != nil {
		return 0, 0, err
	}
	defer g.remove()
	err = fill(g.store(), n, func(ctx context.Context, e engine.Engine, i int) error {
		addr := addrs[i%len(addrs)]
		return addDelivery(ctx, e, "http://"+addr+"/hook", addr)
	})
	if err != nil {
		return 0, 0, err
	}
	site, err := freeAddr()
	if err != nil {
		return 0, 0, err
	}
	arrived.Store(0)
	first := make(chan time.Time, 1)
	go func() {
		for arrived.Load() == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		first <- time.Now()
	}()
	if _, err := g.start(g.options("", ""), siteAt(site, "callback")); err != nil {
		return 0, 0, err
	}
	if err := awaitAll("callbacks", n, func() int { return int(arrived.Load()) }); err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	return float64(n) / time.Since(<-first).Seconds(), theirs, nil
}

// postLoop posts n callbacks from a plain Go loop, with net/http and kept connections. It
// returns the rate per second.
func postLoop(addrs []string, workers, n int) (float64, error) {
	transport := &http.Transport{MaxIdleConns: workers + len(addrs), MaxIdleConnsPerHost: workers, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	took, err := timed(func() error {
		return parallel(workers, n, func(i int) error {
			resp, err := client.Post("http://"+addrs[i%len(addrs)]+"/hook", "application/x-www-form-urlencoded",
				strings.NewReader("response=example+response"))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		})
	})
	return float64(n) / took.Seconds(), err
}
