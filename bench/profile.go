package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
)

const (
	inModule = "github.com/caddy-callback/caddy-callback"
	inProxy  = "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy."
)

// parts are the parts that the time of a task is divided into, by prefixes of function
// names. Functions that several parts call are not listed: their time belongs to the
// caller's part.
var parts = []struct {
	what      string
	functions []string
}{
	{"reading the request's body", []string{inModule + "/internal/capture.", inModule + ".(*Handler).callbackOf"}},
	{"claim, on our side", []string{inModule + ".(*Handler).claim"}},
	{"proxy: `reverse_proxy`", []string{inProxy}},
	{"capture: keeping the response", []string{inModule + "/internal/capture.(*Response).", inModule + ".(*execution).serve"}},
	{"encode: the result as a form", []string{inModule + "/internal/encode.", inModule + "/internal/form."}},
	{"settle, on our side", []string{inModule + ".(*execution).record"}},
	{"dispatch: whose turn it is", []string{inModule + "/internal/dispatch.", inModule + "/internal/deliver."}},
	{"send: request, headers, answer", []string{inModule + "/internal/send."}},
	{"the rest of the handler", []string{inModule + ".(*Handler).ServeHTTP"}},
	{"HTTP server, and Caddy's routes", []string{"net/http.(*conn).", "net/http.(*response).", "net/http.(*connReader).", "net/http.serverHandler", "github.com/caddyserver/"}},
	{"HTTP transports, to the endpoint and the receiver", []string{"net/http.(*Transport).", "net/http.(*persistConn).", "net/http.(*Request).write", "net/http.(*Client)."}},
	{"engine: our part", []string{inModule + "/internal/engine/sqlite."}},
	{"engine: SQLite", []string{"github.com/ncruces/go-sqlite3"}},
	{"records as JSON", []string{inModule + "/internal/task.", "encoding/json."}},
	{"garbage collection", []string{"runtime.gc", "runtime.bgsweep", "runtime.bgscavenge"}},
}

const restPart = "scheduler, timers and the rest"

// partOf returns the part that a function belongs to. The longest matching prefix
// decides.
func partOf(function string) (what string) {
	longest := 0
	for _, p := range parts {
		for _, beginning := range p.functions {
			if len(beginning) > longest && strings.HasPrefix(function, beginning) {
				what, longest = p.what, len(beginning)
			}
		}
	}
	return what
}

// profiles divides the gateway's CPU time for a task of a waiting client into parts.
// Caddy's admin endpoint records the profile under load.
func profiles(b *bench) (table, error) {
	g, err := newGateway()
	if err != nil {
		return table{}, err
	}
	defer g.remove()
	w, err := newWorkload(g)
	if err != nil {
		return table{}, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	defer w.close()
	if _, err := w.round(b.round); err != nil { // warm-up
		return table{}, err
	}
	// The profile starts and ends while there is load.
	d := max(time.Second, time.Duration(b.rounds)*b.round).Round(time.Second)
	loaded := make(chan error, 1)
	go func() {
		_, err := w.round(d + 2*time.Second)
		loaded <- err
	}()
	time.Sleep(time.Second)
	before := w.arrived.Load()
	taken, err := profileOf(g.admin, d)
	n := w.arrived.Load() - before
	if loadErr := <-loaded; err == nil {
		err = loadErr
	}
	if err != nil {
		return table{}, err
	}
	return divide(taken, int(n))
}

// profileOf records a CPU profile of a process for the duration.
func profileOf(admin string, d time.Duration) (*profile.Profile, error) {
	resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, int(d.Seconds())))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the profile: %s", resp.Status)
	}
	return profile.Parse(resp.Body)
}

// divide returns a table of the CPU time of the parts for each of n tasks. A sample
// belongs to the part of its innermost function that has a part.
func divide(p *profile.Profile, n int) (table, error) {
	cpu := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == "cpu" })
	if cpu < 0 || n == 0 {
		return table{}, fmt.Errorf("a profile without CPU time, or of %d tasks", n)
	}
	took := make(map[string]int64)
	var all int64
	for _, sample := range p.Sample {
		what := restPart
	stack:
		for _, location := range sample.Location {
			for _, line := range location.Line {
				if found := partOf(line.Function.Name); found != "" {
					what = found
					break stack
				}
			}
		}
		took[what] += sample.Value[cpu]
		all += sample.Value[cpu]
	}
	micros := func(nanos int64) string { return fmt.Sprintf("%.0f", float64(nanos)/1000/float64(n)) }
	t := table{head: []string{"part", "µs of CPU time a task"}}
	for _, what := range slices.SortedFunc(maps.Keys(took), func(a, b string) int { return cmp.Or(cmp.Compare(took[b], took[a]), cmp.Compare(a, b)) }) {
		t.rows = append(t.rows, []string{what, micros(took[what])})
	}
	t.rows = append(t.rows, []string{"all of it", micros(all)})
	return t, nil
}
