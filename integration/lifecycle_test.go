package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// ledger holds what clients were told and what receivers got.
type ledger struct {
	mu       sync.Mutex
	accepted map[string]bool            // task IDs that a client has seen
	verdicts map[string]map[string]bool // by task ID
	arrived  int
}

func newLedger(rcv *receiver, done <-chan struct{}) *ledger {
	l := &ledger{accepted: make(map[string]bool), verdicts: make(map[string]map[string]bool)}
	go func() {
		for {
			select {
			case c := <-rcv.got:
				l.mu.Lock()
				if l.verdicts[c.id()] == nil {
					l.verdicts[c.id()] = make(map[string]bool)
				}
				l.verdicts[c.id()][c.status()] = true
				l.arrived++
				l.mu.Unlock()
			case <-done:
				return
			}
		}
	}()
	return l
}

func (l *ledger) accept(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted[id] = true
}

// settled returns nil once every accepted task has its callback; two verdicts
// on one task are fatal.
func (l *ledger) settled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := 0
	for id := range l.accepted {
		switch len(l.verdicts[id]) {
		case 0:
			missing++
		case 1:
		default:
			return fatal{fmt.Errorf("task %s has the verdicts %v", id, l.verdicts[id])}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d accepted tasks have no callback", missing, len(l.accepted))
	}
	return nil
}

// errBroken is a request whose connection was closed under it: Caddy closes idle
// connections when it reloads, also one that a request is on its way on.
var errBroken = errors.New("connection broken")

// write sends tasks until stop is closed. Every task ID that comes back is
// accepted in the ledger. A failed request is passed to failed.
func (l *ledger) write(g *gateway, callbackURL string, stop <-chan struct{}, failed func(error)) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	for {
		select {
		case <-stop:
			return
		default:
		}
		resp, err := client.Post(g.url("/"), "application/json", strings.NewReader(body))
		if err != nil {
			failed(fmt.Errorf("%w: %w", errBroken, err))
			continue
		}
		if id := resp.Header.Get("beam-task-id"); id != "" {
			l.accept(id)
		}
		if resp.StatusCode != http.StatusOK {
			failed(fmt.Errorf("%s", resp.Status))
		}
		resp.Body.Close()
	}
}

// pause lets a moment of load pass.
func pause(d time.Duration) { <-time.After(d) }

func answerSoon(w http.ResponseWriter, _ *http.Request) {
	pause(rand.N(3 * time.Millisecond))
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"response":"example response"}`))
}

func TestReloadsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	site := "callback\nreverse_proxy " + newApp(t, answerSoon)
	g := startGateway(t, toLocal, site)
	l := newLedger(rcv, t.Context().Done())

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			l.write(g, rcv.URL, stop, func(err error) {
				if !errors.Is(err, errBroken) {
					t.Errorf("a request failed: %v", err)
				}
			})
		})
	}
	for i := range 15 {
		pause(200 * time.Millisecond)
		g.configure(strings.Replace(toLocal, "delivery {", fmt.Sprintf("delivery {\nper_host %d", 20+i%2), 1), site)
		if err := g.reload(); err != nil {
			t.Errorf("reload %d: %v", i, err)
		}
	}
	close(stop)
	writers.Wait()
	g.eventually("every accepted task has its callback", l.settled)
	if code := g.stop(); code != 0 {
		t.Errorf("the gateway exited with %d", code)
	}
	t.Logf("%d tasks over 15 reloads, %d callbacks", len(l.accepted), l.arrived)
}

func TestAKilledGatewayLosesNothing(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	g := startGateway(t, toLocal, "callback\nreverse_proxy "+newApp(t, answerSoon))
	l := newLedger(rcv, t.Context().Done())

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			l.write(g, rcv.URL, stop, func(error) { pause(10 * time.Millisecond) }) // it is down now and then
		})
	}
	for range 5 {
		pause(300*time.Millisecond + rand.N(400*time.Millisecond))
		g.kill()
		g.start()
	}
	close(stop)
	writers.Wait()
	g.eventually("every accepted task has its callback", l.settled)
	t.Logf("%d tasks over 5 kills, %d callbacks", len(l.accepted), l.arrived)
}

func TestAStoppedGatewayFinishesWhatItHas(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	working, finish := make(chan struct{}), make(chan struct{})
	g := startGateway(t, toLocal, "callback\nreverse_proxy "+newApp(t, func(w http.ResponseWriter, _ *http.Request) {
		close(working)
		<-finish
		_, _ = w.Write([]byte("done"))
	}))
	answered := make(chan string, 1)
	go func() {
		_, body, err := send(http.MethodPost, g.url("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json")
		answered <- fmt.Sprint(body, err)
	}()
	<-working
	stopped := make(chan int)
	go func() { stopped <- g.stop() }()
	g.eventually("the gateway is stopping", func() error {
		if !strings.Contains(g.log.String(), "shutting down apps") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	close(finish)
	if got := <-answered; got != "done<nil>" {
		t.Errorf("the client got %s", got)
	}
	if code := <-stopped; code != 0 {
		t.Errorf("exit code %d", code)
	}
	// The callback is sent before the process ends, or after it starts again.
	g.start()
	if c := rcv.next(t); c.status() != "COMPLETE" || c.body != "response=done" {
		t.Errorf("the callback is %s %s", c.status(), c.body)
	}
}
