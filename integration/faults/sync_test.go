//go:build linux && amd64

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// syncs controls whether the fsyncs of a gateway fail.
type syncs struct {
	t    *testing.T
	file string
}

// newSyncs gives a gateway a disk whose fsync can fail. It must be called before the
// gateway starts.
func newSyncs(t *testing.T, g *gatewaytest.Gateway) *syncs {
	t.Helper()
	s := &syncs{t: t, file: filepath.Join(t.TempDir(), "syncs")}
	s.fail(false)
	g.Env = append(g.Env, syncFile+"="+s.file)
	return s
}

func (s *syncs) fail(fails bool) {
	s.t.Helper()
	f, err := os.OpenFile(s.file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	state := []byte{0, 0, 0, 0}
	if fails {
		state[0] = 1
	}
	if _, err := f.WriteAt(state, 0); err != nil {
		s.t.Fatal(err)
	}
}

// promises records how each request was answered, by its number.
type promises struct {
	t      *testing.T
	ledger *gatewaytest.Ledger

	mu      sync.Mutex
	sent    int
	refused map[string]bool // by the path of the callback's URL
}

// ask sends requests until stop is closed, each with a different URL.
func (p *promises) ask(g *gatewaytest.Gateway, path, receiver string, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		p.mu.Lock()
		p.sent++
		callback := path + fmt.Sprintf("/%d", p.sent)
		p.mu.Unlock()
		resp, _, err := gatewaytest.Send(http.MethodPost, g.URL(path), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, receiver+callback)),
			"Content-Type", "application/json")
		switch {
		case err != nil: // the gateway was killed before a response
			backOff(err)
		case resp.StatusCode < 300:
			p.ledger.Accept(resp.Header.Get("beam-task-id"))
		case resp.StatusCode == http.StatusServiceUnavailable:
			p.mu.Lock()
			p.refused[callback] = true
			p.mu.Unlock()
			gatewaytest.Pause(10 * time.Millisecond)
		default:
			p.t.Errorf("a request got %s", resp.Status)
		}
	}
}

// The gateway is killed while fsyncs fail, or continues. The next process finds what the
// gateway has written but could not sync.
func TestFailedFsyncsLoseNothing(t *testing.T) {
	t.Parallel()
	rounds := pick(2, 4, 30)
	p := &promises{t: t, refused: make(map[string]bool)}
	p.ledger = gatewaytest.NewLedger(&gatewaytest.Receiver{}, t.Context().Done())
	receiver := receive(t, func(_ http.ResponseWriter, path string, c gatewaytest.Callback) {
		p.mu.Lock()
		refused := p.refused[path]
		p.mu.Unlock()
		// A request to a queue is first claimed for a waiting client. If the gateway is
		// killed before it can release the claim, the task is FAILED.
		undone := strings.HasPrefix(path, "/q") && c.Status() == "FAILED" && strings.HasPrefix(c.Body, diedWith[0])
		if refused && !undone {
			t.Errorf("the refused request %s has a callback", path)
		}
		p.ledger.Arrive(c)
	})
	g := gatewaytest.New(t, gatewaytest.Delivering("retry"+strings.Repeat(" 1s", 100)), mixed(t, gatewaytest.AnswerSoon))
	disk := newSyncs(t, g)
	g.Start()
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() { p.ask(g, []string{"/", "/q"}[i%2], receiver, stop) })
	}
	for round := range rounds {
		gatewaytest.Pause(500 * time.Millisecond)
		p.mu.Lock()
		before := len(p.refused)
		p.mu.Unlock()
		disk.fail(true)
		g.Eventually("requests are refused", func() error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if len(p.refused) < before+20 {
				return errors.New("requests are accepted")
			}
			return nil
		})
		gatewaytest.Pause(rand.N(500 * time.Millisecond))
		if round%2 == 1 {
			g.Kill()
		}
		disk.fail(false)
		if round%2 == 1 {
			g.Start()
		}
		g.Eventually("requests are accepted again", func() error {
			return accepts(g, p.ledger, receiver+"/again")
		})
	}
	close(stop)
	clients.Wait()
	p.ledger.Drain(t)
	if len(p.refused) == 0 || !strings.Contains(g.Log.String(), "disk I/O error") {
		t.Error("no fsync failed")
	}
	undamaged(g)
	report(t, "4. fsync fails, with and without a kill", rounds, p.ledger.Tally())
}
