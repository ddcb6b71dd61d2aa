package faults

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// mixed is a site with tasks of waiting clients and a queue at /q.
func mixed(t *testing.T, app http.HandlerFunc) string {
	addr := gatewaytest.NewApp(t, app)
	return "callback\ntask_queue /q* q {\nreverse_proxy " + addr + "\n}\nreverse_proxy " + addr
}

// write makes n clients send tasks, half of them to the queue, until the returned
// function is called.
func write(l *gatewaytest.Ledger, n int, gateways []*gatewaytest.Gateway, callbackURL string, failed func(error)) (end func()) {
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i := range n {
		writers.Go(func() {
			l.WriteTo(gateways[i%len(gateways)], []string{"/", "/q"}[i/len(gateways)%2], callbackURL, stop, failed)
		})
	}
	return func() {
		close(stop)
		writers.Wait()
	}
}

// backOff makes a writer wait while its gateway is down.
func backOff(error) { gatewaytest.Pause(10 * time.Millisecond) }

func TestRandomKillsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	kills := pick(2, 8, 60)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), mixed(t, gatewaytest.AnswerSoon))
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	end := write(l, 32, []*gatewaytest.Gateway{g}, rcv.URL, backOff)
	for n := range kills {
		gatewaytest.Pause(200*time.Millisecond + rand.N(time.Second))
		switch n % 3 {
		case 1: // while it starts
			g.Kill()
			g.Launch()
			gatewaytest.Pause(rand.N(500 * time.Millisecond))
		case 2: // while it stops
			if err := g.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			gatewaytest.Pause(rand.N(500 * time.Millisecond))
		}
		g.Kill()
		g.Start()
	}
	end()
	l.Drain(t)
	undamaged(g)
	report(t, "1. kill -9 under 32 writers, while it starts and stops too", kills, l.Tally())
}

// pause stops all threads of a process.
func pause(g *gatewaytest.Gateway) error {
	pid := g.Cmd.Process.Pid
	if err := g.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d/task", pid)
	for {
		threads, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		running := 0
		for _, thread := range threads {
			// The state follows the name, which is in parentheses.
			stat, err := os.ReadFile(dir + "/" + thread.Name() + "/stat")
			if errors.Is(err, os.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				running++
			}
		}
		if running == 0 {
			return nil
		}
	}
}

const hmacSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func TestKillBeforeDeliveryIsRecordedRepeatsCallbackOnce(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 4, 30)
	var gateway atomic.Pointer[gatewaytest.Gateway]
	var kill atomic.Bool
	responded, answered := make(chan struct{}), make(chan error, 1)
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !kill.CompareAndSwap(true, false) {
			return
		}
		<-responded // the client has its response: the callback may arrive before it is complete
		// The response is on its way to a gateway that will not read it.
		g := gateway.Load()
		err := pause(g)
		w.WriteHeader(http.StatusOK)
		err = errors.Join(err, http.NewResponseController(w).Flush(), g.Cmd.Process.Kill())
		answered <- err
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret), gatewaytest.ExampleSite(t))
	gateway.Store(g)
	hook, err := standardwebhooks.NewWebhook(hmacSecret)
	if err != nil {
		t.Fatal(err)
	}
	var all gatewaytest.Tally
	for range rounds {
		kill.Store(true)
		id := g.Task(rcv.URL)
		responded <- struct{}{}
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		<-g.Done
		first := rcv.Next(t)
		gatewaytest.Pause(1100 * time.Millisecond) // timestamps are whole seconds
		g.Start()
		second := rcv.Next(t)
		g.Attempted(id, 1)
		for _, c := range []gatewaytest.Callback{first, second} {
			if c.TaskID() != id || c.Header.Get("webhook-id") != id || c.Status() != "COMPLETE" {
				t.Errorf("the callback of %s is %v", id, c.Header)
			}
			if err := hook.Verify([]byte(c.Body), c.Header); err != nil {
				t.Errorf("the signature of %s: %v", id, err)
			}
		}
		if at, again := stamp(t, first), stamp(t, second); again <= at {
			t.Errorf("both attempts were signed at %d and %d", at, again)
		}
		if first.Body != second.Body {
			t.Errorf("the callback %q was repeated as %q", first.Body, second.Body)
		}
		all.Accepted, all.Arrived, all.Repeated = all.Accepted+1, all.Arrived+2, all.Repeated+1
	}
	// A restart does not repeat a recorded delivery.
	g.Stop()
	g.Start()
	g.Task(rcv.URL)
	all.Accepted, all.Arrived = all.Accepted+1, all.Arrived+1
	rcv.Next(t)
	g.Stop()
	if n := len(rcv.Got); n > 0 {
		t.Errorf("%d callbacks were sent a third time", n)
	}
	report(t, "2. kill between the receiver's 200 and its record", rounds, all)
}

func stamp(t *testing.T, c gatewaytest.Callback) int64 {
	t.Helper()
	at, err := strconv.ParseInt(c.Header.Get("webhook-timestamp"), 10, 64)
	if err != nil {
		t.Error(err)
	}
	return at
}

func TestKillDuringRequestFailsTaskAndRetriesQueued(t *testing.T) {
	t.Parallel()
	const clients = 16
	rounds := pick(1, 2, 10)
	var slow atomic.Bool
	begun, release := make(chan string, 4*clients), make(chan struct{})
	t.Cleanup(func() { close(release) })
	site := mixed(t, func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("beam-task-id")
		if slow.Load() {
			_ = http.NewResponseController(w).Flush() // some clients have the response header
			begun <- r.URL.Path + " " + id
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, "run of "+id)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering()+fmt.Sprintf("\nqueue q {\nworkers %d\n}", clients), site)
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	want := make(map[string]string) // verdicts by task
	for range rounds {
		slow.Store(true)
		body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
		for i := range 2 * clients {
			go func() {
				_, _, _ = gatewaytest.Send(http.MethodPost, g.URL([]string{"/", "/q"}[i%2]), strings.NewReader(body),
					"Content-Type", "application/json") // the request is cut off
			}()
		}
		for range 2 * clients {
			path, id, _ := strings.Cut(<-begun, " ")
			l.Accept(id) // the endpoint knows the ID
			want[id] = map[string]string{"/": "FAILED", "/q": "COMPLETE"}[path]
		}
		g.Kill()
		slow.Store(false)
		g.Start()
		l.Drain(t) // within the lease
	}
	for id, want := range want {
		if got := l.Statuses(id); len(got) != 1 || got[0] != want {
			t.Errorf("a task that must be %s has the statuses %v", want, got)
		}
	}
	report(t, "3. kill while the endpoint runs", rounds, l.Tally())
}
