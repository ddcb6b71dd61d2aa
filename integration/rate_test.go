package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/pace"
)

func TestDeliveryRateDelaysOneHostOnly(t *testing.T) {
	t.Parallel()
	const interval, tasks = 200 * time.Millisecond, 12
	limited := gatewaytest.NewReceiver(t, nil)
	other := gatewaytest.NewReceiver(t, nil)
	// There is one slot: a limited host that kept it would delay the other host.
	options := func(rate string) string { return gatewaytest.Delivering("rate "+rate, "concurrency 1", "slow 1") }
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, options("1/1h"), site)
	g.Tasks(tasks, func(int) string { return limited.URL })
	g.Eventually("the API reports that the rate delays callbacks", func() error {
		_, body, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/callback/hosts", nil)
		if err != nil {
			return err
		}
		var hosts []struct {
			RateLimited bool `json:"rate_limited"`
		}
		if err := json.Unmarshal([]byte(body), &hosts); err != nil || len(hosts) != 1 || !hosts[0].RateLimited {
			return fmt.Errorf("%s %w", body, err)
		}
		return nil
	})
	g.Task(other.URL)
	other.Next(t)
	limited.Next(t)
	if n := len(limited.Got); n > 0 {
		t.Errorf("%d callbacks of the limited host arrived before their time", n)
	}
	began := time.Now()
	g.Configure(options("50/10s"), site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	var last gatewaytest.Callback
	for range tasks - 1 {
		last = limited.Next(t)
	}
	// Measured from before the first attempt: a slow machine only takes longer.
	if took := last.At.Sub(began); took < (tasks-2)*interval-pace.Slack {
		t.Errorf("%d attempts started within %v", tasks, took)
	}
}
