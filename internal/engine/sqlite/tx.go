package sqlite

import (
	"github.com/ncruces/go-sqlite3"

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
	state   int
	queue   int64 // 0 for none, as the next two
	host    int64
	domain  int64
	trusted bool
	size    int64
}

var nowhere = place{state: gone}

// tx is a transaction of the writer, with what it will change in memory.
type tx struct {
	*conn
	s   *store
	now int64
	// committed is set once it is stored, whatever is found out afterwards.
	committed bool

	moves      []move
	afterwards []func()
	changed    []string        // IDs of tasks whose waiters are notified
	queued     map[int64]int64 // change of the number of queued tasks, by queue
	domains    map[int64]int64 // change of the bytes, by domain
	unneeded   []string        // files of bodies whose last reference goes
	stored     []string        // files of bodies that are referred to if it commits
	hosts      []*host         // loaded or created in it
	newQueue   []string        // created in it
}

type move struct{ from, to place }

// after has f called once the transaction has been committed, with store.mu held.
func (t *tx) after(f func()) { t.afterwards = append(t.afterwards, f) }

// move counts a task in another place.
func (t *tx) move(id string, from, to place) {
	t.moves = append(t.moves, move{from, to})
	t.changed = append(t.changed, id)
	t.count(from, -1)
	t.count(to, 1)
}

func (t *tx) count(p place, sign int64) {
	if p.state == gone {
		return
	}
	if p.state == queued {
		if t.queued == nil {
			t.queued = map[int64]int64{}
		}
		t.queued[p.queue] += sign
	}
	if p.domain != 0 {
		if t.domains == nil {
			t.domains = map[int64]int64{}
		}
		t.domains[p.domain] += sign * p.size
	}
}

// flush writes what was gathered during the transaction.
func (t *tx) flush() error {
	for domain, bytes := range t.domains {
		if bytes != 0 {
			if err := t.exec("UPDATE domain SET bytes = max(0, bytes + ?) WHERE id = ?", bytes, domain); err != nil {
				return err
			}
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
	for _, id := range t.changed {
		t.s.wakeWaiters(id)
	}
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
	if p.state == delivering {
		if h := s.hosts[p.host]; h != nil {
			h.pending += sign
			if p.trusted {
				h.trusted += sign
			}
		}
	}
}

// forget drops what a transaction that was rolled back had made known.
func (t *tx) forget() {
	t.s.mu.Lock()
	for _, h := range t.hosts {
		delete(t.s.hosts, h.id)
		delete(t.s.hostNames, h.state.Host)
	}
	for _, name := range t.newQueue {
		if q := t.s.queueNames[name]; q != nil {
			delete(t.s.queues, q.id)
			delete(t.s.queueNames, name)
		}
	}
	t.s.mu.Unlock()
	clear(t.s.domains)
}

// queue returns a queue by its name; "" is none.
func (t *tx) queue(name string) (*queue, error) {
	t.s.mu.Lock()
	q := t.s.queueNames[name]
	t.s.mu.Unlock()
	if q != nil {
		return q, nil
	}
	id, err := t.named("queue", name)
	if err != nil {
		return nil, err
	}
	t.newQueue = append(t.newQueue, name)
	q = &queue{id: id, name: name}
	t.s.mu.Lock()
	t.s.queues[id], t.s.queueNames[name] = q, q
	t.s.mu.Unlock()
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

var (
	selectName = map[string]string{
		"queue": "SELECT id FROM queue WHERE name = ?", "domain": "SELECT id FROM domain WHERE name = ?", "host": "SELECT id FROM host WHERE name = ?",
	}
	insertName = map[string]string{
		"queue": "INSERT INTO queue(name) VALUES (?)", "domain": "INSERT INTO domain(name) VALUES (?)", "host": "INSERT INTO host(name) VALUES (?)",
	}
)

// named returns the ID of a row by its name, which is added if it is new.
func (t *tx) named(table, name string) (int64, error) {
	id, ok, err := t.number(selectName[table], name)
	if err != nil || ok {
		return id, err
	}
	if err := t.exec(insertName[table], name); err != nil {
		return 0, err
	}
	return t.LastInsertRowID(), nil
}

// host returns a host by its name, with what is stored of it; nil for "". The
// host must stay in memory while it has deliveries pending.
func (t *tx) host(name string) (*host, error) {
	if name == "" {
		return nil, nil
	}
	t.s.mu.Lock()
	h := t.s.hostNames[name]
	t.s.mu.Unlock()
	if h != nil {
		return h, nil
	}
	err := t.query(selectHosts+" WHERE name = ?", []any{name}, func(stmt *sqlite3.Stmt) bool {
		h = scanHost(stmt)
		return false
	})
	if err != nil {
		return nil, err
	}
	if h == nil {
		id, err := t.named("host", name)
		if err != nil {
			return nil, err
		}
		h = newHost(id, engine.HostState{Host: name})
	}
	t.hosts = append(t.hosts, h)
	t.s.mu.Lock()
	t.s.remember(h)
	t.s.mu.Unlock()
	return h, nil
}

// waiter is somebody who waits for a task to change.
type waiter chan struct{}

// wakeWaiters tells those who wait for a task. store.mu is held.
func (s *store) wakeWaiters(id string) {
	for _, w := range s.waiters[id] {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}
