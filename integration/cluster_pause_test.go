//go:build unix

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestPausedGatewayCannotSettleTaskTwice(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	working, release := make(chan struct{}, 10), make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		working <- struct{}{}
		<-release
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\nreverse_proxy " + app
	a := gatewaytest.Start(t, c.Options(), site)
	b := gatewaytest.Start(t, c.Options(), site)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _, _ = gatewaytest.Send(http.MethodPost, a.URL("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json") // the client's response does not matter here
	}()
	<-working
	a.Suspend()
	expired := rcv.Next(t) // the other gateway delivers it
	if expired.Status() != "FAILED" {
		t.Errorf("the callback is %v %s", expired.Header, expired.Body)
	}
	close(release) // the app ends while the gateway is away
	a.Resume()
	<-answered
	logs(a, "lease lost")
	// This task is the last one, so the gateway has sent all other callbacks before.
	last := a.Task(rcv.URL)
	for _, g := range []*gatewaytest.Gateway{a, b} {
		g.Eventually("nothing is under way", nothingUnderWay(g))
	}
	for got := rcv.Next(t); got.TaskID() != last; got = rcv.Next(t) {
		t.Errorf("task %s got the second callback %s %s", got.TaskID(), got.Status(), got.Body)
	}
	if n := len(rcv.Got); n != 0 {
		t.Errorf("%d callbacks arrived after the last", n)
	}
}

func TestPausedGatewayCannotSettleRequeuedTask(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	type run struct {
		n      int
		answer chan string
	}
	runs := make(chan run, 10)
	var begun int
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		begun++ // no race: the second run starts after the first was sent
		r := run{begun, make(chan string, 1)}
		runs <- r
		_, _ = w.Write([]byte(<-r.answer))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\ntask_queue /q* q {\nreverse_proxy " + app + "\n}"
	a := gatewaytest.Start(t, c.Options(), site)
	id := accepted(t, a, "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	first := <-runs
	b := gatewaytest.Start(t, c.Options(), site)
	a.Suspend()
	second := <-runs // the lease has expired
	if second.n != 2 {
		t.Errorf("run %d started, want run 2", second.n)
	}
	first.answer <- "from the first"
	a.Resume()
	logs(a, "lease lost")
	second.answer <- "from the second"
	if got := rcv.Next(t); got.TaskID() != id || got.Body != "response=from+the+second" {
		t.Errorf("the callback is %s %s", got.TaskID(), got.Body)
	}
	reaches(t, b, "/q", id, task.Done)
	if _, text := a.Do(http.MethodGet, "/q/"+id+"/result", ""); text != "from the second" {
		t.Errorf("the result is %q", text)
	}
	if n := len(rcv.Got); n != 0 {
		t.Errorf("%d more callbacks arrived", n)
	}
}

func TestPartitionLosesNothing(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 3)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "callback\nreverse_proxy " + gatewaytest.NewApp(t, gatewaytest.AnswerSoon)
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)}
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	for _, g := range gateways {
		l.Accept(accepts(g, rcv.URL))
	}
	stop, written := make(chan struct{}), make(chan struct{}, 4)
	for i := range 4 {
		go func() {
			l.Write(gateways[i%2], rcv.URL, stop, func(error) { gatewaytest.Pause(10 * time.Millisecond) })
			written <- struct{}{}
		}()
	}
	gatewaytest.Pause(time.Second)
	leader := c.Leader("CALLBACK")
	t.Logf("the leader n%d is cut off", leader)
	c.Suspend(leader)
	gatewaytest.Pause(5 * time.Second) // publishes to it are in flight
	c.Resume(leader)
	for _, g := range gateways {
		l.Accept(accepts(g, rcv.URL))
	}
	a, b := leader, (leader+1)%3
	t.Logf("n%d and n%d are disconnected: no quorum", a, b)
	c.Suspend(a)
	c.Suspend(b)
	for _, g := range gateways {
		awaitRefused(g, rcv.URL, l)
	}
	c.Resume(a)
	c.Resume(b)
	for _, g := range gateways {
		l.Accept(accepts(g, rcv.URL))
	}
	close(stop)
	for range 4 {
		<-written
	}
	l.Drain(t)
	t.Logf("%+v", l.Tally())
}
