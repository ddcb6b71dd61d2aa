package faults

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// damages are kinds of damage to the files of a store, by name. The gateway was killed
// when the database had the first half of the tasks and the log the second half.
var damages = map[string]struct {
	file   string // in the folder, a pattern for [filepath.Glob]
	change func(data []byte) []byte
	// loses is what may be lost: "the log", "a body" or "anything".
	loses string
	// silent is set if the damage is not reported: a truncated log looks like a log after
	// any crash.
	silent bool
}{
	"database, flipped":     {"callback.db", flip(5), "anything", false},
	"database, truncated":   {"callback.db", halve, "anything", false},
	"database, page zeroed": {"callback.db", zeroPage, "anything", false},
	"database, header lost": {"callback.db", func(data []byte) []byte { clear(data[:100]); return data }, "anything", false},
	"log, flipped":          {"callback.db-wal", flip(5), "the log", false},
	"log, truncated":        {"callback.db-wal", halve, "the log", true},
	"body, flipped":         {"bodies/*", flip(1), "a body", false},
	"body, truncated":       {"bodies/*", halve, "a body", false},
	"body, removed":         {"bodies/*", func([]byte) []byte { return nil }, "a body", false},
}

func halve(data []byte) []byte { return data[:len(data)/2] }

// flip returns a function that flips n bits, spread over the file.
func flip(n int) func([]byte) []byte {
	return func(data []byte) []byte {
		for i := range n {
			part := len(data) / n
			data[i*part+rand.N(part)] ^= 1 << rand.N(8)
		}
		return data
	}
}

func zeroPage(data []byte) []byte {
	const size = 4096
	page := 1 + rand.N(len(data)/size-1) // another case covers the page of the header
	clear(data[page*size : (page+1)*size])
	return data
}

// damage changes a file of a store, or removes it if change returns nil.
func damage(t *testing.T, folder, pattern string, change func([]byte) []byte) (file string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	file = files[rand.N(len(files))]
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if data = change(data); data != nil {
		err = os.WriteFile(file, data, 0o600)
	} else {
		err = os.Remove(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCorruptFilesAreReportedAndSalvaged(t *testing.T) {
	t.Parallel()
	for name, d := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rounds := pick(1, 1, 10)
			var all gatewaytest.Tally
			for range rounds {
				tally := damageRound(t, d.file, d.change, d.loses, d.silent)
				all.Accepted, all.Arrived = all.Accepted+tally.Accepted, all.Arrived+tally.Arrived
				all.Lost, all.Second, all.Repeated = all.Lost+tally.Lost, all.Second+tally.Second, all.Repeated+tally.Repeated
			}
			what := "reported"
			if d.silent {
				what = "not reported, as after any crash"
			}
			reportLosses(t, fmt.Sprintf("5. %s (%s)", name, what), rounds, all)
		})
	}
}

// damageRound lets a gateway accept tasks, kills it, and changes a file of its store.
// Then it delivers the remaining callbacks, after a repair if the gateway asks for one.
func damageRound(t *testing.T, pattern string, change func([]byte) []byte, loses string, silent bool) gatewaytest.Tally {
	t.Helper()
	const half = 30
	w := newWitness()
	var accept atomic.Bool
	receiver := receive(t, func(rw http.ResponseWriter, _ string, c gatewaytest.Callback) {
		if !accept.Load() {
			rw.WriteHeader(http.StatusInternalServerError)
		} else if err := w.see(c); err != nil {
			t.Errorf("unexpected callback: %v", err)
		}
	})
	site := mixed(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(rw, w.result(r.Header.Get("beam-task-id")))
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry"+strings.Repeat(" 2s", 100)), site)
	var ids [2][]string
	for n := range ids {
		for i := range half {
			resp, text := g.Post([]string{"/", "/q"}[i%2], fmt.Sprintf(`{"callback_url":%q}`, receiver))
			if resp.StatusCode >= 300 {
				t.Fatalf("a request got %s %s", resp.Status, text)
			}
			ids[n] = append(ids[n], resp.Header.Get("beam-task-id"))
		}
		for _, id := range ids[n] {
			g.Attempted(id, 1) // no attempt is in flight
		}
		if n == 0 {
			g.Stop() // this checkpoints everything into the database and starts a new log
			g.Start()
		}
	}
	g.Kill()
	file := damage(t, g.Folder(), pattern, change)
	g.Log = new(gatewaytest.LogBuffer)
	accept.Store(true)
	g.Start()
	g.Eventually("readable tasks are delivered, or the damage is reported", func() error {
		if asksForRepair(g) {
			return nil
		}
		return undelivered(g)
	})
	reportedLost := 0
	repaired := asksForRepair(g)
	if repaired {
		reportedLost = repairStore(g, receiver)
	}
	tally, lost := w.tally(ids[0], ids[1])
	t.Logf("%s: %d of %d lost, repaired: %v", filepath.Base(file), tally.Lost, tally.Accepted, repaired)
	switch {
	case loses == "the log" && lost[0] > 0:
		t.Errorf("%d tasks of the database are lost", lost[0])
	case loses == "a body" && tally.Lost > 1:
		t.Errorf("%d tasks are lost because of one body", tally.Lost)
	case loses == "anything" && tally.Lost == tally.Accepted:
		t.Error("the repair salvaged no task")
	}
	if !silent && !reportsDamage(g) && tally.Lost > reportedLost {
		t.Errorf("%d tasks are lost and not reported", tally.Lost)
	}
	return tally
}

// asksForRepair reports whether the log names the repair command.
func asksForRepair(g *gatewaytest.Gateway) bool {
	return strings.Contains(g.Log.String(), "caddy callback repair")
}

var lostTasks = regexp.MustCompile(`(?m)^(\d+) tasks lost`)

// repairStore checks a gateway with a damaged store, repairs the store, and delivers the
// tasks in it. It returns the number of tasks that the repair reports as lost.
func repairStore(g *gatewaytest.Gateway, receiver string) (lost int) {
	g.T.Helper()
	resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, receiver))
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		g.T.Errorf("a request for a callback got %s %v %s", resp.Status, resp.Header, text)
	}
	if resp, text := g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		g.T.Errorf("a plain request got %s %s", resp.Status, text)
	}
	g.Stop()
	before := g.Log
	g.Log = new(gatewaytest.LogBuffer)
	g.Run("callback", "repair", g.Folder())
	<-g.Done
	output := g.Log.String()
	if code := g.Cmd.ProcessState.ExitCode(); code != 0 {
		g.T.Fatalf("the repair exited with %d: %s", code, output)
	}
	g.T.Logf("output of the repair: %s", output)
	if found := lostTasks.FindStringSubmatch(output); found != nil {
		lost, _ = strconv.Atoi(found[1]) // it is a number
	} else {
		g.T.Errorf("the repair does not report how many tasks are lost")
	}
	g.Log = new(gatewaytest.LogBuffer)
	g.Start()
	g.Eventually("salvaged tasks are delivered", func() error { return undelivered(g) })
	undamaged(g)
	_, _ = g.Log.Write([]byte(before.String())) // restore the earlier log
	return lost
}

// undelivered returns an error while a task is left to deliver.
func undelivered(g *gatewaytest.Gateway) error {
	metrics := g.Metrics()
	if _, ok := metrics[`caddy_callback_tasks{state="delivering"}`]; !ok {
		return errors.New("the engine has no metrics yet")
	}
	for name, n := range metrics {
		if strings.HasPrefix(name, "caddy_callback_tasks{") && n > 0 &&
			!strings.Contains(name, `"done"`) && !strings.Contains(name, `"dead"`) {
			return fmt.Errorf("%s is %v", name, n)
		}
	}
	return nil
}

// reportsDamage reports whether the log has an error about damage.
func reportsDamage(g *gatewaytest.Gateway) bool {
	for line := range strings.Lines(g.Log.String()) {
		if isDamage(line) {
			return true
		}
	}
	return false
}

func isDamage(line string) bool {
	return strings.Contains(line, `"level":"error"`) &&
		(strings.Contains(line, "is damaged") || strings.Contains(line, "is missing"))
}

// undamaged fails the test if the gateway reports damage.
func undamaged(g *gatewaytest.Gateway) {
	g.T.Helper()
	for line := range strings.Lines(g.Log.String()) {
		if isDamage(line) {
			g.T.Errorf("the log reports damage: %s", line)
		}
	}
}

// witness is a receiver that knows the expected content of each callback.
type witness struct {
	mu      sync.Mutex
	sizes   map[string]int // of results, by task
	arrived map[string]int
	status  map[string]string // of the first callback
	second  int               // callbacks with another verdict
}

func newWitness() *witness {
	return &witness{sizes: make(map[string]int), arrived: make(map[string]int), status: make(map[string]string)}
}

// diedWith are the beginnings of callbacks without a result: the gateway was killed while
// the task ran, or the task's body could not be salvaged.
var diedWith = []string{
	"error=the+gateway+that+held+the+task+stopped+before+the+endpoint+answered",
	"error=the+task%27s+request+was+lost",
}

// result returns the endpoint's response for a task. Every sixth result is stored as a
// file.
func (w *witness) result(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sizes[id] == 0 {
		w.sizes[id] = 1 + rand.N(100)
		if len(w.sizes)%6 == 0 {
			w.sizes[id] += 300<<10/len(id) + 1
		}
	}
	return strings.Repeat(id+" ", w.sizes[id])
}

// see checks a callback.
func (w *witness) see(c gatewaytest.Callback) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := c.TaskID()
	if w.sizes[id] == 0 {
		return fmt.Errorf("a callback of unknown task %q", id)
	}
	if w.arrived[id]++; w.arrived[id] == 1 {
		w.status[id] = c.Status()
	} else if w.status[id] != c.Status() {
		w.second++
	}
	for _, reason := range diedWith {
		if c.Status() == "FAILED" && strings.HasPrefix(c.Body, reason) {
			return nil
		}
	}
	if want := "response=" + url.QueryEscape(strings.Repeat(id+" ", w.sizes[id])); c.Status() != "COMPLETE" || c.Body != want {
		return fmt.Errorf("the callback of %s is %s with %d bytes, want COMPLETE with %d: %.200q", id, c.Status(), len(c.Body), len(want), c.Body)
	}
	return nil
}

// tally counts the outcomes of accepted tasks, and the lost tasks of each group.
func (w *witness) tally(groups ...[]string) (tally gatewaytest.Tally, lost []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ids := range groups {
		n := 0
		for _, id := range ids {
			if w.arrived[id] == 0 {
				n++
			}
		}
		lost = append(lost, n)
		tally.Accepted, tally.Lost = tally.Accepted+len(ids), tally.Lost+n
	}
	for _, n := range w.arrived {
		tally.Arrived += n
		tally.Repeated += n - 1
	}
	tally.Second = w.second
	return tally, lost
}
