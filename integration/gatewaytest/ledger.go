package gatewaytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Ledger holds what clients were told and what receivers got.
type Ledger struct {
	mu       sync.Mutex
	Accepted map[string]bool            // task IDs that a client has seen
	Verdicts map[string]map[string]bool // by task ID
	Arrived  int
}

// NewLedger writes down what rcv gets until done is closed.
func NewLedger(rcv *Receiver, done <-chan struct{}) *Ledger {
	l := &Ledger{Accepted: make(map[string]bool), Verdicts: make(map[string]map[string]bool)}
	go func() {
		for {
			select {
			case c := <-rcv.Got:
				l.mu.Lock()
				if l.Verdicts[c.TaskID()] == nil {
					l.Verdicts[c.TaskID()] = make(map[string]bool)
				}
				l.Verdicts[c.TaskID()][c.Status()] = true
				l.Arrived++
				l.mu.Unlock()
			case <-done:
				return
			}
		}
	}()
	return l
}

// Accept notes that a client was told of a task.
func (l *Ledger) Accept(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Accepted[id] = true
}

// Settled returns nil once every accepted task has its callback; two verdicts
// on one task are fatal.
func (l *Ledger) Settled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := 0
	for id := range l.Accepted {
		switch len(l.Verdicts[id]) {
		case 0:
			missing++
		case 1:
		default:
			return Fatal(fmt.Errorf("task %s has the verdicts %v", id, l.Verdicts[id]))
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d accepted tasks have no callback", missing, len(l.Accepted))
	}
	return nil
}

// ErrBroken is a request whose connection was closed under it: Caddy closes idle
// connections when it reloads, also one that a request is on its way on.
var ErrBroken = errors.New("connection broken")

// Write sends tasks until stop is closed. Every task ID that comes back is
// accepted in the ledger. A failed request is passed to failed.
func (l *Ledger) Write(g *Gateway, callbackURL string, stop <-chan struct{}, failed func(error)) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	for {
		select {
		case <-stop:
			return
		default:
		}
		resp, err := client.Post(g.URL("/"), "application/json", strings.NewReader(body))
		if err != nil {
			failed(fmt.Errorf("%w: %w", ErrBroken, err))
			continue
		}
		if id := resp.Header.Get("beam-task-id"); id != "" {
			l.Accept(id)
		}
		if resp.StatusCode != http.StatusOK {
			failed(fmt.Errorf("%s", resp.Status))
		}
		resp.Body.Close()
	}
}

// Pause lets a moment of load pass.
func Pause(d time.Duration) { <-time.After(d) }

// AnswerSoon answers the documented example within 3 ms.
func AnswerSoon(w http.ResponseWriter, _ *http.Request) {
	Pause(rand.N(3 * time.Millisecond))
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"response":"example response"}`))
}
