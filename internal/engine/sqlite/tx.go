package sqlite

import (
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// The states of a task, as they are stored.
const (
	queued = iota
	running
	delivering
	done
	dead
	states // how many there are

	gone = -1 // of a place: no task
)

// place is where a task is counted.
type place struct {
	state  int
	held   bool  // a process has it in memory: its holder is set
	queue  int64 // 0 for none, as the next two
	host   int64
	domain int64
	size   int64 // of its document and bodies
}

var nowhere = place{state: gone}

// waits says whether a task is a delivery that the table hands out.
func (p place) waits() bool { return p.state == delivering && !p.held }

// tx is a transaction of the writer, with what it will change in memory.
type tx struct {
	*conn
	s   *store
	now int64
	// committed is set once it is stored, whatever is found out afterwards.
	committed bool

	moves      []move
	afterwards []func()
	states     [states]int64   // change of the number of tasks, by state
	queued     map[int64]int64 // change of the number of queued tasks, by queue
	running    map[int64]int64 // and of running ones
	waiting    map[int64]int64 // change of the number of deliveries in the table, by host
	domains    map[int64]int64 // change of the bytes, by domain
	fresh      int             // first deliveries that will be in memory
	unneeded   []string        // files of bodies whose row is removed
	stored     []string        // files of bodies that are referred to if it commits
	hosts      []*host         // used in it
	newHosts   []*host         // created in it
	newQueues  []*queue        // created in it
}

type move struct {
	id       string
	from, to place
}

// after has f called once the transaction has been committed, with store.mu held.
func (t *tx) after(f func()) { t.afterwards = append(t.afterwards, f) }

// move counts a task in another place.
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

// flush writes what was counted during the transaction.
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

// publish applies the transaction to what is kept in memory. store.mu is held.
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

// release lets the hosts that were used be dropped. store.mu is held.
func (t *tx) release() {
	for _, h := range t.hosts {
		h.users--
	}
	t.s.dropHosts()
}

// tally counts a task in its place. store.mu is held.
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

// undo removes what a transaction that was rolled back has added in memory.
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

// maxDomains bounds how many names of domains the writer remembers.
const maxDomains = 10_000

// domain returns the ID of a domain; 0 for "".
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

// named returns the ID of a row by its name, which is added if it is new.
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

// host returns a host by its name; nil for "". It stays in memory until the end of
// the transaction.
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

// waiter is somebody who waits for a task to change.
type waiter chan struct{}

// wakeWaiters wakes those who wait for a task. store.mu is held.
func (s *store) wakeWaiters(id string) {
	for _, w := range s.waiters[id] {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}
