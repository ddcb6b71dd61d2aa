package nats

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// An index is what a gateway keeps in memory of the stream of tasks: about 300 bytes
// a task. Every gateway follows the stream, so that it knows the steps of the others
// a moment after they are stored; its own it knows when they are acknowledged.
type index struct {
	mu        sync.Mutex
	tasks     map[string]*entry
	byAge     []*entry // from the oldest to the newest; with some that were removed
	gone      int      // how many of byAge were removed
	graves    []*entry // removed, but earlier steps may still come from the stream
	counts    map[task.State]int64
	hosts     map[string]*backlog
	queues    map[string]*backlog
	alarms    ranking[*backlog] // by when the first of their waiting entries is ready
	reset     chan struct{}     // a message: the first alarm is another
	reports   []*backlog        // hosts to be reported by DueHosts
	reported  chan struct{}     // a message: reports has some
	holders   map[string]*holder
	me        *holder
	schedules map[string]scheduleMeta
	leases    map[string]*lease // held by this gateway, by task
	waiters   map[string][]chan struct{}
	cache     map[string]*message // what this gateway stored lately and may need next
	cacheSize int
	applied   uint64 // the sequence up to which the stream was read
}

// entry is a task in the index. Times are Unix nanoseconds.
type entry struct {
	id        string
	seq       uint64
	order     uint64
	state     task.State
	status    task.Verdict
	created   int64
	finished  int64
	ready     int64
	queue     *backlog // nil if it is no queue's
	host      *backlog // nil if it has no callback
	holder    *holder
	maxStarts int
	trusted   bool
	inFlight  bool   // it is counted as an attempt
	taken     bool   // a delivery that is in flight here
	taking    string // the token of the step that is about to take it
	// in is the ranking of at in which the entry waits; nil if it does not.
	at  *backlog
	in  *ranking[*entry]
	pos int
}

// backlog is what waits for a host or in a queue.
type backlog struct {
	name    string
	due     ranking[*entry]
	waiting ranking[*entry] // ready later
	pos     int             // in alarms
	pending int64           // tasks that are queued or delivering
	running int64           // of a queue: running; of a host: in flight
	trusted int64           // of the pending ones
	paused  bool
	// wake has a message if a queue may have a job that is ready.
	wake chan struct{}
	lost int // races for jobs that were lost lately
	// isReported says that DueHosts need not report the host, toReport that it is in
	// reports.
	isReported, toReport bool
	learned              engine.HostState
}

// holder is a gateway.
type holder struct {
	id      string
	silent  int // heartbeats of this gateway since its last one
	dead    bool
	entries int // tasks that name it
	running int // those of them that run
}

func newIndex(me string) *index {
	x := &index{
		tasks: make(map[string]*entry), counts: make(map[task.State]int64),
		hosts: make(map[string]*backlog), queues: make(map[string]*backlog),
		reset: make(chan struct{}, 1), reported: make(chan struct{}, 1),
		holders: make(map[string]*holder), me: &holder{id: me},
		schedules: make(map[string]scheduleMeta), leases: make(map[string]*lease),
		waiters: make(map[string][]chan struct{}), cache: make(map[string]*message),
	}
	x.holders[me] = x.me
	x.alarms.less = func(a, b *backlog) bool { return a.waiting.items[0].ready < b.waiting.items[0].ready }
	x.alarms.at = func(b *backlog) *int { return &b.pos }
	return x
}

func (x *index) backlog(all map[string]*backlog, name string) *backlog {
	b := all[name]
	if b == nil {
		b = &backlog{name: name, pos: -1, wake: make(chan struct{}, 1)}
		b.learned.Host = name
		for _, r := range []*ranking[*entry]{&b.due, &b.waiting} {
			r.at = func(e *entry) *int { return &e.pos }
			r.less = func(a, b *entry) bool {
				return a.ready < b.ready || a.ready == b.ready && a.order < b.order
			}
		}
		all[name] = b
	}
	return b
}

func (x *index) holder(id string) *holder {
	h := x.holders[id]
	if h == nil && id != "" {
		h = &holder{id: id}
		x.holders[id] = h
	}
	return h
}

// states and verdicts are those that entries share.
var (
	states   = []task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead, removed}
	verdicts = []task.Verdict{task.Complete, task.Failed, task.TimedOut}
)

func shared[T ~string](all []T, s T) T {
	if i := slices.Index(all, s); i >= 0 {
		return all[i]
	}
	return s
}

// apply brings the index to a step of a task, if it does not know a later one.
// stored is the message if this gateway stored it.
func (x *index) apply(id string, seq uint64, m *meta, stored *message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.tasks[id]
	if e != nil && e.seq >= seq {
		return
	}
	if e != nil && e.state != removed && m.State != removed && e.created != m.Created {
		x.leave(e) // it was taken over by a queue, and has another place in byAge
		e.state = removed
		x.gone++
	}
	if e == nil || e.state == removed {
		e = &entry{id: strings.Clone(id), created: m.Created, pos: -1}
		x.tasks[e.id] = e
		if m.State != removed {
			x.insert(e)
		}
	} else {
		x.leave(e)
		if m.State == removed {
			x.gone++
		}
	}
	e.taken = e.taken && e.taking != "" && e.taking == m.Token
	e.seq, e.state, e.status = seq, shared(states, m.State), shared(verdicts, m.Status)
	e.finished, e.ready, e.order, e.maxStarts, e.trusted = m.Finished, m.Ready, m.Order, m.MaxStarts, m.Trusted
	if e.order == 0 {
		e.order = seq
	}
	e.queue, e.host, e.holder = nil, nil, nil
	if m.Queue != "" || m.State == task.Queued {
		e.queue = x.backlog(x.queues, m.Queue)
	}
	if m.Host != "" || m.State == task.Delivering {
		e.host = x.backlog(x.hosts, m.Host)
	}
	if e.state == task.Running || e.state == task.Delivering {
		e.holder = x.holder(m.Holder)
	}
	if e.state == removed {
		x.graves = append(x.graves, e)
	}
	x.enter(e)
	x.remember(e, stored)
	if l := x.leases[id]; l != nil && !strings.HasPrefix(m.Token, l.token) {
		delete(x.leases, id)
		l.lose()
	}
	x.notify(id)
}

// insert puts an entry into byAge. It is nearly always the newest.
func (x *index) insert(e *entry) {
	i := len(x.byAge)
	for i > 0 && i > len(x.byAge)-64 && older(e, x.byAge[i-1]) {
		i--
	}
	if i > 0 && older(e, x.byAge[i-1]) {
		i, _ = slices.BinarySearchFunc(x.byAge[:i], e, compareAge)
	}
	x.byAge = slices.Insert(x.byAge, i, e)
}

func older(a, b *entry) bool { return compareAge(a, b) < 0 }

func compareAge(a, b *entry) int {
	switch {
	case a.created < b.created:
		return -1
	case a.created > b.created:
		return 1
	}
	return strings.Compare(a.id, b.id)
}

// leave takes an entry out of all counts and rankings, as it was before a step.
func (x *index) leave(e *entry) {
	x.counts[e.state]--
	x.count(e, -1)
	x.unplace(e)
}

// enter puts it in again, as it is after the step.
func (x *index) enter(e *entry) {
	if e.state == removed {
		return
	}
	x.counts[e.state]++
	x.count(e, 1)
	x.place(e)
}

func (x *index) count(e *entry, n int64) {
	switch e.state {
	case task.Queued:
		e.queue.pending += n
	case task.Running:
		if e.queue != nil {
			e.queue.running += n
		}
	case task.Delivering:
		e.host.pending += n
		if n > 0 {
			e.inFlight = e.taken || e.holder != nil && !e.holder.dead
		}
		if e.inFlight {
			e.host.running += n
		}
		if e.trusted {
			e.host.trusted += n
		}
	}
	if h := e.holder; h != nil {
		h.entries += int(n)
		if e.state == task.Running {
			h.running += int(n)
		}
	}
}

// compact drops the removed entries of byAge once they are the most of it.
func (x *index) compact() {
	if x.gone < 1000 || x.gone < len(x.byAge)/2 {
		return
	}
	x.byAge = slices.DeleteFunc(x.byAge, func(e *entry) bool { return e.state == removed })
	x.gone = 0
}

// where returns the backlog in which an entry waits to be taken, nil if it does not. A
// delivery of this gateway that it does not know to have taken was stored without
// being acknowledged.
func (x *index) where(e *entry) *backlog {
	switch {
	case e.state == task.Queued:
		return e.queue
	case e.state == task.Delivering && !e.taken && (e.holder == nil || e.holder == x.me || e.holder.dead):
		return e.host
	}
	return nil
}

// place puts an entry where it waits. It is called again if the entry's holder or
// readiness has changed.
func (x *index) place(e *entry) {
	x.unplace(e)
	b := x.where(e)
	if b == nil {
		return
	}
	if e.ready <= time.Now().UnixNano() {
		e.at, e.in = b, &b.due
		b.due.push(e)
		x.call(b)
		return
	}
	e.at, e.in = b, &b.waiting
	b.waiting.push(e)
	x.setAlarm(b)
}

func (x *index) unplace(e *entry) {
	if e.in == nil {
		return
	}
	e.in.remove(e.pos)
	if e.in == &e.at.waiting {
		x.setAlarm(e.at)
	}
	e.at, e.in = nil, nil
}

// call tells who waits that a backlog has something due.
func (x *index) call(b *backlog) {
	if b.paused || b.due.len() == 0 {
		return
	}
	signal(b.wake)
	if x.hosts[b.name] == b && !b.isReported && !b.toReport {
		b.toReport = true
		x.reports = append(x.reports, b)
		signal(x.reported)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// setAlarm puts a backlog into its place among the alarms.
func (x *index) setAlarm(b *backlog) {
	if b.pos >= 0 {
		x.alarms.remove(b.pos) // by its old place; its first entry may have changed
	}
	if b.waiting.len() > 0 {
		x.alarms.push(b)
		if b.pos == 0 {
			signal(x.reset)
		}
	}
}

// ring moves what has become ready, and returns how long to wait until more does.
func (x *index) ring() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	for now := time.Now().UnixNano(); x.alarms.len() > 0; {
		b := x.alarms.items[0]
		first := b.waiting.items[0]
		if first.ready > now {
			return time.Duration(first.ready - now)
		}
		x.place(first)
	}
	return time.Hour
}

// notify wakes those that wait for a change of a task.
func (x *index) notify(id string) {
	for _, w := range x.waiters[id] {
		signal(w)
	}
}

// bury forgets the removed tasks of which no earlier step can come any more.
func (x *index) bury() {
	kept := x.graves[:0]
	for _, e := range x.graves {
		if e.seq > x.applied {
			kept = append(kept, e)
		} else if x.tasks[e.id] == e {
			delete(x.tasks, e.id)
		}
	}
	clear(x.graves[len(kept):])
	x.graves = kept
	x.compact()
}
