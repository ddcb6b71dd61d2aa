package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/pace"
)

// deliveringIn returns the options of a gateway in a cluster, with further lines of the
// delivery block.
func deliveringIn(c *gatewaytest.Cluster, lines ...string) string {
	return strings.Replace(c.Options(), "ports any", "ports any\n"+strings.Join(lines, "\n"), 1)
}

func TestDerivedKeysSignOnEveryGateway(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	var accepting atomic.Bool
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !accepting.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	options := deliveringIn(c, "secret "+hmacSecret, "derive_keys {header.x-customer}", gatewaytest.ManyTimes)
	site := gatewaytest.ExampleSite(t)
	a := gatewaytest.Start(t, options, site)
	id := a.Task(rcv.URL, "x-customer", "alice")
	first := rcv.Next(t)
	if code := a.Stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	b := gatewaytest.Start(t, options, site)
	accepting.Store(true)
	b.Attempted(id, 1)
	keys := make(map[string]string)
	for _, customer := range []string{"alice", "bob"} {
		keys[customer] = derivedKey(t, customer, "--secret", hmacSecret)[0]
	}
	last := rcv.Next(t)
	for len(rcv.Got) > 0 {
		last = rcv.Next(t)
	}
	for what, got := range map[string]gatewaytest.Callback{"the gateway that accepted the task": first, "the other gateway": last} {
		if err := verified(keys["alice"], got); err != nil {
			t.Errorf("from %s: %v", what, err)
		}
		if verified(keys["bob"], got) == nil || verified(hmacSecret, got) == nil {
			t.Errorf("from %s: it verifies with a key of another receiver", what)
		}
	}
}

func TestRatesCountOnEachGateway(t *testing.T) {
	t.Parallel()
	const interval, tasks = 200 * time.Millisecond, 14
	c := gatewaytest.StartCluster(t, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	options := "queue q {\nrate 50/10s\n}\n" + deliveringIn(c, "rate 50/10s")
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, options, site), gatewaytest.Start(t, options, site)}
	began := time.Now()
	var ids []string
	for i := range tasks {
		ids = append(ids, accepted(t, gateways[i%2], "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)))
	}
	starts := startsOf(t, gateways[0], ids)
	// One of the gateways has started at least half of the tasks, and attempted at least
	// half of the callbacks. The first may be earlier than the interval by the slack.
	least := (tasks/2-1)*interval - pace.Slack
	if took := starts[tasks-1].Sub(starts[0]); took < least {
		t.Errorf("two gateways have started %d tasks within %v, want %v at least", tasks, took, least)
	}
	var last gatewaytest.Callback
	for range tasks {
		last = rcv.Next(t)
	}
	if took := last.At.Sub(began); took < least {
		t.Errorf("two gateways have attempted %d callbacks within %v, want %v at least", tasks, took, least)
	}
}
