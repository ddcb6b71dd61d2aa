package sqlite

import (
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// The states of a task as stored.
const (
	queued = iota
	running
	delivering
	done
	dead
	states // the number of states
)

var stateNames = [states]task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead}

// place is the set of counters that count a task.
type place struct {
	state               int
	held                bool   // a process has it in memory: its holder is set
	queue, host, domain string // "" for none
	size                int64  // of its document and bodies
}

// tx is a transaction of the writer with its pending changes in memory. The commit
// checks whether a statement has failed; only other errors are returned.
type tx struct {
	*conn
	s   *store
	now int64

	changed    []string // IDs of tasks
	afterwards []func()
	begun      []*lease
	ended      []*lease
	counts     map[counter]int64 // changes of the counters
	held       int               // first deliveries that will be in memory
	unneeded   []string          // files of bodies whose rows are removed
}

// counter is a counter in the database.
type counter struct{ update, name string }

// The updates of counters. ?1 is the change and ?2 the name.
const (
	countTasks   = "UPDATE tally SET tasks = tasks + ?1 WHERE state = ?2"
	countQueued  = "INSERT INTO queue(name, queued) VALUES (?2, ?1) ON CONFLICT(name) DO UPDATE SET queued = queued + ?1"
	countRunning = "INSERT INTO queue(name, running) VALUES (?2, ?1) ON CONFLICT(name) DO UPDATE SET running = running + ?1"
	countWaiting = "INSERT INTO host(name, waiting) VALUES (?2, ?1) ON CONFLICT(name) DO UPDATE SET waiting = waiting + ?1"
	countBytes   = "INSERT INTO domain(name, bytes) VALUES (?2, ?1) ON CONFLICT(name) DO UPDATE SET bytes = bytes + ?1"
)

// after schedules f to be called after the commit, with store.mu held.
func (t *tx) after(f func()) { t.afterwards = append(t.afterwards, f) }

// step updates a task and counts it in its new place. It returns ErrLost if the update
// changes no row.
func (t *tx) step(r *row, to place, update string, args ...any) error {
	t.exec(update, args...)
	if t.Changes() != 1 {
		return engine.ErrLost
	}
	t.move(r, to)
	return nil
}

// move counts a task in another place.
func (t *tx) move(r *row, to place) {
	t.count(r.place, -1)
	t.count(to, 1)
	t.changed = append(t.changed, r.id)
	if r.place.state == queued {
		t.s.cache.drop(r.seq)
	}
}

func (t *tx) count(p place, n int64) {
	t.add(countTasks, string(stateNames[p.state]), n)
	switch {
	case p.state == queued:
		t.add(countQueued, p.queue, n)
	case p.state == running:
		t.add(countRunning, p.queue, n)
	case p.state == delivering && !p.held:
		t.add(countWaiting, p.host, n)
	}
	t.add(countBytes, p.domain, n*p.size)
}

func (t *tx) add(update, name string, n int64) {
	if name != "" {
		t.counts[counter{update, name}] += n
	}
}

// flush writes the changed counters to the database.
func (t *tx) flush() {
	for c, n := range t.counts {
		if n != 0 {
			t.exec(c.update, n, c.name)
		}
	}
}

// publish applies the transaction to the state in memory. store.mu is held.
func (t *tx) publish() {
	for _, l := range t.begun {
		t.s.leases[l.row.seq] = l
	}
	for _, l := range t.ended {
		l.end()
	}
	for _, f := range t.afterwards {
		f()
	}
	for _, id := range t.changed {
		for _, w := range t.s.waiters[id] {
			wake(w)
		}
	}
	t.s.dropHosts()
}
