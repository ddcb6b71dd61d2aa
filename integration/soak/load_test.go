package soak

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// load has the clients and the receivers of a gateway.
type load struct {
	gateway *gatewaytest.Gateway
	healthy []string // receivers' URLs
	flaky   string   // refuses one in five first attempts
	dead    string   // nothing listens there
	hole    string   // never answers; its connections close when over is closed
	over    chan struct{}

	mu        sync.Mutex
	tasks     map[string]*entry // whose callbacks are expected
	latencies []time.Duration   // since the last call of taken
	lags      []time.Duration
	failures  []error

	accepted, arrived, repeated, unreachable atomic.Int64
}

// entry is a task.
type entry struct {
	accepted time.Time
	arrived  int
}

// newLoad starts the receivers.
func newLoad(t *testing.T) *load {
	l := &load{tasks: make(map[string]*entry), over: make(chan struct{})}
	receive := func(refuse func(r *http.Request) bool) string {
		srv := gatewaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // a broken body is no callback; it is repeated
			if refuse(r) {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			l.arrive(r.Header.Get("beam-task-id"))
		}))
		srv.Start()
		return srv.URL
	}
	for range 8 {
		l.healthy = append(l.healthy, receive(func(*http.Request) bool { return false }))
	}
	l.flaky = receive(func(r *http.Request) bool { return r.Header.Get("callback-attempt") == "1" && rand.N(5) == 0 })
	l.dead = "http://" + freeaddr.New(t)
	l.hole = gatewaytest.NewPeer(t, func(conn net.Conn) {
		go func() {
			<-l.over
			conn.Close()
		}()
		_, _ = io.Copy(io.Discard, conn)
	})
	return l
}

func (l *load) of(id string) *entry {
	e := l.tasks[id]
	if e == nil {
		e = new(entry)
		l.tasks[id] = e
	}
	return e
}

func (l *load) arrive(id string) {
	now := time.Now()
	l.arrived.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.of(id)
	if e.arrived++; e.arrived > 1 {
		l.repeated.Add(1)
	}
	if e.accepted.IsZero() {
		l.lags = append(l.lags, 0) // the callback arrived before the client had its response
	} else {
		l.lags = append(l.lags, now.Sub(e.accepted))
	}
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, err)
}

// send sends one task. Two of three wait for their response, the others go
// through a queue. One callback in ten goes to the flaky receiver.
func (l *load) send(client *http.Client) {
	to := l.healthy[rand.N(len(l.healthy))]
	if rand.N(10) == 0 {
		to = l.flaky
	}
	path := []string{"/", "/", "/q"}[rand.N(3)]
	began := time.Now()
	id, err := l.post(client, path, to)
	if err != nil {
		l.fail(err)
		return
	}
	now := time.Now()
	l.accepted.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of(id).accepted = now
	l.latencies = append(l.latencies, now.Sub(began))
}

// sendUndeliverable sends a task to a receiver that is unreachable or never answers.
func (l *load) sendUndeliverable(client *http.Client) {
	if _, err := l.post(client, "/", []string{l.dead, l.hole}[rand.N(2)]); err != nil {
		l.fail(err)
		return
	}
	l.unreachable.Add(1)
}

func (l *load) post(client *http.Client, path, to string) (id string, err error) {
	resp, err := client.Post(l.gateway.URL(path), "application/json", strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, to)))
	if err != nil {
		// When Caddy reloads, it closes idle connections, even if a request is
		// arriving on one.
		return "", fmt.Errorf("%w: %w", gatewaytest.ErrBroken, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s", resp.Status, body)
	}
	return resp.Header.Get("beam-task-id"), err
}

// measure makes clients send one task after the other for a while, and returns
// how many callbacks arrived per second.
func (l *load) measure(clients int, d time.Duration) float64 {
	stop := make(chan struct{})
	var sending sync.WaitGroup
	began := time.Now()
	for range clients {
		sending.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
					l.send(client)
				}
			}
		})
	}
	gatewaytest.Pause(d)
	close(stop)
	sending.Wait()
	// Wait until nearly all have arrived, so that only completed work counts.
	for l.arrived.Load() < l.accepted.Load()*99/100 {
		gatewaytest.Pause(10 * time.Millisecond)
	}
	return float64(l.arrived.Load()) / time.Since(began).Seconds()
}

// hold sends tasks at a rate until stop is closed. It returns how many it could
// not send in time.
func (l *load) hold(rate float64, stop <-chan struct{}) (late int64) {
	const clients = 64
	turns := make(chan struct{}, clients)
	var sending sync.WaitGroup
	for range clients {
		sending.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for range turns {
				l.send(client)
			}
		})
	}
	sending.Go(func() { l.holdUndeliverable(stop) })
	defer sending.Wait()
	defer close(turns)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	began, sent := time.Now(), int64(0)
	for {
		select {
		case <-stop:
			return late
		case now := <-tick.C:
			for due := int64(now.Sub(began).Seconds() * rate); sent < due; sent++ {
				select {
				case turns <- struct{}{}:
				default:
					late++
				}
			}
		}
	}
}

// holdUndeliverable sends tasks to receivers that never answer. A host that does not
// answer has one attempt at a time. Here each attempt takes two seconds, and a task has
// four. One task in eight seconds for the black hole would keep it busy all the time, and
// with more the test itself would build up a backlog.
func (l *load) holdUndeliverable(stop <-chan struct{}) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(8 * time.Second) // every second one is for the black hole, on average
	defer tick.Stop()
	for {
		l.sendUndeliverable(client)
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// taken returns the latencies and the lags since its last call, sorted.
func (l *load) taken() (latencies, lags []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	latencies, lags = l.latencies, l.lags
	l.latencies, l.lags = nil, nil
	slices.Sort(latencies)
	slices.Sort(lags)
	return latencies, lags
}

// missing returns how many accepted tasks have no callback, and one of them.
func (l *load) missing() (n int, one string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, e := range l.tasks {
		if e.arrived == 0 {
			n, one = n+1, id
		}
	}
	return n, one
}
