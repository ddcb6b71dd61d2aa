package gatewaytest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Ledger records the task IDs that clients received and the callbacks that receivers
// received. A receiver with a ledger accepts every callback.
type Ledger struct {
	mu       sync.Mutex
	accepted map[string]bool            // task IDs that a client has seen
	verdicts map[string]map[string]bool // by task ID: statuses, each with a digest of the body
	arrived  int
}

// NewLedger records the callbacks of rcv until done is closed.
func NewLedger(rcv *Receiver, done <-chan struct{}) *Ledger {
	l := &Ledger{accepted: make(map[string]bool), verdicts: make(map[string]map[string]bool)}
	go func() {
		for {
			select {
			case c := <-rcv.Got:
				l.Arrive(c)
			case <-done:
				return
			}
		}
	}()
	return l
}

// Accept records the ID of an accepted task.
func (l *Ledger) Accept(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted[id] = true
}

// Arrive records a callback that a receiver accepted.
func (l *Ledger) Arrive(c Callback) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.verdicts[c.TaskID()] == nil {
		l.verdicts[c.TaskID()] = make(map[string]bool)
	}
	digest := sha256.Sum256([]byte(c.Body))
	l.verdicts[c.TaskID()][fmt.Sprintf("%s %x", c.Status(), digest[:6])] = true
	l.arrived++
}

// missing returns how many accepted tasks have no callback, and an error if there are
// any. Two verdicts on one task, or two results, are fatal.
func (l *Ledger) missing() (n int, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := ""
	for id := range l.accepted {
		switch len(l.verdicts[id]) {
		case 0:
			n, one = n+1, id
		case 1:
		default:
			return math.MaxInt, Fatal(fmt.Errorf("task %s has the verdicts %v", id, l.verdicts[id]))
		}
	}
	if n > 0 {
		return n, fmt.Errorf("%d of %d accepted tasks have no callback, as %s", n, len(l.accepted), one)
	}
	return 0, nil
}

// Drain waits until every accepted task has its callback. It fails if none arrives for
// the duration of [Patience].
func (l *Ledger) Drain(t testing.TB) {
	t.Helper()
	for most := math.MaxInt; most > 0; {
		Eventually(t, "every accepted task has its callback", func() error {
			n, err := l.missing()
			if err == nil || n < most {
				most = n
				return nil
			}
			return err
		})
	}
}

// Accepted returns the IDs of accepted tasks.
func (l *Ledger) Accepted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.accepted))
}

// Statuses returns the verdicts in the callbacks of a task.
func (l *Ledger) Statuses(id string) (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for verdict := range l.verdicts[id] {
		status, _, _ := strings.Cut(verdict, " ")
		all = append(all, status)
	}
	return all
}

// A Tally has the numbers of a ledger.
type Tally struct {
	Accepted int // tasks whose IDs clients have seen
	Arrived  int // callbacks, including those of clients that were cut off before they saw the ID
	Lost     int // accepted tasks without a callback
	Repeated int // callbacks beyond the first of their task
	Second   int // verdicts, or results, beyond the first of their task
}

// Tally counts what the ledger has recorded.
func (l *Ledger) Tally() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	tally := Tally{Accepted: len(l.accepted), Arrived: l.arrived, Repeated: l.arrived - len(l.verdicts)}
	for id := range l.accepted {
		if len(l.verdicts[id]) == 0 {
			tally.Lost++
		}
	}
	for _, verdicts := range l.verdicts {
		tally.Second += len(verdicts) - 1
	}
	return tally
}

// ErrBroken is the error for a request whose connection was closed. A reload closes idle
// connections, even if a request is arriving on one.
var ErrBroken = errors.New("connection broken")

// Write sends tasks to the root of the site, see [Ledger.WriteTo].
func (l *Ledger) Write(g *Gateway, callbackURL string, stop <-chan struct{}, failed func(error)) {
	l.WriteTo(g, "/", callbackURL, stop, failed)
}

// WriteTo sends tasks until stop is closed. It accepts every task ID in a response into
// the ledger, except those in the gateway's own refusals. It passes failed requests to
// failed.
func (l *Ledger) WriteTo(g *Gateway, path, callbackURL string, stop <-chan struct{}, failed func(error)) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	for {
		select {
		case <-stop:
			return
		default:
		}
		resp, err := client.Post(g.URL(path), "application/json", strings.NewReader(body))
		if err != nil {
			failed(fmt.Errorf("%w: %w", ErrBroken, err))
			continue
		}
		refused := resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Content-Type") == "application/problem+json"
		if id := resp.Header.Get("beam-task-id"); id != "" && !refused {
			l.Accept(id)
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
			failed(fmt.Errorf("%s", resp.Status))
		}
		resp.Body.Close()
	}
}

// Pause waits for d while other goroutines produce load.
func Pause(d time.Duration) { <-time.After(d) }

// AnswerSoon responds with the documented example within 3 ms.
func AnswerSoon(w http.ResponseWriter, _ *http.Request) {
	Pause(rand.N(3 * time.Millisecond))
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"response":"example response"}`))
}
