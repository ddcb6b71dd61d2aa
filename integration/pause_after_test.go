package integration

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// listedHost is a host as the API lists it.
type listedHost struct {
	Host         string    `json:"host"`
	Pending      int       `json:"pending"`
	Failures     int       `json:"failures"`
	FailingSince time.Time `json:"failing_since"`
	Paused       bool      `json:"paused"`
}

func TestPauseAfterPausesFailingHost(t *testing.T) {
	t.Parallel()
	var works atomic.Bool
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !works.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	g := gatewaytest.New(t, gatewaytest.Delivering("retry 1s 10s 1s 10s", "pause_after 1s"), gatewaytest.ExampleSite(t))
	listening(g, "on callback_host_paused "+note("paused"))
	g.Start()
	a, host := adminAPI(t, g), hostOf(t, rcv.URL)
	id := g.Task(rcv.URL)
	// The second attempt is a second after the first. A resumed host gets two more. The
	// longer waits leave a slow disk the time to store the pause.
	for n := 1; n <= 2; n++ {
		event := events(g, "paused", n)[n-1]
		if !strings.Contains(event, "callback_host:"+host) || !strings.Contains(event, "last_status:503") || !strings.Contains(event, "failures:2 ") {
			t.Errorf("the event is %s", event)
		}
		g.Attempted(id, 2*n)
		var hosts []listedHost
		a.ask(http.MethodGet, "hosts", http.StatusOK, &hosts)
		if len(hosts) != 1 || !hosts[0].Paused || hosts[0].Pending != 1 || hosts[0].Failures != 2 || hosts[0].FailingSince.IsZero() {
			t.Errorf("the hosts are %+v", hosts)
		}
		if n == 2 {
			works.Store(true)
		}
		a.ask(http.MethodPost, "hosts/"+host+"/resume", http.StatusOK, nil)
	}
	if attempts := g.Attempted(id, 5); attempts[4].State != "delivered" {
		t.Errorf("the last attempt is %+v", attempts[4])
	}
	logs(g, "failing host paused")
}
