package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestReloadsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\nreverse_proxy " + gatewaytest.NewApp(t, gatewaytest.AnswerSoon)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			l.Write(g, rcv.URL, stop, func(err error) {
				if !errors.Is(err, gatewaytest.ErrBroken) {
					t.Errorf("a request failed: %v", err)
				}
			})
		})
	}
	for i := range 15 {
		gatewaytest.Pause(200 * time.Millisecond)
		g.Configure(strings.Replace(gatewaytest.ToLocal, "delivery {", fmt.Sprintf("delivery {\nper_host %d", 20+i%2), 1), site)
		if err := g.Reload(); err != nil {
			t.Errorf("reload %d: %v", i, err)
		}
	}
	close(stop)
	writers.Wait()
	l.Drain(t)
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway exited with %d", code)
	}
	t.Logf("over 15 reloads: %+v", l.Tally())
}

func TestKilledGatewayLosesNothing(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+gatewaytest.NewApp(t, gatewaytest.AnswerSoon))
	l := gatewaytest.NewLedger(rcv, t.Context().Done())

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			l.Write(g, rcv.URL, stop, func(error) { gatewaytest.Pause(10 * time.Millisecond) }) // the gateway is down at times
		})
	}
	for range 5 {
		gatewaytest.Pause(300*time.Millisecond + rand.N(400*time.Millisecond))
		g.Kill()
		g.Start()
	}
	close(stop)
	writers.Wait()
	l.Drain(t)
	t.Logf("over 5 kills: %+v", l.Tally())
}

func TestStoppedGatewayFinishesTasks(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	working, finish := make(chan struct{}), make(chan struct{})
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		close(working)
		<-finish
		_, _ = w.Write([]byte("done"))
	}))
	answered := make(chan string, 1)
	go func() {
		_, body, err := gatewaytest.Send(http.MethodPost, g.URL("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json")
		answered <- fmt.Sprint(body, err)
	}()
	<-working
	stopped := make(chan int)
	go func() { stopped <- g.Stop() }()
	g.Eventually("the gateway is stopping", func() error {
		if !strings.Contains(g.Log.String(), "shutting down apps") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	close(finish)
	if got := <-answered; got != "done<nil>" {
		t.Errorf("the client got %s", got)
	}
	if code := <-stopped; code != 0 {
		t.Errorf("exit code %d", code)
	}
	// The callback is sent before the process exits or after the restart.
	g.Start()
	if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Body != "response=done" {
		t.Errorf("the callback is %s %s", c.Status(), c.Body)
	}
}

func TestUnreachableClusterDoesNotBlockShutdown(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	working, finish := make(chan struct{}), make(chan struct{})
	g := gatewaytest.Start(t, c.Options(), "callback\nreverse_proxy "+gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		close(working)
		<-finish
	}))
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	}()
	<-working
	c.Kill(0)
	close(finish)
	<-answered
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// The lease expires after both have started again.
	c.Start(0)
	g.Start()
	rcv.Next(t)
}
