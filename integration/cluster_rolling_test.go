package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestRollingRestartsLoseNothing(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, gatewaytest.AnswerSoon)
	site := "callback\ntask_queue /q* q {\nreverse_proxy " + app + "\n}\nreverse_proxy " + app
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)}
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	stop := make(chan struct{})
	var writers sync.WaitGroup
	pause := func(error) { gatewaytest.Pause(5 * time.Millisecond) }
	for i := range 4 {
		writers.Go(func() { l.Write(gateways[i%2], rcv.URL, stop, pause) })
	}
	writers.Go(func() { // queue tasks, to any running gateway
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			resp, _, err := gatewaytest.Send(http.MethodPost, gateways[i%2].URL("/q"),
				strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)), "Content-Type", "application/json")
			if err == nil && resp.StatusCode == http.StatusAccepted {
				l.Accept(resp.Header.Get("beam-task-id"))
			}
		}
	})
	for i := range 4 {
		gatewaytest.Pause(time.Second)
		g := gateways[i%2]
		if code := g.Stop(); code != 0 {
			t.Errorf("the gateway ended with %d", code)
		}
		changed := strings.Replace(c.Options(), "ports any", fmt.Sprintf("ports any\nper_host %d", 4+i), 1)
		g.Configure(fmt.Sprintf("retention %dh\n%s", 10+i, changed), site)
		g.Start()
	}
	close(stop)
	writers.Wait()
	l.Drain(t)
	sum := l.Tally()
	t.Logf("%+v", sum)
	if sum.Accepted == 0 || sum.Second > 0 {
		t.Errorf("%+v", sum)
	}
}

func TestEveryGatewayRunsTasksAndDelivers(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	// A gateway sends two callbacks at once to a host that has not answered: the third is the
	// other gateway's.
	var arrived atomic.Int64
	third := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		if arrived.Add(1) == 3 {
			close(third)
		}
		select {
		case <-third:
		case <-r.Context().Done():
		}
	})
	var mu sync.Mutex
	ran, both := make(map[string]int), make(chan struct{}) // number of tasks by gateway
	// Tasks run until both gateways have one: with two workers, one gateway cannot run all.
	app := func(name string) string {
		return gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // the server notices a disconnect only after this
			mu.Lock()
			if ran[name]++; ran[name] == 1 && len(ran) == 2 {
				close(both)
			}
			mu.Unlock()
			select {
			case <-both:
			case <-r.Context().Done():
			}
		})
	}
	site := func(name string) string {
		return "callback\ntask_queue /q* q {\nreverse_proxy " + app(name) + "\n}"
	}
	a := gatewaytest.Start(t, "queue q {\nworkers 2\n}\n"+c.Options(), site("a"))
	b := gatewaytest.Start(t, "queue q {\nworkers 2\n}\n"+c.Options(), site("b"))
	ids := make(map[string]bool)
	for range 100 { // all through one gateway
		ids[accepted(t, a, "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))] = true
	}
	rcv.Arrivals(t, make(map[string]int), len(ids))
	for id := range ids {
		reaches(t, b, "/q", id, task.Done)
	}
	mu.Lock()
	defer mu.Unlock()
	if ran["a"] == 0 || ran["b"] == 0 || ran["a"]+ran["b"] != 100 {
		t.Errorf("they ran %v", ran)
	}
	a.Attempted("", 1)
	b.Attempted("", 1)
}
