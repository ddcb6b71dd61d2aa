package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// load is what a system has to carry in a round.
type load struct {
	size int  // of the bodies, in bytes
	rate int  // tasks a second; 0 for as many as the system accepts
	kill bool // in the middle of the round
}

func (l load) String() string {
	what := "as fast as it goes"
	switch {
	case l.kill:
		what = "killed meanwhile"
	case l.rate > 0:
		what = fmt.Sprintf("%d/s", l.rate)
	}
	return fmt.Sprintf("%d bytes, %s", l.size, what)
}

// result is the outcome of a round.
type result struct {
	rate           float64 // tasks a second, until the last callback
	accepted, wait []time.Duration
	lost, repeated int
}

// round starts a system, sends the load, and waits for the callbacks. Then it ends the
// system.
func (s *settings) round(p *peer, sys *system, l load) (r result, err error) {
	if err := sys.clean(); err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, sys.kill()) }()
	if err := sys.start(); err != nil {
		return result{}, err
	}
	p.reset()
	c := &clients{peer: p, system: sys, load: l}
	began := time.Now()
	ctx, stop := context.WithCancel(context.Background())
	var restarted error
	go func() {
		defer stop()
		time.Sleep(s.duration / 2)
		if l.kill {
			if restarted = cmp.Or(sys.kill(), sys.start()); restarted != nil {
				return
			}
		}
		time.Sleep(s.duration / 2)
	}()
	c.send(ctx, s.clients)
	if restarted != nil {
		return result{}, restarted
	}
	last := p.settle(s.patience)
	r = p.result()
	r.accepted = c.took
	r.rate = float64(len(r.accepted)-r.lost) / last.Sub(began).Seconds()
	if len(r.accepted) == 0 {
		return r, fmt.Errorf("no task was accepted: %w", c.err)
	}
	return r, nil
}

// settle waits until each accepted task has its callback, or none has arrived for a
// while. It returns when the last one arrived.
func (p *peer) settle(patience time.Duration) time.Time {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n, moved := p.missing()
		if n == 0 || time.Since(moved) > patience {
			return moved
		}
		<-tick.C
	}
}

// result returns what became of the accepted tasks.
func (p *peer) result() (r result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.tasks {
		switch {
		case e.calls == 0 && !e.accepted.IsZero():
			r.lost++
		case e.calls > 1:
			r.repeated++
		}
		if e.calls > 0 && !e.answered.IsZero() {
			r.wait = append(r.wait, max(0, e.called.Sub(e.answered)))
		}
	}
	return r
}

// clients submit tasks.
type clients struct {
	peer   *peer
	system *system
	load   load

	mu   sync.Mutex
	took []time.Duration // from the submission to its acceptance
	err  error           // the last one
}

// send submits tasks until the context ends, one after the other by each client, or at
// the rate of the load.
func (c *clients) send(ctx context.Context, n int) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n, MaxIdleConns: n}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var turns chan time.Time // nil if the clients do not wait for their turn
	if c.load.rate > 0 {
		turns = make(chan time.Time, n)
		go func() {
			defer close(turns)
			tick := time.NewTicker(time.Second / time.Duration(c.load.rate))
			defer tick.Stop()
			for {
				select {
				case now := <-tick.C:
					select {
					case turns <- now:
					default: // the system is slower than the rate
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			for ctx.Err() == nil {
				if turns != nil {
					if _, ok := <-turns; !ok {
						return
					}
				}
				c.submit(client)
			}
		})
	}
	group.Wait()
}

// retryWait is the wait after a submission that failed.
const retryWait = 5 * time.Millisecond

func (c *clients) submit(client *http.Client) {
	id := newID()
	began := time.Now()
	err := c.post(client, id)
	now := time.Now()
	c.mu.Lock()
	if err != nil {
		c.err = err
	} else {
		c.took = append(c.took, now.Sub(began))
	}
	c.mu.Unlock()
	if err != nil {
		time.Sleep(retryWait)
		return
	}
	c.peer.mark(id, func(e *entry) { e.accepted = now })
}

func (c *clients) post(client *http.Client, id string) error {
	values := []string{"{id}", id, "{callback}", c.peer.callbackURL(id), "{run}", c.peer.runURL()}
	body := strings.NewReplacer(values...).Replace(c.system.Body)
	filler := strings.Repeat("x", max(0, c.load.size-len(body)+len("{data}")))
	fill := strings.NewReplacer(append(values, "{data}", filler)...)
	req, err := http.NewRequest(http.MethodPost, fill.Replace(c.system.Submit), strings.NewReader(fill.Replace(c.system.Body)))
	if err != nil {
		return err
	}
	for name, value := range c.system.Headers {
		req.Header.Set(name, fill.Replace(value))
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("the answer is %s", resp.Status)
	}
	return nil
}

// medians returns the medians of some rounds as the cells of a row. Lost and repeated
// tasks are added up.
func medians(rounds []result) string {
	middle := func(of func(r result) float64) float64 {
		values := make([]float64, len(rounds))
		for i, r := range rounds {
			values[i] = of(r)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	quantile := func(of func(r result) []time.Duration, q float64) string {
		ms := middle(func(r result) float64 {
			waits := slices.Sorted(slices.Values(of(r)))
			if len(waits) == 0 {
				return 0
			}
			return waits[min(len(waits)-1, int(q*float64(len(waits))))].Seconds() * 1000
		})
		return fmt.Sprintf("%.1f ms", ms)
	}
	lost, repeated := 0, 0
	for _, r := range rounds {
		lost, repeated = lost+r.lost, repeated+r.repeated
	}
	accepted := func(r result) []time.Duration { return r.accepted }
	wait := func(r result) []time.Duration { return r.wait }
	return strings.Join([]string{
		fmt.Sprintf("%.0f", middle(func(r result) float64 { return r.rate })),
		quantile(accepted, 0.5), quantile(accepted, 0.99), quantile(wait, 0.5), quantile(wait, 0.99),
		fmt.Sprint(lost), fmt.Sprint(repeated),
	}, " | ")
}
