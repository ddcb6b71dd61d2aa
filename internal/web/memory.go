package web

import (
	"crypto/rand"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxRemembered bounds the memory for all callbacks of an inbox: 500 with bodies of 16
// MiB would take 8 GiB.
const maxRemembered = 64 << 20

// newest is above the number of every callback.
const newest = uint64(math.MaxUint64)

// scope is the path of a view, which shows the callbacks to this path and below it.
// Empty means all paths.
type scope string

// scopeOf returns the scope of a view. /inbox/ is the same as /inbox.
func scopeOf(r *http.Request) scope { return scope(strings.TrimRight(r.URL.Path, "/")) }

func (s scope) holds(c *callback) bool {
	below, ok := strings.CutPrefix(c.Path, string(s))
	return s == "" || ok && (below == "" || below[0] == '/') // /inbox2 is not below /inbox
}

// memory keeps the newest callbacks. They are never changed after they are added, and
// can be read without its lock.
type memory struct {
	keep int

	mu        sync.Mutex
	callbacks []*callback // by number, ascending
	bytes     int64
	last      uint64               // number of the newest callback; numbers are not reused
	latest    map[string]*callback // by task ID, of those in callbacks

	// epoch is a random string. It changes when callbacks are removed by hand, and in
	// each new memory. A reader with another epoch starts again.
	epoch string
	// changed is closed and replaced at each change.
	changed chan struct{}
}

func newMemory(keep int) *memory {
	return &memory{
		keep:    keep,
		latest:  make(map[string]*callback),
		epoch:   rand.Text(),
		changed: make(chan struct{}),
	}
}

// add adds a callback and sets its number, its time, and the time since the previous
// callback of the same task.
func (m *memory) add(c *callback) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	c.Number = m.last
	c.ReceivedAt = time.Now()
	if c.TaskID != "" {
		if previous := m.latest[c.TaskID]; previous != nil {
			since := c.ReceivedAt.Sub(previous.ReceivedAt).Milliseconds()
			c.SincePreviousMS = &since
		}
		m.latest[c.TaskID] = c
	}
	m.callbacks = append(m.callbacks, c)
	m.bytes += c.cost()
	// The newest callback is kept even if it is too large: an inbox that stays empty would be
	// confusing.
	for len(m.callbacks) > m.keep || m.bytes > maxRemembered && len(m.callbacks) > 1 {
		m.discard(m.callbacks[0])
		m.callbacks[0] = nil // the slice's array would keep it alive
		m.callbacks = m.callbacks[1:]
	}
	m.announce()
}

// clear removes the callbacks of a scope.
func (m *memory) clear(s scope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.callbacks = slices.DeleteFunc(m.callbacks, func(c *callback) bool {
		if !s.holds(c) {
			return false
		}
		m.discard(c)
		return true
	})
	m.epoch = rand.Text()
	m.announce()
}

// discard updates the counters and maps for a callback that leaves m.callbacks. The
// caller holds m.mu.
func (m *memory) discard(c *callback) {
	m.bytes -= c.cost()
	if m.latest[c.TaskID] == c {
		delete(m.latest, c.TaskID)
	}
}

// announce wakes the readers that wait for a change. The caller holds m.mu.
func (m *memory) announce() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// before returns the newest callback of a scope whose number is below the given one. It
// returns nil if there is none.
func (m *memory) before(s scope, number uint64) *callback {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := m.search(number) - 1; i >= 0; i-- {
		if c := m.callbacks[i]; s.holds(c) {
			return c
		}
	}
	return nil
}

// lastOf returns the number of the newest callback of a scope. It returns 0 if there is
// none.
func (m *memory) lastOf(s scope) uint64 {
	if c := m.before(s, newest); c != nil {
		return c.Number
	}
	return 0
}

// get returns the callback of a scope with the given number. It returns nil if there is
// none.
func (m *memory) get(s scope, number uint64) *callback {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.search(number)
	if i == len(m.callbacks) || m.callbacks[i].Number != number || !s.holds(m.callbacks[i]) {
		return nil
	}
	return m.callbacks[i]
}

// search returns the index of the first callback whose number is not below the given
// one. The caller holds m.mu.
func (m *memory) search(number uint64) int {
	i, _ := slices.BinarySearchFunc(m.callbacks, number, func(c *callback, n uint64) int {
		if c.Number < n {
			return -1
		}
		return 1
	})
	return i
}

// position is how far a reader has read: all callbacks up to number, in an epoch.
type position struct {
	epoch  string
	number uint64
}

// next returns the oldest callback of a scope after a position, and the position after
// it. If there is none, it returns nil and a channel changed, which is closed at the
// next change. If the position is of another epoch, next returns a nil callback and the
// start of the current epoch.
//
// A reader has a position instead of a queue. A slow reader therefore costs no memory
// and blocks nobody. It misses the callbacks that are removed in the meantime.
func (m *memory) next(s scope, p position) (c *callback, after position, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.epoch != m.epoch {
		return nil, position{epoch: m.epoch}, m.changed
	}
	if p.number < m.last {
		for _, c := range m.callbacks[m.search(p.number+1):] {
			if s.holds(c) {
				return c, position{m.epoch, c.Number}, m.changed
			}
		}
	}
	return nil, position{m.epoch, m.last}, m.changed
}
