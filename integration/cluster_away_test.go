package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// accepts waits until a gateway accepts requests with a callback again.
func accepts(g *gatewaytest.Gateway, callbackURL string) (id string) {
	g.T.Helper()
	g.Eventually("callbacks are accepted", func() error {
		resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		id = resp.Header.Get("beam-task-id")
		return nil
	})
	return id
}

// awaitRefused waits until a gateway refuses requests with a callback. Plain requests
// still pass.
func awaitRefused(g *gatewaytest.Gateway, callbackURL string, l *gatewaytest.Ledger) {
	g.T.Helper()
	g.Eventually("callbacks are refused", func() error {
		resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
		if resp.StatusCode == http.StatusOK {
			l.Accept(resp.Header.Get("beam-task-id"))
		}
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			return fmt.Errorf("%s %v %s", resp.Status, resp.Header, text)
		}
		return nil
	})
	if resp, text := g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		g.T.Errorf("a plain request got %s %s", resp.Status, text)
	}
}

func TestUnreachableClusterRefusesCallbacksAndLosesNone(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	working, release := make(chan struct{}), make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			close(working)
			<-release
		}
	})
	var open atomic.Bool
	rcv := gatewaytest.NewReceiver(t, nil) // gets the callbacks
	shut := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if !open.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		resp, _, err := gatewaytest.Send(http.MethodPost, rcv.URL, r.Body,
			"beam-task-id", r.Header.Get("beam-task-id"), "x-beam-task-status", r.Header.Get("x-beam-task-status"))
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Error(resp, err)
		}
	})
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	options := strings.Replace(c.Options(), "ports any", "ports any\n"+gatewaytest.ManyTimes, 1)
	g := gatewaytest.Start(t, options, "callback\nreverse_proxy "+app)
	for range 20 {
		l.Accept(g.Task(shut.URL))
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		resp, _, err := gatewaytest.Send(http.MethodPost, g.URL("/long"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json")
		if err != nil {
			t.Error(err)
			return
		}
		l.Accept(resp.Header.Get("beam-task-id"))
	}()
	<-working
	c.Kill(0)
	awaitRefused(g, rcv.URL, l)
	close(release) // a task ends while its result cannot be stored
	open.Store(true)
	c.Start(0)
	l.Accept(accepts(g, rcv.URL))
	<-answered
	l.Drain(t)
}

func TestDeletedStreamsAreRecreated(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	app, runs := newScheduledApp(t)
	options := strings.Replace(c.Options(), "delivery", every("1s", "/q/run")+"\ndelivery", 1)
	g := gatewaytest.Start(t, options, "callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}\nreverse_proxy "+app)
	accepts(g, rcv.URL)
	rcv.Next(t)
	nc := must[*nats.Conn](t)(nats.Connect(c.URLs()))
	defer nc.Close()
	js := must[jetstream.JetStream](t)(jetstream.New(nc))
	for _, name := range []string{"CALLBACK", "CALLBACK_BODIES"} {
		if err := js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	logs(g, "task stream was deleted and created again")
	id := accepts(g, rcv.URL)
	for rcv.Next(t).TaskID() != id {
	}
	for len(runs) > 0 {
		<-runs
	}
	for nextRun(t, runs).uri != "/q/run" {
	}
}

func TestSilentServerIsReplacedByAnother(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 3)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, strings.Replace(c.Options(), strings.ReplaceAll(c.URLs(), ",", " "), "nats://"+c.Servers[0].Client, 1), site)
	accepts(g, rcv.URL)
	rcv.Next(t)
	c.Suspend(0) // its connections stay open but are silent
	id := accepts(g, rcv.URL)
	for rcv.Next(t).TaskID() != id {
	}
}

func TestRefusedCredentialIsRetried(t *testing.T) {
	t.Parallel()
	c := startGuarded(t, "authorization { user: u, password: right }", nil)
	at := strings.TrimPrefix(c.URLs(), "nats://")
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, natsOptions("nats://u:right@"+at), gatewaytest.ExampleSite(t))
	accepts(g, rcv.URL)
	c.Kill(0)
	c.Config = "authorization { user: u, password: other }"
	c.Start(0)
	// By default the client library gives up after some refusals. The gateway must not.
	g.Eventually("the gateway is refused", func() error {
		if n := strings.Count(strings.ToLower(g.Log.String()), "authorization violation"); n < 5 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	c.Kill(0)
	c.Config = "authorization { user: u, password: right }"
	c.Start(0)
	accepts(g, rcv.URL)
}
