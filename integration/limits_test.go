package integration

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// crowd counts concurrent callbacks.
type crowd struct {
	mu        sync.Mutex
	now, most map[string]int // by receiver; "" is the total
}

func newCrowd() *crowd { return &crowd{now: make(map[string]int), most: make(map[string]int)} }

func (c *crowd) enter(name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range []string{name, ""} {
		c.now[name] += n
		c.most[name] = max(c.most[name], c.now[name])
	}
}

// atOnce returns how many callbacks there were at once.
func (c *crowd) atOnce() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most[""]
}

// answer responds to a callback after a moment.
func (c *crowd) answer(w http.ResponseWriter, r *http.Request) {
	c.enter(r.Host, 1)
	gatewaytest.Pause(rand.N(20 * time.Millisecond))
	c.enter(r.Host, -1) // before the response, because the next callback may follow at once
	w.WriteHeader(http.StatusNoContent)
}

func TestLimitsHoldAcrossReloads(t *testing.T) {
	t.Parallel()
	const each, perHost, concurrency, slow = 300, 4, 6, 8
	crowd, accepted := newCrowd(), make(chan struct{})
	var receivers []*gatewaytest.Receiver
	for range 5 {
		receivers = append(receivers, gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
			<-accepted
			crowd.answer(w, r)
		}))
	}
	options := gatewaytest.Delivering("timeout 1h", fmt.Sprintf("per_host %d", perHost), fmt.Sprintf("concurrency %d", concurrency),
		fmt.Sprintf("slow %d", slow))
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, options, site)
	g.Tasks(each*len(receivers), func(i int) string { return receivers[i%len(receivers)].URL })
	close(accepted)
	for i := range 10 {
		g.Configure(strings.Replace(options, "ports any", fmt.Sprintf("ports any\nretry %dh", i+1), 1), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	for _, rcv := range receivers {
		for range each {
			rcv.Next(t)
		}
	}
	crowd.mu.Lock()
	defer crowd.mu.Unlock()
	for name, most := range crowd.most {
		if name != "" && most > perHost {
			t.Errorf("%d callbacks were with %s at once, with a limit of %d", most, name, perHost)
		}
	}
	// All receivers have one address, so half of the slots are reserved for others.
	if most := crowd.most[""]; most > concurrency+slow || most < slow/2 {
		t.Errorf("%d attempts were made at once, with %d slots", most, concurrency+slow)
	}
}

func TestReloadChangesLimits(t *testing.T) {
	t.Parallel()
	crowd := newCrowd()
	var limit, came atomic.Int64
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		crowd.enter(r.Host, 1)
		// With each answer, a host may get one more callback at once. After some answers,
		// callbacks wait for others: a slow gateway would not send as many at once.
		for n := came.Add(1); n > 20 && int64(crowd.atOnce()) < limit.Load() && r.Context().Err() == nil; {
			gatewaytest.Pause(time.Millisecond)
		}
		gatewaytest.Pause(rand.N(20 * time.Millisecond))
		crowd.enter(r.Host, -1) // before the response, because the next callback may follow at once
		w.WriteHeader(http.StatusNoContent)
	})
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 1"), site)
	for _, n := range []int{1, 3, 2} {
		g.Configure(gatewaytest.Delivering(fmt.Sprintf("per_host %d", n)), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
		crowd.mu.Lock()
		clear(crowd.most)
		crowd.mu.Unlock()
		came.Store(0)
		limit.Store(int64(n))
		g.Tasks(100, to(rcv.URL))
		for range 100 {
			rcv.Next(t)
		}
		if most := crowd.atOnce(); most != n {
			t.Errorf("%d callbacks were with the receiver at once, want %d", most, n)
		}
	}
}

func TestBacklogIsDeliveredOnce(t *testing.T) {
	t.Parallel()
	const each = 50
	rcv := gatewaytest.NewReceiver(t, newCrowd().answer)
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 1"), gatewaytest.ExampleSite(t))
	for range 2 {
		g.Tasks(each, to(rcv.URL))
		for range each {
			rcv.Next(t)
		}
	}
	g.Metered(map[string]float64{`tasks{state="delivering"}`: 0})
	if n := len(rcv.Got); n > 0 {
		t.Errorf("%d callbacks arrived twice", n)
	}
}

// connections counts the connections of requests.
type connections struct {
	mu   sync.Mutex
	from map[string]int
}

func (c *connections) answer(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from == nil {
		c.from = make(map[string]int)
	}
	c.from[r.RemoteAddr]++
	_, _ = w.Write(make([]byte, 10<<10)) // the connection can be reused only after this was read
}

func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	conns := new(connections)
	rcv := gatewaytest.NewReceiver(t, conns.answer)
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 4"), gatewaytest.ExampleSite(t))
	for range 50 {
		g.Task(rcv.URL)
		rcv.Next(t)
	}
	conns.mu.Lock()
	one := len(conns.from)
	conns.mu.Unlock()
	g.Tasks(200, to(rcv.URL))
	for range 200 {
		rcv.Next(t)
	}
	// A transport may dial for an attempt that then uses a connection that became idle,
	// and keep both. So there can be twice as many connections as the limit.
	if conns.mu.Lock(); one > 8 || len(conns.from) > 8 {
		t.Errorf("50 callbacks, one after the other, took %d connections, and 200 more %d", one, len(conns.from)-one)
	}
	conns.mu.Unlock()
}

// newTLSReceiver starts a receiver with TLS and HTTP/2. It also returns the environment
// with which a gateway trusts its certificate.
func newTLSReceiver(t *testing.T, answer http.HandlerFunc) (url, env string) {
	t.Helper()
	srv := gatewaytest.NewServer(t, answer)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return srv.URL, "SSL_CERT_FILE=" + file
}

func TestHTTP2UsesOneConnection(t *testing.T) {
	t.Parallel()
	conns := new(connections)
	got := make(chan int, 1000)
	url, env := newTLSReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		conns.answer(w, r)
		got <- r.ProtoMajor
	})
	g := gatewaytest.New(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	g.Env = []string{env}
	g.Start()
	g.Task(url)
	for range 100 {
		g.Task(url)
	}
	for range 101 {
		select {
		case major := <-got:
			if major != 2 {
				t.Fatalf("the callback was sent over HTTP/%d", major)
			}
		case <-time.After(gatewaytest.Patience):
			t.Fatal("no callback arrived")
		}
	}
	if conns.mu.Lock(); len(conns.from) > 2 {
		t.Errorf("%d connections were made", len(conns.from))
	}
	conns.mu.Unlock()
}

func TestUntrustedCertificateIsRefused(t *testing.T) {
	t.Parallel()
	called := make(chan struct{}, 10)
	url, _ := newTLSReceiver(t, func(http.ResponseWriter, *http.Request) { called <- struct{}{} })
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h"), gatewaytest.ExampleSite(t))
	got := g.Attempted(g.Task(url), 1)[0]
	if got.State != "retry" || !strings.Contains(got.Error, "certificate signed by unknown authority") {
		t.Errorf("the attempt is logged as %+v", got)
	}
	if len(called) > 0 {
		t.Error("the receiver was called")
	}
}

func TestAnswerLimitOverHTTP2(t *testing.T) {
	t.Parallel()
	sent := make(chan int, 1)
	url, env := newTLSReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		n := 0
		for {
			m, err := w.Write(make([]byte, 4096))
			if n += m; err != nil {
				sent <- n
				return
			}
		}
	})
	g := gatewaytest.New(t, gatewaytest.Delivering("timeout 30s", "retry 1h"), gatewaytest.ExampleSite(t))
	g.Env = []string{env}
	g.Start()
	if got := g.Attempted(g.Task(url), 1)[0]; got.StatusCode != 503 || got.State != "retry" {
		t.Errorf("the attempt is logged as %+v", got)
	}
	// The gateway's flow-control window is 64 KiB, and the server buffers a little.
	if n := <-sent; n > 256<<10 {
		t.Errorf("%d bytes were taken", n)
	}
}
