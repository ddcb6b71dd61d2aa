package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// reloads loads the configuration n times at an interval. Every second time, the global
// options change.
func reloads(t *testing.T, g *gatewaytest.Gateway, n int, interval time.Duration, site string) {
	t.Helper()
	for i := range n {
		gatewaytest.Pause(interval)
		g.Configure(gatewaytest.Delivering(fmt.Sprintf("per_host %d", 20+i/2%3)), site)
		if err := g.Reload(); err != nil {
			t.Errorf("reload %d: %v", i, err)
		}
	}
}

// goroutines returns the number of goroutines of the gateway.
func goroutines(g *gatewaytest.Gateway) (n int, err error) {
	_, text, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/debug/pprof/goroutine?debug=1", http.NoBody)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &n); err != nil {
		return 0, fmt.Errorf("reading %.100q: %w", text, err)
	}
	return n, nil
}

func TestFrequentReloadsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	n := pick(10, 50, 600)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := mixed(t, gatewaytest.AnswerSoon)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), site)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	end := write(l, 8, []*gatewaytest.Gateway{g}, rcv.URL, func(err error) {
		if !errors.Is(err, gatewaytest.ErrBroken) {
			t.Errorf("a request failed: %v", err)
		}
	})
	reloads(t, g, n, 200*time.Millisecond, site)
	end()
	l.Drain(t)
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway exited with %d", code)
	}
	tally := l.Tally()
	if tally.Repeated > 0 {
		t.Errorf("%d callbacks were repeated although nothing was killed", tally.Repeated)
	}
	// The log shows if a store was opened twice.
	if log := g.Log.String(); strings.Contains(log, "in use by another process") || strings.Contains(log, "panic") {
		t.Error("the log has a panic, or an error of a store that was opened twice")
	}
	report(t, "8. reload every 200 ms under load", n, tally)
}

func TestReloadsLeakNoGoroutine(t *testing.T) {
	t.Parallel()
	const allowed = 10 // kept connections and the measurement itself
	rounds := pick(20, 20, 200)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := mixed(t, gatewaytest.AnswerSoon)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), site)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	l.Accept(g.Task(rcv.URL))
	l.Drain(t)
	reloads(t, g, 1, 0, site) // the first reload starts goroutines that stay
	var before int
	g.Eventually("goroutines are counted", func() (err error) {
		before, err = goroutines(g)
		return err
	})
	reloads(t, g, rounds, 0, site)
	g.Eventually("no goroutine is left", func() error {
		after, err := goroutines(g)
		if err == nil && after > before+allowed {
			err = fmt.Errorf("%d before, %d after %d reloads", before, after, rounds)
		}
		return err
	})
	l.Accept(g.Task(rcv.URL))
	l.Drain(t)
	report(t, "8. reload at rest, goroutines compared", rounds, l.Tally())
}

func TestGracefulStopLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	const tasks = 200
	rounds := pick(1, 4, 20)
	rcv := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {
		gatewaytest.Pause(rand.N(100 * time.Millisecond))
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 16"), mixed(t, gatewaytest.AnswerSoon))
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	for range rounds {
		for i := range tasks {
			path := []string{"/", "/q"}[i%2]
			resp, text := g.Post(path, fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
			if resp.StatusCode >= 300 {
				t.Fatalf("a request got %s %s", resp.Status, text)
			}
			l.Accept(resp.Header.Get("beam-task-id"))
		}
		if code := g.Stop(); code != 0 {
			t.Errorf("the gateway exited with %d", code)
		}
		g.Start()
	}
	l.Drain(t)
	g.Stop()
	tally := l.Tally()
	if tally.Repeated > 0 {
		t.Errorf("%d callbacks were repeated although nothing was killed", tally.Repeated)
	}
	report(t, "8. graceful stop with deliveries in flight", rounds, tally)
}
