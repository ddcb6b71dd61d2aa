package main

import (
	"cmp"
	"errors"
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
	taken, n, err := underLoad(b, w, "profile")
	if err != nil {
		return table{}, err
	}
	return divide(taken, n)
}

// underLoad records a profile of a workload's gateway. It returns how many tasks have
// ended meanwhile.
func underLoad(b *bench, w *workload, kind string) (*profile.Profile, int, error) {
	// The profile starts and ends while there is load.
	d := max(time.Second, min(6*time.Second, time.Duration(b.rounds)*b.round)).Round(time.Second)
	loaded := make(chan error, 1)
	go func() {
		_, err := w.round(d + 2*time.Second)
		loaded <- err
	}()
	time.Sleep(time.Second)
	before := w.arrived.Load()
	taken, err := profileOf(w.g.admin, kind, d)
	n := w.arrived.Load() - before
	return taken, int(n), cmp.Or(err, <-loaded)
}

// profileOf records a profile of a process for the duration. The kind is "profile" for
// CPU time, and "allocs" for allocations.
func profileOf(admin, kind string, d time.Duration) (*profile.Profile, error) {
	resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", admin, kind, int(d.Seconds())))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the profile: %s", resp.Status)
	}
	return profile.Parse(resp.Body)
}

// divide returns a table of the CPU time of the parts for each of n tasks.
func divide(p *profile.Profile, n int) (table, error) {
	took, err := sum(p, "cpu", samplePart)
	if err != nil || n == 0 {
		return table{}, cmp.Or(err, errors.New("no task has ended"))
	}
	var all int64
	micros := func(nanos int64) string { return fmt.Sprintf("%.0f", float64(nanos)/1000/float64(n)) }
	t := table{head: []string{"part", "µs of CPU time a task"}}
	others := int64(0)
	for i, what := range largest(took) {
		if all += took[what]; i < 10 {
			t.rows = append(t.rows, []string{what, micros(took[what])})
		} else {
			others += took[what]
		}
	}
	t.rows = append(t.rows, []string{"smaller parts", micros(others)})
	t.rows = append(t.rows, []string{"all of it", micros(all)})
	return t, nil
}

// sum adds up the values of the samples by what of returns for their stack. The stack has
// the innermost function first. Samples for which of returns "" are left out.
func sum(p *profile.Profile, typ string, of func(stack []profile.Line) string) (map[string]int64, error) {
	i := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == typ })
	if i < 0 {
		return nil, fmt.Errorf("the profile has no values of the type %s", typ)
	}
	sums := make(map[string]int64)
	for _, sample := range p.Sample {
		var stack []profile.Line
		for _, location := range sample.Location {
			stack = append(stack, location.Line...)
		}
		if what := of(stack); what != "" {
			sums[what] += sample.Value[i]
		}
	}
	return sums, nil
}

// largest returns the keys, those with the largest sums first.
func largest(sums map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(sums), func(a, b string) int { return cmp.Or(cmp.Compare(sums[b], sums[a]), cmp.Compare(a, b)) })
}

// samplePart returns the part of the innermost function that has one.
func samplePart(stack []profile.Line) string {
	for _, line := range stack {
		if found := partOf(line.Function.Name); found != "" {
			return found
		}
	}
	return restPart
}
