package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"

	"github.com/google/pprof/profile"
)

// maxAllocations is the target: the allocations of a waiting client's task, in addition
// to those of a proxied request and of a POST by net/http's client.
const maxAllocations = 60

// allocations counts the allocations of a waiting client's task beside those of plain
// Caddy and of net/http's client, and names the functions of the module that make the
// most.
func allocations(b *bench) (table, error) {
	t := table{head: []string{"", "allocations a task"}}
	n := b.some(20_000)
	ours, proxied, err := countedAllocations(n)
	if err != nil {
		return t, err
	}
	posted, err := postAllocations(n)
	if err != nil {
		return t, err
	}
	line := func(what string, value float64) { t.rows = append(t.rows, []string{what, fmt.Sprintf("%.0f", value)}) }
	line("a task of a waiting client", ours)
	line("a request through plain Caddy", proxied)
	line("a POST of net/http's client", posted)
	line(fmt.Sprintf("**the difference** (target: at most %d)", maxAllocations), ours-proxied-posted)
	sites, tasks, err := allocationSites(b)
	if err != nil {
		return t, err
	}
	for _, site := range largest(sites)[:min(len(sites), 10)] {
		line("`"+site+"`", float64(sites[site])/float64(tasks))
	}
	return t, nil
}

// countedAllocations returns the allocations of a gateway for a task and for a request to
// a site without the callback directive.
func countedAllocations(n int) (ours, proxied float64, err error) {
	g, err := newGateway()
	if err != nil {
		return 0, 0, err
	}
	defer g.remove()
	plain, err := freeAddr()
	if err != nil {
		return 0, 0, err
	}
	w, err := startWorkloadBeside(g, "", waitingSite, func(w *workload) string {
		return siteAt(plain, "reverse_proxy "+w.app.addr)
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	defer w.close()
	each := func(f func(n int) error) (float64, error) {
		if err := f(n / 10); err != nil { // warm-up
			return 0, err
		}
		before, err := mallocs(g.admin)
		if err != nil {
			return 0, err
		}
		if err := f(n); err != nil {
			return 0, err
		}
		after, err := mallocs(g.admin)
		return float64(after-before) / float64(n), err
	}
	if ours, err = each(func(n int) error { return w.count(n, 200) }); err != nil {
		return 0, 0, err
	}
	proxied, err = each(func(n int) error {
		_, err := count(plain, clients, n, 200, w.request)
		return err
	})
	return ours, proxied, err
}

// mallocs returns how many objects a Caddy process has allocated.
func mallocs(admin string) (uint64, error) {
	resp, err := http.Get("http://" + admin + "/debug/vars")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var vars struct{ Memstats runtime.MemStats }
	err = json.NewDecoder(resp.Body).Decode(&vars)
	return vars.Memstats.Mallocs, err
}

// postAllocations returns the allocations of this process for a POST of net/http's
// client. The receiver makes none.
func postAllocations(n int) (float64, error) {
	rcv, err := serve("127.0.0.1:0", ok("text/plain", nil))
	if err != nil {
		return 0, err
	}
	defer rcv.close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := postLoop([]string{rcv.addr}, 8, n); err != nil {
		return 0, err
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n), nil
}

// allocationSites returns the allocations of the module by function, and the number of
// tasks that made them.
func allocationSites(b *bench) (map[string]int64, int, error) {
	g, err := newGateway()
	if err != nil {
		return nil, 0, err
	}
	defer g.remove()
	g.env = []string{"GODEBUG=memprofilerate=4096"}
	w, err := newWorkload(g)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	defer w.close()
	if _, err := w.round(b.round); err != nil { // warm-up
		return nil, 0, err
	}
	taken, n, err := underLoad(b, w, "allocs")
	if err != nil {
		return nil, 0, err
	}
	sites, err := sum(taken, "alloc_objects", site)
	return sites, n, err
}

// site returns the innermost function of the module on a stack. It returns "" if a part
// allocates that is not the module's: the server, the proxy, or a transport.
func site(stack []profile.Line) string {
	for _, line := range stack {
		name := line.Function.Name
		if own, ok := strings.CutPrefix(name, inModule); ok {
			return fmt.Sprintf("%s:%d", strings.TrimLeft(own, "/."), line.Line)
		}
		if part := partOf(name); part != "" && !strings.HasPrefix(part, "engine") && !strings.HasPrefix(part, "records") {
			return ""
		}
	}
	return ""
}
