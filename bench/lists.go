package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// lists measures a page of each list of the API, with 1,000,000 tasks in the store.
func lists(b *bench) ([]row, error) {
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	n := b.some(1_000_000)
	err = fill(g.store(), n, func(ctx context.Context, e engine.Engine, i int) error {
		if i%2 == 0 {
			return queued(ctx, e)
		}
		host := fmt.Sprintf("127.1.%d.%d:1", i>>8&255, i&255)
		return addDelivery(ctx, e, "http://"+host+"/hook", host)
	})
	if err != nil {
		return nil, err
	}
	site, err := freeAddr()
	if err != nil {
		return nil, err
	}
	if _, err := g.start(g.options("", "retry 1h"), siteAt(site, "callback\nrespond ok")); err != nil {
		return nil, err
	}
	var rows []row
	for _, path := range []string{
		"tasks?limit=50", "tasks?limit=50&state=queued", "tasks?limit=50&state=delivering&host=127.1.3.1", "tasks?limit=50&status=COMPLETE",
		"tasks?limit=50&queue=q&older_than=1s", "hosts", "queues", "overview",
	} {
		took, err := medianTime(b, "http://"+g.admin+"/callback/"+path)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{what: "`" + path + "`", measured: number(millis(took)) + " ms", target: "≤ 20 ms", met: took <= 20*time.Millisecond})
	}
	return rows, nil
}

func medianTime(b *bench, url string) (time.Duration, error) {
	var all []time.Duration
	for range 10 * b.rounds {
		took, err := timed(func() error {
			resp, err := http.Get(url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", url, resp.Status)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		})
		if err != nil {
			return 0, err
		}
		all = append(all, took)
	}
	return quantile(all, 0.5), nil
}
