package faults

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// damages are what happens to files, by what it is called.
var damages = map[string]func(data []byte) []byte{
	"truncated": func(data []byte) []byte { return data[:rand.N(len(data))] },
	"torn":      func(data []byte) []byte { return data[:len(data)-1-rand.N(min(len(data), 64))] },
	"with a page of zeros": func(data []byte) []byte {
		page := data[rand.N(len(data)):]
		clear(page[:min(len(page), 4096)])
		return data
	},
	"bit-flipped": func(data []byte) []byte {
		for range 1 + rand.N(8) {
			data[rand.N(len(data))] ^= 1 << rand.N(8)
		}
		return data
	},
	"emptied": func([]byte) []byte { return nil },
	"removed": nil,
	"with junk at its end": func(data []byte) []byte {
		return append(data, bytes.Repeat([]byte{byte(rand.N(256))}, 1+rand.N(4096))...)
	},
}

// damage spoils a file of the store, more often than others one that holds tasks. Of a
// gateway that was killed it removes none that has others after it: nobody knows then
// that the gateway had not. Nor does it cut one that the inventory knows nothing of yet.
func damage(t *testing.T, g *gatewaytest.Gateway, killed bool) (what string) {
	t.Helper()
	var blocks, others []string
	store := filepath.Join(g.Dir, "store")
	err := filepath.WalkDir(filepath.Join(store, "jetstream"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() == 0 {
			return err
		}
		if strings.HasSuffix(path, ".blk") {
			blocks = append(blocks, path)
		} else {
			others = append(others, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	files := others
	if rand.N(3) > 0 {
		files = blocks
	}
	file := files[rand.N(len(files))]
	kinds := slices.Sorted(maps.Keys(damages))
	kind := kinds[rand.N(len(kinds))]
	if kind == "removed" && killed && slices.ContainsFunc(blocks, func(other string) bool { return isBehind(other, file) }) {
		kind = "emptied"
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if cuts := kind == "removed" || kind == "emptied" || kind == "truncated"; cuts && killed && isNew(t, store, file, data) {
		kind = "torn"
	}
	if change := damages[kind]; change != nil {
		err = os.WriteFile(file, change(data), 0o600)
	} else {
		err = os.Remove(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s of %d bytes %s", strings.TrimPrefix(file, store), len(data), kind)
}

// isNew says whether a file has messages, and none that is in the inventory of the store,
// which is up to a second behind.
func isNew(t *testing.T, store, file string, data []byte) bool {
	t.Helper()
	if !strings.HasSuffix(file, ".blk") {
		return false
	}
	var inventory struct{ Last map[string]uint64 }
	text, err := os.ReadFile(filepath.Join(store, "inventory.json"))
	if err == nil {
		err = json.Unmarshal(text, &inventory)
	}
	if err != nil {
		t.Fatal(err)
	}
	// A record begins with its length and its number, with flags in the highest bits. It
	// may be a tombstone, with the number of an older one.
	for len(data) >= 12 {
		number := binary.LittleEndian.Uint64(data[4:])
		if number&(1<<62) == 0 {
			return number&^(1<<63) > inventory.Last[filepath.Base(filepath.Dir(filepath.Dir(file)))]
		}
		length := int(binary.LittleEndian.Uint32(data) &^ (1 << 31))
		data = data[min(len(data), max(12, length)):] // none is shorter
	}
	return false
}

// isBehind says whether a file of messages comes after another of the same stream.
func isBehind(file, other string) bool {
	if filepath.Dir(file) != filepath.Dir(other) {
		return false
	}
	number := func(name string) int {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".blk"))
		if err != nil {
			return -1
		}
		return n
	}
	return number(file) > number(other)
}

// undelivered waits until nothing is left to deliver.
func undelivered(g *gatewaytest.Gateway) error {
	metrics := g.Metrics()
	if _, ok := metrics[`caddy_callback_tasks{state="delivering"}`]; !ok {
		return errors.New("the engine is not asked yet")
	}
	for name, n := range metrics {
		if strings.HasPrefix(name, "caddy_callback_tasks{") && n > 0 &&
			!strings.Contains(name, `"done"`) && !strings.Contains(name, `"dead"`) {
			return fmt.Errorf("%s is %v", name, n)
		}
	}
	return nil
}

// told says whether the log has a damage among its errors.
func told(g *gatewaytest.Gateway) bool {
	for line := range strings.Lines(g.Log.String()) {
		if isDamage(line) {
			return true
		}
	}
	return false
}

func isDamage(line string) bool {
	return strings.Contains(line, `"level":"error"`) && strings.Contains(line, "damage")
}

// undamaged fails a test whose gateway has told of a damage: nobody made any.
func undamaged(g *gatewaytest.Gateway) {
	g.T.Helper()
	for line := range strings.Lines(g.Log.String()) {
		if isDamage(line) {
			g.T.Errorf("the log tells of a damage: %s", line)
		}
	}
}

// witness is a receiver that knows what each callback must be.
type witness struct {
	mu      sync.Mutex
	sizes   map[string]int // of results, by task
	arrived map[string]int
	status  map[string]string // of the first callback
	second  int               // callbacks that said something else
}

// stopped is what comes of a task whose settlement stood in the damaged part, and
// whose lease, before it, can be read: as far as the store knows, it was at work.
const stopped = "error=the+gateway+that+held+the+task+stopped+before+the+endpoint+answered"

// result is what the endpoint answers for a task.
func (w *witness) result(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sizes[id] == 0 {
		w.sizes[id] = 1 + rand.N(2000)
	}
	return strings.Repeat(id+" ", w.sizes[id])
}

// see checks a callback that has come.
func (w *witness) see(c gatewaytest.Callback) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := c.TaskID()
	if w.sizes[id] == 0 {
		return fmt.Errorf("a callback of %q, which is no task", id)
	}
	if w.arrived[id]++; w.arrived[id] == 1 {
		w.status[id] = c.Status()
	} else if w.status[id] != c.Status() {
		w.second++
	}
	if c.Status() == "FAILED" && c.Body == stopped {
		return nil
	}
	if want := "response=" + url.QueryEscape(strings.Repeat(id+" ", w.sizes[id])); c.Status() != "COMPLETE" || c.Body != want {
		return fmt.Errorf("the callback of %s is %s with %d bytes, and not COMPLETE with %d: %.200q", id, c.Status(), len(c.Body), len(want), c.Body)
	}
	return nil
}

func TestDamagedStoresAreToldOfAndWhatCanBeReadIsDelivered(t *testing.T) {
	t.Parallel()
	const tasks = 60
	rounds := pick(2, 10, 200)
	w := &witness{sizes: make(map[string]int), arrived: make(map[string]int), status: make(map[string]string)}
	var accept atomic.Bool
	receiver := receive(t, func(rw http.ResponseWriter, _ string, c gatewaytest.Callback) {
		if !accept.Load() {
			rw.WriteHeader(http.StatusInternalServerError)
		} else if err := w.see(c); err != nil {
			t.Errorf("made up: %v", err)
		}
	})
	site := mixed(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(rw, w.result(r.Header.Get("beam-task-id")))
	})
	all := gatewaytest.Tally{Accepted: rounds * tasks}
	g := gatewaytest.Start(t, gatewaytest.Delivering(gatewaytest.ManyTimes), site)
	body := fmt.Sprintf(`{"callback_url":%q}`, receiver)
	for round := range rounds {
		accept.Store(false)
		var ids []string
		for i := range tasks {
			resp, text := g.Post([]string{"/", "/q"}[i%2], body)
			if resp.StatusCode >= 300 {
				t.Fatalf("a request got %s %s", resp.Status, text)
			}
			ids = append(ids, resp.Header.Get("beam-task-id"))
		}
		for _, id := range ids {
			g.Attempted(id, 1) // none is at work
		}
		killed := round%2 == 0
		if killed {
			gatewaytest.Pause(time.Second) // the inventory is half a second behind
			g.Kill()
		} else {
			g.Stop()
		}
		what := damage(t, g, killed)
		g.Log = new(gatewaytest.LogBuffer)
		accept.Store(true)
		g.Start()
		for range 3 { // what moves meanwhile may not be counted
			g.Eventually("all that can be read is delivered", func() error { return undelivered(g) })
			gatewaytest.Pause(time.Second)
		}
		lost := 0
		w.mu.Lock()
		for _, id := range ids {
			if w.arrived[id] == 0 {
				lost++
			}
		}
		w.mu.Unlock()
		said := told(g)
		t.Logf("killed: %v, %s: %d of %d lost, said: %v", killed, what, lost, tasks, said)
		if lost > 0 && !said {
			t.Errorf("killed: %v, %s: %d of %d callbacks are lost without a word", killed, what, lost, tasks)
		}
	}
	g.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.arrived {
		all.Arrived += n
		all.Repeated += n - 1
	}
	all.Lost, all.Second = all.Accepted-len(w.arrived), w.second
	// What stood in the damaged part is lost, and is said to be.
	reportLosses(t, "5. torn, truncated, bit-flipped, removed store files (each loss told at start)", rounds, all)
}
