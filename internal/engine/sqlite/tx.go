package sqlite

import (
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// The states of a task as stored.
const (
	queued = iota
	running
	delivering
	done
	dead
	states // the number of states

	gone = -1 // the state of a place without a task
)

// place is the set of counters that count a task.
type place struct {
	state  int
	held   bool  // a process has it in memory: its holder is set
	queue  int64 // 0 for none, like the next two
	host   int64
	domain int64
	size   int64 // of its document and bodies
}

var nowhere = place{state: gone}

// waits reports whether a task is a delivery that the table hands out.
func (p place) waits() bool { return p.state == delivering && !p.held }

// tx is a transaction of the writer with its pending changes in memory.
type tx struct {
	*conn
	s   *store
	now int64
	// committed is set once the transaction is stored, even if an error follows.
	committed bool

	moves      []move
	afterwards []func()
	states     [states]int64   // changes of the number of tasks by state
	queued     map[int64]int64 // changes of the number of queued tasks by queue
	running    map[int64]int64 // changes of the number of running tasks by queue
	waiting    map[int64]int64 // changes of the number of deliveries in the table by host
	domains    map[int64]int64 // changes of the number of bytes by domain
	fresh      int             // first deliveries that will be in memory
	unneeded   []string        // files of bodies whose rows are removed
	stored     []string        // files of bodies that rows refer to after the commit
	hosts      []*host         // used in the transaction
	newHosts   []*host         // created in the transaction
	newQueues  []*queue        // created in the transaction
}

type move struct {
	id       string
	from, to place
}

// after schedules f to be called after the commit, with store.mu held.
func (t *tx) after(f func()) { t.afterwards = append(t.afterwards, f) }

// move moves a task from the counters of one place to those of another.
func (t *tx) move(id string, from, to place) {
	t.moves = append(t.moves, move{id, from, to})
	t.count(from, -1)
	t.count(to, 1)
}

func add(m *map[int64]int64, id, n int64) {
	if id == 0 {
		return
	}
	if *m == nil {
		*m = map[int64]int64{}
	}
	(*m)[id] += n
}

func (t *tx) count(p place, sign int64) {
	if p.state == gone {
		return
	}
	t.states[p.state] += sign
	switch {
	case p.state == queued:
		add(&t.queued, p.queue, sign)
	case p.state == running:
		add(&t.running, p.queue, sign)
	case p.waits():
		add(&t.waiting, p.host, sign)
	}
	add(&t.domains, p.domain, sign*p.size)
}

// flush writes the changed counters to the database.
func (t *tx) flush() error {
	if t.states != [states]int64{} {
		err := t.exec("UPDATE tally SET queued = queued + ?, running = running + ?, delivering = delivering + ?, done = done + ?, dead = dead + ?",
			t.states[queued], t.states[running], t.states[delivering], t.states[done], t.states[dead])
		if err != nil {
			return err
		}
	}
	for _, c := range []struct {
		query   string
		changes map[int64]int64
	}{
		{"UPDATE queue SET queued = queued + ? WHERE id = ?", t.queued},
		{"UPDATE queue SET running = running + ? WHERE id = ?", t.running},
		{"UPDATE host SET waiting = waiting + ? WHERE id = ?", t.waiting},
	} {
		for id, n := range c.changes {
			if n == 0 {
				continue
			}
			if err := t.exec(c.query, n, id); err != nil {
				return err
			}
		}
	}
	return t.flushDomains()
}

func (t *tx) flushDomains() error {
	for id, bytes := range t.domains {
		if bytes == 0 {
			continue
		}
		if err := t.exec("UPDATE domain SET bytes = max(0, bytes + ?) WHERE id = ?", bytes, id); err != nil {
			return err
		}
	}
	clear(t.domains)
	return nil
}

// publish applies the transaction to the state in memory. store.mu is held.
func (t *tx) publish() {
	for _, m := range t.moves {
		t.s.tally(m.from, -1)
		t.s.tally(m.to, 1)
	}
	for _, f := range t.afterwards {
		f()
	}
	for _, m := range t.moves {
		t.s.wakeWaiters(m.id)
	}
	t.release()
}

// release allows memory to drop the hosts of the transaction. store.mu is held.
func (t *tx) release() {
	for _, h := range t.hosts {
		h.users--
	}
	t.s.dropHosts()
}

// tally adds a task to the counters of its place, or subtracts it. store.mu is held.
func (s *store) tally(p place, sign int64) {
	if p.state == gone {
		return
	}
	s.counts[p.state] += sign
	if q := s.queues[p.queue]; q != nil {
		switch p.state {
		case queued:
			q.queued += sign
		case running:
			q.running += sign
		}
	}
	if h := s.hosts[p.host]; h != nil && p.state == delivering && p.held {
		h.held += sign
	}
}

// undo removes what a rolled-back transaction has added in memory.
func (t *tx) undo() {
	t.s.mu.Lock()
	t.release()
	for _, h := range t.newHosts {
		t.s.drop(h)
	}
	for _, q := range t.newQueues {
		delete(t.s.queues, q.id)
		delete(t.s.queueNames, q.name)
	}
	t.s.mu.Unlock()
	clear(t.s.domains)
}

// queue returns a queue by its name.
func (t *tx) queue(name string) (*queue, error) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if q := t.s.queueNames[name]; q != nil {
		return q, nil
	}
	id, err := t.named("queue", name)
	if err != nil {
		return nil, err
	}
	q := &queue{id: id, name: name}
	t.newQueues = append(t.newQueues, q)
	t.s.queues[id], t.s.queueNames[name] = q, q
	return q, nil
}

// maxDomains bounds how many domain names the writer caches.
const maxDomains = 10_000

// domain returns the ID of a domain. It returns 0 for "".
func (t *tx) domain(name string) (int64, error) {
	if name == "" {
		return 0, nil
	}
	if id, ok := t.s.domains[name]; ok {
		return id, nil
	}
	id, err := t.named("domain", name)
	if err == nil {
		if len(t.s.domains) >= maxDomains {
			clear(t.s.domains)
		}
		t.s.domains[name] = id
	}
	return id, err
}

// named returns the ID of the row with a name. It adds a new row if necessary.
func (t *tx) named(table, name string) (int64, error) {
	id, ok, err := t.number("SELECT id FROM "+table+" WHERE name = ?", name)
	if err != nil || ok {
		return id, err
	}
	if err := t.exec("INSERT INTO "+table+"(name) VALUES (?)", name); err != nil {
		return 0, err
	}
	return t.LastInsertRowID(), nil
}

// host returns a host by its name. It returns nil for "". The host stays in memory
// until the end of the transaction.
func (t *tx) host(name string) (*host, error) {
	if name == "" {
		return nil, nil
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	h := t.s.hostNames[name]
	if h == nil {
		var err error
		if h, err = findHost(t.conn, " WHERE name = ?", name); err != nil {
			return nil, err
		}
		if h == nil {
			if err := t.exec("INSERT INTO host(name) VALUES (?)", name); err != nil {
				return nil, err
			}
			h = &host{id: t.LastInsertRowID(), state: engine.HostState{Host: name}}
			t.newHosts = append(t.newHosts, h)
		}
		t.s.keep(h)
	}
	h.users++
	t.hosts = append(t.hosts, h)
	return h, nil
}

// waiter receives a signal when a task or queue changes.
type waiter chan struct{}

// wakeWaiters wakes all waiters of a task. store.mu is held.
func (s *store) wakeWaiters(id string) {
	for _, w := range s.waiters[id] {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}
