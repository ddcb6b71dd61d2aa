//go:build linux

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// crowd runs n clients that connect, send nothing and disconnect soon, repeatedly, until
// the returned function is called.
func crowd(n int, addr string) (end func()) {
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() {
			for {
				conn, err := net.DialTimeout("tcp", addr, time.Second)
				select {
				case <-stop:
				case <-time.After(rand.N(200 * time.Millisecond)):
				}
				if err == nil {
					_ = conn.Close() // nothing was sent
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	return func() {
		close(stop)
		clients.Wait()
	}
}

func TestExhaustedFileDescriptorsLoseNothing(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 2, 20)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry"+strings.Repeat(" 1s", 100)), mixed(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("beam-task-id"), strings.Repeat(" result", 20_000)) // the store has many files
	}))
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	end := write(l, 8, []*gatewaytest.Gateway{g}, rcv.URL, backOff)
	for range rounds {
		gatewaytest.Pause(time.Second)
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.Cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		before := limit(g, syscall.RLIMIT_NOFILE, uint64(len(open))+rand.N[uint64](100))
		refused := func() int { return strings.Count(g.Log.String(), syscall.EMFILE.Error()) }
		earlier := refused()
		leave := crowd(200, g.Addr)
		g.Eventually("no file can be opened", func() error {
			if refused() == earlier {
				return errors.New("each file was opened")
			}
			return nil
		})
		gatewaytest.Pause(time.Second) // for files of the store
		leave()
		limit(g, syscall.RLIMIT_NOFILE, before)
		o := outage{g: g, l: l, body: fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)}
		o.recovers()
	}
	end()
	if !strings.Contains(g.Log.String(), syscall.EMFILE.Error()) {
		t.Error("the gateway did not run out of descriptors")
	}
	l.Drain(t)
	undamaged(g)
	report(t, "4. descriptors run out", rounds, l.Tally())
}
