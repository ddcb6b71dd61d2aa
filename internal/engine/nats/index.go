package nats

import (
	"cmp"
	"container/heap"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// An index holds the state of all tasks in memory, about 300 bytes a task. Every
// gateway follows the stream, so it sees the steps of other gateways a moment after
// they are stored. Its own steps are applied when they are acknowledged.
type index struct {
	mu       sync.Mutex
	tasks    map[string]*entry
	byAge    []*entry // from the oldest to the newest; contains removed entries
	gone     int      // how many of byAge were removed
	counts   map[task.State]int64
	hosts    map[string]*backlog
	queues   map[string]*backlog
	due      ranking[*backlog] // hosts to be reported by DueHosts
	earlier  chan struct{}     // signals that due has another first host
	holders  map[string]*holder
	me       *holder
	inFlight map[string]*inFlight // tasks that this gateway runs or attempts
	waiters  map[string][]chan struct{}
	unneeded []unneededBody
	loaded   chan struct{} // closed when the index has all tasks
	endLoad  func()
}

// entry is a task in the index. Times are Unix nanoseconds.
type entry struct {
	id       string
	seq      uint64
	order    uint64
	state    task.State
	status   task.Verdict
	created  int64
	finished int64
	ready    int64
	body     string
	queue    *backlog // nil if the task is in no queue
	host     *backlog // nil if the task has no callback
	holder   *holder  // the gateway that runs the task or attempts the delivery
	trusted  bool
	at       *backlog // the backlog that has the entry; nil if none has
	pos      int      // in at
}

// candidate returns the step of the task that the index has.
func (e *entry) candidate() candidate { return candidate{e.id, e.seq} }

func (e *entry) place() *int { return &e.pos }

func (e *entry) before(f *entry) bool {
	return e.ready < f.ready || e.ready == f.ready && e.order < f.order
}

// backlog has the entries that wait for a host or in a queue.
type backlog struct {
	name    string
	isHost  bool
	entries ranking[*entry] // ordered by ready
	pending int64           // tasks that are queued or delivering
	running int64           // of a queue
	trusted int64           // of the pending ones
	raced   int             // how many of the next picks are random
	wake    chan struct{}   // of a queue; signals that it may have a job
	// isReported is true after DueHosts has reported the host, until a Take returns fewer
	// deliveries than it asked for.
	isReported bool
	state      engine.HostState // of a queue: only Paused
	pos        int              // in index.due
}

func (b *backlog) place() *int { return &b.pos }

func (b *backlog) before(c *backlog) bool { return b.entries[0].before(c.entries[0]) }

// holder is a gateway that can have leases.
type holder struct {
	id     string
	missed int // heartbeats of this gateway since the holder's last one
	dead   bool
	tasks  map[*entry]struct{} // the tasks that it runs or attempts
}

func newIndex(me string) *index {
	x := &index{
		tasks: make(map[string]*entry), counts: make(map[task.State]int64),
		hosts: make(map[string]*backlog), queues: make(map[string]*backlog),
		earlier: make(chan struct{}, 1), holders: make(map[string]*holder),
		inFlight: make(map[string]*inFlight), waiters: make(map[string][]chan struct{}),
		loaded: make(chan struct{}),
	}
	x.endLoad = sync.OnceFunc(func() { close(x.loaded) })
	x.me = x.holder(me)
	return x
}

// host returns the backlog of a host.
func (x *index) host(name string) *backlog {
	b := x.hosts[name]
	if b == nil {
		b = &backlog{name: name, isHost: true, pos: -1, state: engine.HostState{Host: name}}
		x.hosts[name] = b
	}
	return b
}

// queue returns the backlog of a queue.
func (x *index) queue(name string) *backlog {
	b := x.queues[name]
	if b == nil {
		b = &backlog{name: name, pos: -1, wake: make(chan struct{}, 1)}
		x.queues[name] = b
	}
	return b
}

func (x *index) holder(id string) *holder {
	h := x.holders[id]
	if h == nil {
		h = &holder{id: id, tasks: make(map[*entry]struct{})}
		x.holders[id] = h
	}
	return h
}

// apply updates the index with a step of a task, unless the index has a later one.
func (x *index) apply(id string, seq uint64, m *meta, fromStream bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.tasks[id]
	if e == nil || e.seq < seq {
		if e != nil && e.state != removed {
			x.leave(e)
			if e.body != "" && e.body != m.Body {
				x.unneeded = append(x.unneeded, unneededBody{e.body, time.Now()})
			}
		}
		// byAge is sorted by creation time, which can change when a task moves into a queue.
		if e == nil || e.state == removed || m.State == removed || e.created != m.Created {
			e = x.replace(e, id, m)
		}
		e.seq = seq
		x.enter(e, m)
		x.notify(id)
	}
	if fromStream && e.state == removed && e.seq == seq {
		delete(x.tasks, e.id) // no earlier step can arrive any more
	}
}

// replace replaces the entry of a task, which may be nil, by a new one.
func (x *index) replace(old *entry, id string, m *meta) *entry {
	if old != nil && old.state != removed {
		old.state = removed
		if x.gone++; x.gone > 1000 && x.gone > len(x.byAge)/2 {
			x.byAge = slices.DeleteFunc(x.byAge, func(e *entry) bool { return e.state == removed })
			x.gone = 0
		}
	}
	e := &entry{id: strings.Clone(id), created: m.Created, pos: -1}
	x.tasks[e.id] = e
	if m.State != removed {
		i, _ := slices.BinarySearchFunc(x.byAge, e, compareAge)
		x.byAge = slices.Insert(x.byAge, i, e)
	}
	return e
}

func compareAge(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(a.id, b.id))
}

// enter updates an entry from a step and adds it to counts and rankings.
func (x *index) enter(e *entry, m *meta) {
	e.state, e.status = unique.Make(m.State).Value(), unique.Make(m.Status).Value()
	e.finished, e.ready, e.trusted, e.body = m.Finished, m.Ready, m.Trusted, m.Body
	e.order = cmp.Or(m.Order, e.seq)
	e.queue, e.host, e.holder = nil, nil, nil
	if m.Queue != "" || e.state == task.Queued {
		e.queue = x.queue(m.Queue)
	}
	if m.Host != "" || e.state == task.Delivering {
		e.host = x.host(m.Host)
	}
	if m.Holder != "" {
		e.holder = x.holder(m.Holder)
		e.holder.tasks[e] = struct{}{}
	}
	if f := x.inFlight[e.id]; f != nil && m.Token != f.token {
		delete(x.inFlight, e.id)
		if !strings.HasPrefix(m.Token, f.token) {
			f.lose()
		}
	}
	if e.state != removed {
		x.count(e, 1)
		x.enqueue(e)
	}
}

// leave removes an entry from all counts and rankings before its next step.
func (x *index) leave(e *entry) {
	x.count(e, -1)
	x.dequeue(e)
	if e.holder != nil {
		delete(e.holder.tasks, e)
	}
}

func (x *index) count(e *entry, n int64) {
	x.counts[e.state] += n
	switch {
	case e.state == task.Queued:
		e.queue.pending += n
	case e.state == task.Running && e.queue != nil:
		e.queue.running += n
	case e.state == task.Delivering:
		e.host.pending += n
		if e.trusted {
			e.host.trusted += n
		}
	}
}

// backlogOf returns the backlog in which an entry waits to be taken, or nil. If a delivery
// names this gateway but is not in flight, it was stored without being acknowledged.
func (x *index) backlogOf(e *entry) *backlog {
	switch {
	case e.state == task.Queued:
		return e.queue
	case e.state == task.Delivering && x.inFlight[e.id] == nil && (e.holder == nil || e.holder == x.me || e.holder.dead):
		return e.host
	}
	return nil
}

// enqueue adds an entry to its backlog. It is called again when the entry is no longer in
// flight, or when its holder dies or returns.
func (x *index) enqueue(e *entry) {
	x.dequeue(e)
	if b := x.backlogOf(e); b != nil {
		e.at = b
		heap.Push(&b.entries, e)
		x.report(b)
		signal(b.wake)
	}
}

func (x *index) dequeue(e *entry) {
	if b := e.at; b != nil {
		heap.Remove(&b.entries, e.pos)
		e.at = nil
		x.report(b)
	}
}

// report updates the place of a host among those that DueHosts reports. It must be
// called after each change to the host's entries.
func (x *index) report(b *backlog) {
	if b.pos >= 0 {
		heap.Remove(&x.due, b.pos)
	}
	if b.isHost && !b.isReported && !b.state.Paused && len(b.entries) > 0 {
		heap.Push(&x.due, b)
		if b.pos == 0 {
			signal(x.earlier)
		}
	}
}

// pick takes up to n entries that are ready out of the backlog of a host or a queue, and
// returns how long to wait for the next one. After it has lost a race to another gateway
// it picks at random from the first few, so that gateways do not all try the same ones.
func (x *index) pick(of func(name string) *backlog, name string, n int) (picked []candidate, wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := of(name)
	wait = maxSleep
	for now := time.Now().UnixNano(); !b.state.Paused && len(b.entries) > 0; {
		if wait = min(maxSleep, time.Duration(b.entries[0].ready-now)); wait > 0 || len(picked) == n {
			break
		}
		e := b.entries[rand.IntN(min(1+b.raced, len(b.entries)))] //nolint:gosec // not secret
		if e.ready > now {
			e = b.entries[0]
		}
		b.raced = max(0, b.raced-1)
		x.dequeue(e)
		picked = append(picked, e.candidate())
	}
	if len(picked) > 0 && len(b.entries) > 0 {
		signal(b.wake) // another worker may take the rest
	}
	return picked, wait
}

// maxSleep limits how long a clock change goes unnoticed.
const maxSleep = 5 * time.Second

// start registers a task that is in flight, before the step is stored.
func (x *index) start(f *inFlight) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.inFlight[f.m.meta.ID] = f
}

// drop ends f, which may be nil, after an error, whether or not the step was stored. The
// task returns to its backlog, unless it has a later step or was removed: that follows in
// the stream.
func (x *index) drop(id string, f *inFlight, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.inFlight[id] == f {
		delete(x.inFlight, id)
	}
	e := x.tasks[id]
	if e == nil {
		return
	}
	lost := errors.Is(err, engine.ErrLost) || errors.Is(err, engine.ErrNotFound)
	for _, b := range []*backlog{e.queue, e.host} {
		if b != nil && lost {
			b.raced = raceSpread
		} else if b != nil {
			b.isReported = false
		}
	}
	if !lost {
		x.enqueue(e)
	}
}

// lastStep returns the sequence of the last step that the index has of a task, zero if
// it has none, and whether the task exists.
func (x *index) lastStep(id string) (seq uint64, exists bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.tasks[id]; e != nil {
		return e.seq, e.state != removed
	}
	return 0, false
}

// raceSpread is how many entries are picked at random after a lost race, and how far
// from the first one.
const raceSpread = 8

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// notify wakes the waiters of a task.
func (x *index) notify(id string) {
	for _, w := range x.waiters[id] {
		signal(w)
	}
}

// clear empties the index, because the stream was created anew. Every lease is lost.
func (x *index) clear() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.tasks {
		if e.state != removed {
			x.leave(e)
			e.state = removed
		}
		x.notify(e.id)
	}
	for _, f := range x.inFlight {
		f.lose()
	}
	clear(x.tasks)
	clear(x.inFlight)
	x.byAge, x.gone, x.unneeded = nil, 0, nil
}
