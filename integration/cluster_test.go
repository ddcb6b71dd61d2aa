package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestGatewayDeliversForKilledOne(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	working, release := make(chan struct{}), make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		close(working)
		<-release
	})
	t.Cleanup(func() { close(release) })
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\nreverse_proxy " + app
	a := gatewaytest.Start(t, c.Options(), site)
	gatewaytest.Start(t, c.Options(), site)
	go func() {
		_, _, _ = gatewaytest.Send(http.MethodPost, a.URL("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json") // the response breaks off
	}()
	<-working
	a.Kill()
	if got := rcv.Next(t); got.Status() != "FAILED" || !strings.HasPrefix(got.Body, "error=the+gateway") {
		t.Errorf("the callback is %v %s", got.Header, got.Body)
	}
}

func TestGatewayWaitsForCluster(t *testing.T) {
	t.Parallel()
	c := gatewaytest.NewCluster(t, 1)
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, c.Options(), "callback\nreverse_proxy "+app)
	if resp, _ := g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		t.Errorf("a plain request got %s", resp.Status)
	}
	body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
	if resp, _ := g.Post("/", body); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a request for a callback got %s %v", resp.Status, resp.Header)
	}
	c.Start(0)
	g.Eventually("callbacks are accepted", func() error {
		if resp, text := g.Post("/", body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		return nil
	})
	rcv.Next(t)
}

func TestKillingServersInTurnLosesNothing(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 3)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\nreverse_proxy " + gatewaytest.NewApp(t, gatewaytest.AnswerSoon)
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)}
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	for _, g := range gateways {
		g.Eventually("callbacks are accepted", func() error {
			resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s %s", resp.Status, text)
			}
			return nil
		})
	}
	stop, written := make(chan struct{}), make(chan struct{}, 4)
	for i := range 4 {
		go func() {
			l.Write(gateways[i%2], rcv.URL, stop, func(error) { gatewaytest.Pause(10 * time.Millisecond) })
			written <- struct{}{}
		}()
	}
	for i := range c.Servers {
		gatewaytest.Pause(time.Second)
		c.Kill(i)
		gatewaytest.Pause(time.Second)
		c.Start(i)
		gatewaytest.Pause(3 * time.Second)
	}
	close(stop)
	for range 4 {
		<-written
	}
	l.Drain(t)
	t.Logf("%+v", l.Tally())
}
