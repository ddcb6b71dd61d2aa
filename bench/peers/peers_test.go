package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
)

// standIn is the argument that makes this program a system to compare. Its other
// arguments are its address, that of the endpoint, and how many callbacks it sends for
// each task.
const standIn = "stand-in"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == standIn {
		fmt.Fprintln(os.Stderr, runStandIn(os.Args[2], os.Args[3], os.Args[4]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runStandIn runs each task and calls back before it accepts the task.
func runStandIn(addr, run, callbacks string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client was interrupted
		}
		urls := append([]string{run}, strings.Fields(strings.Repeat(r.Header.Get("Callback")+" ", len(callbacks)))...)
		for _, url := range urls {
			resp, err := http.Post(url, "application/json", strings.NewReader(string(body)))
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			resp.Body.Close()
		}
		w.WriteHeader(http.StatusAccepted)
	}))
}

func TestRoundCountsLostAndRepeatedCallbacks(t *testing.T) {
	for _, c := range []struct {
		name           string
		callbacks      string // as many digits as the system sends callbacks
		load           load
		lost, repeated bool
	}{
		{"every callback once", "1", load{size: 200}, false, false},
		{"at a rate", "1", load{size: 64 << 10, rate: 200}, false, false},
		{"killed", "1", load{size: 200, kill: true}, false, false},
		{"no callback", "", load{size: 200}, true, false},
		{"two callbacks", "12", load{size: 200}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, err := newPeer("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			addr := freeaddr.New(t)
			sys := &system{
				Name: "stand-in", Submit: "http://" + addr + "/", Body: `{"task":"{id}","data":"{data}"}`,
				Headers: map[string]string{"Callback": "{callback}"},
				Run:     [][]string{{os.Args[0], standIn, addr, p.runURL(), c.callbacks}},
			}
			defer func() {
				if err := sys.kill(); err != nil {
					t.Error(err)
				}
			}()
			s := &settings{duration: 2 * time.Second, clients: 4, patience: 5 * time.Minute}
			if c.lost {
				s.patience = 100 * time.Millisecond
			}
			r, err := s.round(p, sys, c.load)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.accepted) == 0 {
				t.Fatal("no task was accepted")
			}
			if c.lost && r.lost != len(r.accepted) || !c.lost && r.lost > 0 {
				t.Errorf("%d of %d callbacks were lost", r.lost, len(r.accepted))
			}
			if c.repeated && r.repeated < len(r.accepted) || !c.repeated && r.repeated > 0 {
				t.Errorf("%d of %d callbacks were repeated", r.repeated, len(r.accepted))
			}
			if cells := strings.Split(medians([]result{r}), " | "); len(cells) != 7 {
				t.Errorf("the row is %q", cells)
			}
		})
	}
}

func TestReadSystemsReadsTheExample(t *testing.T) {
	for _, c := range []struct {
		name, only string
		want       int
		wrong      string
	}{
		{"all", "", 3, ""},
		{"two by name", "gateway,script behind Caddy", 2, ""},
		{"unknown", "nobody", 0, "describes no system named nobody"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			systems, err := readSystems("systems.json", c.only)
			if err != nil {
				if c.wrong == "" || !strings.Contains(err.Error(), c.wrong) {
					t.Fatal(err)
				}
				return
			}
			if len(systems) != c.want || c.wrong != "" {
				t.Errorf("there are %d systems; expected %d", len(systems), c.want)
			}
		})
	}
}

func TestRoundEndsTheSystemAfterAnError(t *testing.T) {
	t.Parallel()
	p, err := newPeer("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	addr := freeaddr.New(t)
	sys := &system{
		Name: "stand-in", Submit: "http://" + addr + "/",
		Run:   [][]string{{os.Args[0], standIn, addr, "http://127.0.0.1:0/no-endpoint", "1"}},
		Ready: []string{addr},
	}
	s := &settings{duration: time.Millisecond, clients: 1}
	if _, err = s.round(p, sys, load{}); err == nil || !strings.Contains(err.Error(), "no task was accepted") {
		t.Errorf("the error is %v", err)
	}
	if n := len(sys.running); n > 0 {
		t.Errorf("%d processes are running", n)
	}
}
