package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// lists measures a page of each list of the API, with 1,000,000 tasks in the store. Half
// of them wait in a queue, half are callbacks to 65,536 hosts.
func lists(b *bench) ([]row, error) {
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	if err := copyFixture(mixed, g.store()); err != nil {
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
	b = &bench{rounds: 10 * b.rounds, budget: b.budget}
	var all []time.Duration
	for range b.cold(1.0 / 8) {
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
	slices.Sort(all)
	return quantile(all, 0.5), nil
}
