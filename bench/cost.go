package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// costs measures the cost of a task, for tasks of waiting clients and of a queue, with
// the embedded engine and with a cluster of three servers.
func costs(b *bench) (table, error) {
	t := table{head: []string{"task", "disk writes, gateway", "CPU, gateway", "disk writes, all servers", "CPU, all servers"}}
	waiting := func(app string) string { return "callback\nreverse_proxy " + app }
	queue := func(app string) string { return "callback\ntask_queue q {\nreverse_proxy " + app + "\n}" }
	for _, c := range []struct {
		what    string
		servers int
		site    func(app string) string
		status  int
	}{
		{"waiting client, embedded", 0, waiting, 200},
		{"queue, embedded", 0, queue, 202},
		{"waiting client, cluster of 3", 3, waiting, 200},
		{"queue, cluster of 3", 3, queue, 202},
	} {
		line, err := cost(b, c.servers, c.site, c.status)
		if err != nil {
			return t, fmt.Errorf("%s: %w", c.what, err)
		}
		t.rows = append(t.rows, append([]string{c.what}, line...))
	}
	return t, nil
}

// cost runs tasks and returns the cost per task.
func cost(b *bench, servers int, site func(app string) string, status int) ([]string, error) {
	c, err := startCluster(servers)
	if err != nil {
		return nil, err
	}
	defer c.remove()
	g, err := newGateway()
	if err != nil {
		return nil, err
	}
	defer g.remove()
	c.use(g)
	w, err := startWorkload(g, "queue q {\nworkers 64\n}", func(w *workload) string { return site(w.app.addr) })
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	defer w.close()
	warm, n := b.some(500), b.some(5_000)
	if err := w.count(warm, status); err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	ours, theirs := []int{g.cmd.Process.Pid}, c.processes()
	before, servedBefore := usageOf(ours), usageOf(theirs)
	if err := w.count(n, status); err != nil {
		return nil, fmt.Errorf("%w: %s", err, g.lastLog())
	}
	used, served := usageOf(ours).since(before), usageOf(theirs).since(servedBefore)
	if used.err != nil || served.err != nil {
		return nil, fmt.Errorf("%w %w", used.err, served.err)
	}
	line := used.each(n)
	if servers == 0 {
		return append(line, "–", "–"), nil
	}
	return append(line, served.each(n)...), nil
}

// usage is the CPU time and the disk writes of processes.
type usage struct {
	cpu  time.Duration
	disk int64 // bytes
	err  error
}

func usageOf(processes []int) (u usage) {
	for _, pid := range processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return usage{err: err}
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		const utime, stime, tick = 11, 12, 10 * time.Millisecond // fields after the name
		for _, i := range []int{utime, stime} {
			n, err := strconv.Atoi(fields[i])
			if err != nil {
				return usage{err: err}
			}
			u.cpu += time.Duration(n) * tick
		}
		if text, err = os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)); err != nil {
			return usage{err: err}
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
				if err != nil {
					return usage{err: err}
				}
				u.disk += n
			}
		}
	}
	return u
}

func (u usage) since(before usage) usage {
	return usage{cpu: u.cpu - before.cpu, disk: u.disk - before.disk, err: u.err}
}

func (u usage) each(n int) []string {
	return []string{number(float64(u.disk)/float64(n)/1000) + " kB", fmt.Sprintf("%d µs", u.cpu.Microseconds()/int64(n))}
}
