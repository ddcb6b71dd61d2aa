package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// maxTaskAllocations bounds the allocations of a waiting client's task, including its
// delivery, in addition to those of the same request through plain Caddy. Some 50 of
// them are net/http's, for the POST to the receiver. Tasks one after the other make more
// than many at once, which share transactions. The bench's row allocations finds new ones.
const maxTaskAllocations = 250

func TestTaskMakesFewAllocations(t *testing.T) {
	t.Parallel()
	m := newMeter(t)
	const n = 1000
	m.tasks(n) // the first ones fill pools and caches
	got := m.tasks(n)
	t.Logf("a task makes %.0f allocations more than plain Caddy", got)
	if got > float64(gatewaytest.Growth(maxTaskAllocations)) {
		t.Errorf("a task makes %.0f allocations; at most %d are allowed", got, maxTaskAllocations)
	}
}

// BenchmarkTask reports the allocations of a task in addition to those of the same request
// through plain Caddy.
func BenchmarkTask(b *testing.B) {
	m := newMeter(b)
	m.tasks(1000)
	b.ResetTimer()
	b.ReportMetric(m.tasks(b.N), "more-allocs/op")
}

// meter counts the allocations of a gateway.
type meter struct {
	*gatewaytest.Gateway
	receiver *httptest.Server
	arrived  chan struct{}
}

func newMeter(t testing.TB) *meter {
	m := &meter{arrived: make(chan struct{}, 100)}
	m.receiver = gatewaytest.NewServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { m.arrived <- struct{}{} }))
	m.receiver.Start()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"response":"example response"}`) })
	m.Gateway = gatewaytest.New(t, gatewaytest.ToLocal, fmt.Sprintf("handle /task {\ncallback\nreverse_proxy %s\n}\nhandle {\nreverse_proxy %[1]s\n}", app))
	m.Edit("level DEBUG", "level ERROR")
	m.Start()
	return m
}

// tasks sends n tasks one after the other, and as many requests that are no tasks. It
// returns how many allocations a task makes more.
func (m *meter) tasks(n int) float64 {
	task := m.allocations(n, "/task", func() { <-m.arrived })
	plain := m.allocations(n, "/plain", func() {})
	return task - plain
}

// allocations returns the allocations for one of n requests. It calls after when a
// response is complete.
func (m *meter) allocations(n int, path string, after func()) float64 {
	const mallocs = "go_memstats_mallocs_total"
	body := fmt.Sprintf(`{"callback_url":%q}`, m.receiver.URL)
	before := m.Metrics()[mallocs]
	for range n {
		resp, err := http.Post(m.URL(path), "application/json", strings.NewReader(body))
		if err != nil {
			m.T.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			m.T.Fatalf("%s answers %s", path, resp.Status)
		}
		after()
	}
	return (m.Metrics()[mallocs] - before) / float64(n)
}
