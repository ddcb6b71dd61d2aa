//go:build linux && amd64

package faults

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// clock is the clock of a gateway. A test can set it.
type clock struct {
	t    *testing.T
	file string
	now  time.Duration // the offset
}

// clockFile is the environment variable with the file of a gateway's clock.
const clockFile = "CALLBACK_TEST_CLOCK"

func init() {
	if file := os.Getenv(clockFile); file != "" {
		if err := patchClock(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// newClock gives a gateway its own clock. It must be called before the gateway starts.
func newClock(t *testing.T, g *gatewaytest.Gateway) *clock {
	t.Helper()
	c := &clock{t: t, file: filepath.Join(t.TempDir(), "clock")}
	c.step(0)
	g.Env = append(g.Env, clockFile+"="+c.file)
	return c
}

// step sets the clock forward, or back if d is negative.
func (c *clock) step(d time.Duration) {
	c.t.Helper()
	c.now += d
	f, err := os.OpenFile(c.file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(c.now)), 0); err != nil {
		c.t.Fatal(err)
	}
}

// awaitApplied waits until the signed timestamp of a callback shows the gateway's clock.
func (c *clock) awaitApplied(g *gatewaytest.Gateway, rcv *gatewaytest.Receiver) {
	c.t.Helper()
	id := g.Task(rcv.URL)
	got := rcv.Next(c.t)
	for got.TaskID() != id {
		got = rcv.Next(c.t)
	}
	if ahead := time.Unix(stamp(c.t, got), 0).Sub(got.At) - c.now; ahead.Abs() > time.Minute {
		c.t.Errorf("the gateway's clock is %v from where it was set", ahead)
	}
}

func TestClockStepsLoseNoTask(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]time.Duration{"forward": 10 * time.Minute, "back": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps := pick(1, 2, 10)
			rcv := gatewaytest.NewReceiver(t, nil)
			signs := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.New(t, gatewaytest.Delivering("secret "+hmacSecret), mixed(t, gatewaytest.AnswerSoon))
			c := newClock(t, g)
			g.Start()
			c.awaitApplied(g, signs)
			l := gatewaytest.NewLedger(rcv, t.Context().Done())
			end := write(l, 8, []*gatewaytest.Gateway{g}, rcv.URL, func(err error) { t.Errorf("a request failed: %v", err) })
			for range steps {
				gatewaytest.Pause(500 * time.Millisecond)
				c.step(d)
				gatewaytest.Pause(500 * time.Millisecond)
				c.awaitApplied(g, signs)
			}
			end()
			l.Drain(t)
			// The same must hold across a restart.
			g.Kill()
			c.step(d)
			g.Start()
			l.Accept(g.Task(rcv.URL))
			l.Drain(t)
			report(t, fmt.Sprintf("11. clock stepped %v under load", d), steps+1, l.Tally())
		})
	}
}

// The clock steps while tasks run and while callbacks wait for their next attempt. After
// a step forward, leases and waits expire at once. After a step back, they expire when
// the clock reaches their time again, so correcting the clock releases all of them.
func TestClockStepsKeepOneVerdict(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]time.Duration{"forward": 10 * time.Minute, "back": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const tasks = 8
			var refused = make(chan struct{}, 10*tasks)
			rcv := gatewaytest.NewReceiver(t, nil)
			retried := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("callback-attempt") == "1" {
					w.WriteHeader(http.StatusInternalServerError)
					refused <- struct{}{}
				}
			})
			l := gatewaytest.NewLedger(rcv, t.Context().Done())
			p := &pausedApp{begun: make(chan string, 100)}
			g := gatewaytest.New(t, gatewaytest.Delivering("secret "+hmacSecret, "retry 20s"), mixed(t, p.serve))
			c := newClock(t, g)
			g.Start()
			p.next()
			body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
			for i := range 2 * tasks {
				go func() {
					_, _, _ = gatewaytest.Send(http.MethodPost, g.URL([]string{"/", "/q"}[i%2]), strings.NewReader(body),
						"Content-Type", "application/json", "X-Slow", "1") // the request may be given up
				}()
			}
			for range 2 * tasks {
				l.Accept(<-p.begun)
			}
			waiting := make(map[string]bool)
			for range tasks {
				id := g.Task(retried.URL)
				waiting[id] = true
				<-refused
				g.Attempted(id, 1) // its next attempt is scheduled by the current clock
			}
			c.step(d)
			gatewaytest.Pause(2 * time.Second) // for leases to expire
			close(p.round())
			l.Drain(t)
			if d < 0 {
				c.step(-d)
			}
			tally := gatewaytest.Tally{Accepted: tasks}
			for len(waiting) > 0 {
				if got := retried.Next(t); got.Header.Get("callback-attempt") != "1" {
					delete(waiting, got.TaskID())
					tally.Arrived++
				}
			}
			g.Stop()
			all := l.Tally()
			all.Accepted, all.Arrived = all.Accepted+tally.Accepted, all.Arrived+tally.Arrived
			report(t, fmt.Sprintf("11. clock stepped %v while tasks run", d), 1, all)
		})
	}
}

// A callback waits for its next attempt while the clock is set or the machine sleeps, and
// nothing else happens. The attempt must follow soon after its time by the clock.
func TestDelayedTasksFollowSteppedClock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wait  time.Duration // until the next attempt
		steps []time.Duration
		pause time.Duration // before the last step: the lease has expired, or the attempt is due
	}{
		"past the attempt":  {5 * time.Minute, []time.Duration{10 * time.Minute}, 35 * time.Second},
		"back and restored": {20 * time.Second, []time.Duration{-10 * time.Minute, 10 * time.Minute}, 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("callback-attempt") == "1" {
					w.WriteHeader(http.StatusInternalServerError)
				}
			})
			g := gatewaytest.New(t, gatewaytest.Delivering(fmt.Sprintf("retry %v", test.wait)), gatewaytest.ExampleSite(t))
			c := newClock(t, g)
			g.Start()
			id := g.Task(rcv.URL)
			rcv.Next(t)
			g.Attempted(id, 1)
			for n, d := range test.steps {
				if n == len(test.steps)-1 {
					gatewaytest.Pause(test.pause)
				}
				c.step(d)
			}
			if got := rcv.Next(t); got.TaskID() != id || got.Header.Get("callback-attempt") != "2" {
				t.Errorf("the callback has the header %v", got.Header)
			}
			g.Stop()
			report(t, "11. clock stepped while a callback waits, "+name, 1, gatewaytest.Tally{Accepted: 1, Arrived: 1})
		})
	}
}

// The servers' clock decides when a scheduled message is due. A gateway's own clock may
// be wrong: running tasks continue, retries are in time, and unfinished tasks continue
// within the lease.
func TestClusterToleratesWrongClock(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]time.Duration{"fast": 10 * time.Minute, "slow": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := gatewaytest.StartCluster(t, 1)
			rcv := gatewaytest.NewReceiver(t, nil)
			retried := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("callback-attempt") == "1" {
					w.WriteHeader(http.StatusInternalServerError)
				}
			})
			l := gatewaytest.NewLedger(rcv, t.Context().Done())
			p := &pausedApp{begun: make(chan string, 100)}
			options := strings.Replace(cluster.Options(), "ports any", "ports any\nretry 1s", 1)
			g := gatewaytest.New(t, options, mixed(t, p.serve))
			c := newClock(t, g)
			c.step(d)
			g.Start()
			begin := func(path string) (id string) {
				go func() {
					_, _, _ = gatewaytest.Send(http.MethodPost, g.URL(path), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
						"Content-Type", "application/json", "X-Slow", "1") // the request may be killed
				}()
				id = <-p.begun
				l.Accept(id)
				return id
			}
			p.next()
			var ran []string
			for _, path := range []string{"/", "/q"} {
				ran = append(ran, begin(path))
			}
			g.Task(retried.URL)
			for _, want := range []string{"1", "2"} {
				if got := retried.Next(t).Header.Get("callback-attempt"); got != want {
					t.Errorf("attempt %s came, want %s", got, want)
				}
			}
			gatewaytest.Pause(3 * time.Second) // leases that were judged by the wrong clock would expire now
			close(p.round())
			l.Drain(t)
			for _, id := range ran {
				if got := l.Statuses(id); len(got) != 1 || got[0] != "COMPLETE" {
					t.Errorf("a task that kept running has the statuses %v", got)
				}
			}
			p.next()
			begin("/")
			g.Kill()
			close(p.round())
			g.Start()
			l.Drain(t)
			report(t, fmt.Sprintf("11. clock of a gateway %v from the cluster's", d), 1, l.Tally())
		})
	}
}
