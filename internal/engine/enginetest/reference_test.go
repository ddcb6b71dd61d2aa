package enginetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// TestReference runs the suite against the reference engine below. It is deliberately
// simple: one mutex, everything in memory.
func TestReference(t *testing.T) {
	t.Parallel()
	Run(t, reference("", false))
}

// TestReferenceCluster runs the suite against several reference engines on one store.
func TestReferenceCluster(t *testing.T) {
	t.Parallel()
	Run(t, reference("", true))
}

// reference returns an opener of the reference engine with the given fault, if any.
func reference(fault string, cluster bool) Opener {
	var mu sync.Mutex
	stores := make(map[*Store]*memStore)
	return Opener{
		Cluster: cluster,
		Open: func(_ testing.TB, s *Store) engine.Engine {
			mu.Lock()
			defer mu.Unlock()
			m := stores[s]
			if m == nil {
				m = newMemStore(fault)
				m.cluster = cluster
				stores[s] = m
			}
			return m.open(s.Settings)
		},
		Kill: func(_ testing.TB, e engine.Engine) { e.(*memEngine).end() },
		Full: func(_ testing.TB, _ *Store, e engine.Engine) func() {
			return e.(*memEngine).damage(engine.ErrFull)
		},
		Unavailable: func(_ testing.TB, _ *Store, e engine.Engine) func() {
			return e.(*memEngine).damage(engine.ErrUnavailable)
		},
	}
}

// memStore is a store that outlives its engines.
type memStore struct {
	fault   string
	cluster bool

	mu      sync.Mutex
	changed chan struct{} // closed at each change
	secret  []byte
	version uint64
	arrived uint64
	tasks   map[string]*memTask
	keys    map[string]engine.StoredKey
	runs    map[string]engine.Run
	hosts   map[string]engine.HostState
	paused  map[engine.Target]bool
	set     engine.Settings
	swept   time.Time
}

// memTask is a task. The pointers are its bodies; they are nil if the body is not kept.
type memTask struct {
	rec       *task.Record
	req, res  *[]byte
	arrival   uint64
	place     time.Time // the ready time to which a release returns a queued task
	maxStarts int
	holder    holder // may end it
	since     time.Time
}

// holder is a lease or a delivery.
type holder interface{ engine() *memEngine }

func (l *memLease) engine() *memEngine    { return l.e }
func (d *memDelivery) engine() *memEngine { return d.e }

func newMemStore(fault string) *memStore {
	s := &memStore{
		fault: fault, changed: make(chan struct{}), secret: make([]byte, 32), tasks: map[string]*memTask{},
		keys: map[string]engine.StoredKey{}, runs: map[string]engine.Run{}, hosts: map[string]engine.HostState{},
		paused: map[engine.Target]bool{},
	}
	rand.Read(s.secret)
	return s
}

func (s *memStore) open(set engine.Settings) *memEngine {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &memEngine{memStore: s, quiet: map[string]bool{}}
	s.set = set
	for _, t := range s.tasks {
		if t.holder != nil && (t.holder.engine().over || !s.cluster) {
			s.expire(t)
		}
	}
	s.change()
	return e
}

// expire ends the lease or delivery of a dead holder.
func (s *memStore) expire(t *memTask) {
	l, leased := t.holder.(*memLease)
	if t.holder = nil; !leased || s.fault == "crashed holders keep their tasks" {
		return
	}
	if l.lost != nil && !l.e.over {
		go l.lost()
	}
	if t.rec.Queue != "" && t.rec.Starts < t.maxStarts {
		s.requeue(t, t.place)
		return
	}
	s.fail(t, task.ErrorHolderDied)
}

func (s *memStore) requeue(t *memTask, ready time.Time) {
	t.rec.StartedAt, t.rec.NextAttemptAt = time.Time{}, time.Time{}
	if ready.After(time.Now()) {
		t.rec.NextAttemptAt = ready
	}
	t.place, t.holder = ready, nil
	s.move(t, task.Queued)
}

// fail sets the verdict FAILED.
func (s *memStore) fail(t *memTask, reason string) {
	t.rec.Status, t.rec.Error, t.rec.FinishedAt = task.Failed, reason, in(0)
	t.rec.DropRequest()
	s.verdict(t)
}

// verdict changes the state of a task that has got its verdict.
func (s *memStore) verdict(t *memTask) {
	t.req, t.holder, t.rec.NextAttemptAt = nil, nil, time.Time{}
	if t.rec.Callback == nil {
		s.move(t, task.Done)
		return
	}
	s.move(t, task.Delivering)
}

// move changes a task's state.
func (s *memStore) move(t *memTask, to task.State) {
	if s.fault != "versions do not change" || t.rec.State != to {
		s.version++
	}
	if t.rec.State, t.rec.Version = to, s.version; to != task.Running {
		t.since = time.Now()
	}
	s.change()
}

func (s *memStore) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// removeExpired removes tasks over the retention limits, and ends deliveries whose window has
// ended.
func (s *memStore) removeExpired() {
	if time.Since(s.swept) < 2*time.Millisecond {
		return
	}
	s.swept = time.Now()
	ended := map[task.State][]*memTask{}
	window := cmp.Or(s.set.DeliveryWindow, 30*24*time.Hour)
	for _, t := range s.tasks {
		if h := t.holder; h != nil && s.cluster && (h.engine().over || errors.Is(h.engine().broken, engine.ErrUnavailable)) {
			s.expire(t)
		}
		switch st := t.rec.State; {
		case st == task.Delivering && t.holder == nil && time.Since(t.since) > window && s.fault != "no delivery window":
			t.rec.NextAttemptAt = time.Time{}
			s.move(t, task.Dead)
			if s.set.GaveUp != nil {
				s.set.GaveUp(clone(t.rec))
			}
		case st == task.Done, st == task.Dead:
			ended[st] = append(ended[st], t)
		}
	}
	s.evict(ended[task.Done], s.set.Retention, s.set.RetentionCount)
	s.evict(ended[task.Dead], s.set.Dead, s.set.DeadCount)
}

func (s *memStore) evict(ts []*memTask, age time.Duration, count int64) {
	slices.SortFunc(ts, func(a, b *memTask) int { return cmp.Compare(b.rec.Version, a.rec.Version) })
	for i, t := range ts {
		if age > 0 && time.Since(t.since) > age || count > 0 && int64(i) >= count && s.fault != "no count limit" {
			delete(s.tasks, t.rec.ID)
			s.change()
		}
	}
}

// memEngine is an open memStore.
type memEngine struct {
	*memStore
	quiet map[string]bool // hosts that were reported, and for which no Take has returned fewer since
	over  bool
	// broken is the error that calls fail with.
	broken error
}

func (e *memEngine) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	e.change()
}

func (e *memEngine) damage(err error) func() {
	set := func(err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.broken = err
		e.change()
	}
	set(err)
	return func() { set(nil) }
}

// begin locks the store, or returns an error if the store is unavailable.
func (e *memEngine) begin() error {
	e.mu.Lock()
	if e.over || errors.Is(e.broken, engine.ErrUnavailable) {
		e.mu.Unlock()
		return fmt.Errorf("reference: %w", engine.ErrUnavailable)
	}
	e.removeExpired()
	return nil
}

// admit is begin for methods that create a task.
func (e *memEngine) admit() error {
	if err := e.begin(); err != nil {
		return err
	}
	if e.broken != nil {
		e.mu.Unlock()
		return fmt.Errorf("reference: %w", e.broken)
	}
	return nil
}

// until waits until try returns true. try is called with the lock held.
func (e *memEngine) until(ctx context.Context, try func() (bool, error)) error {
	for {
		if err := e.begin(); err != nil && e.fault != "close does not end waits" {
			return err
		} else if err != nil {
			e.mu.Lock()
		}
		ok, err := try()
		changed := e.changed
		e.mu.Unlock()
		if ok || err != nil {
			return err
		}
		tick := time.NewTimer(2 * time.Millisecond)
		select {
		case <-changed:
		case <-tick.C: // a task may have become due
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *memEngine) Ready() error {
	err := e.admit()
	if err == nil {
		e.mu.Unlock()
	}
	return err
}

func (e *memEngine) Close(context.Context) error { e.end(); return nil }

func (e *memEngine) Reconfigure(_ context.Context, s engine.Settings) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	e.set = s
	e.change()
	return nil
}

func (e *memEngine) Secret(context.Context) ([]byte, error) { return slices.Clone(e.secret), nil }

// readBody reads a body. nil means an empty body.
func readBody(r io.Reader) (*[]byte, error) {
	if r == nil {
		return &[]byte{}, nil
	}
	b, err := io.ReadAll(r)
	return &b, err
}

// body is readBody with an optional fault.
func (s *memStore) body(r io.Reader) (*[]byte, error) {
	b, err := readBody(r)
	if s.fault == "unreadable body is stored" {
		err = nil
	}
	return b, err
}

func (e *memEngine) add(rec *task.Record, state task.State) *memTask {
	e.arrived++
	t := &memTask{rec: clone(rec), arrival: e.arrived, place: rec.NextAttemptAt}
	e.tasks[rec.ID] = t
	e.move(t, state)
	return t
}

func (e *memEngine) Claim(_ context.Context, rec *task.Record) (engine.Lease, error) {
	if err := e.admit(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	if e.fault == "acknowledged before it is stored" && e.arrived > 0 {
		defer delete(e.tasks, rec.ID)
	}
	t := e.add(rec, task.Running)
	l := &memLease{e: e, t: t}
	t.holder = l
	return l, nil
}

func (e *memEngine) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, o engine.EnqueueOptions) (string, bool, error) {
	return e.enqueue(rec, body, o, nil)
}

// enqueue stores a task as queued. With a lease, it is the claimed task.
func (e *memEngine) enqueue(rec *task.Record, body io.Reader, o engine.EnqueueOptions, l *memLease) (string, bool, error) {
	b, err := e.body(body)
	if err != nil {
		return "", false, err
	}
	digest := ""
	if o.Key != nil {
		digest = o.Key.Digest()
	}
	if e.fault == "key is looked up before the body is read" && o.Key != nil {
		e.mu.Lock()
		k, known := e.keys[o.Key.Hash]
		e.mu.Unlock()
		if known && k.Digest == digest {
			return k.TaskID, false, nil
		}
		for range 100 {
			runtime.Gosched() // the other callers look it up too
		}
	}
	if err := e.admit(); err != nil {
		return "", false, err
	}
	defer e.mu.Unlock()
	if l != nil && l.t.holder != l {
		return "", false, engine.ErrLost
	}
	if id, err := e.known(rec, o.Key, digest); id != "" {
		if l != nil && err == nil {
			l.release()
		}
		return id, false, err
	}
	if o.MaxQueued > 0 && e.count(rec.Queue) >= o.MaxQueued {
		return "", false, engine.ErrQueueFull
	}
	if l != nil {
		l.t.holder = nil
	}
	t := e.add(rec, task.Queued)
	if t.req = b; t.rec.Request != nil {
		t.rec.Request.Size = int64(len(*b))
	}
	if o.Key != nil {
		e.keys[o.Key.Hash] = engine.StoredKey{
			Hash: o.Key.Hash, Digest: digest, TaskID: rec.ID, Expires: in(engine.KeyLifetime),
		}
	}
	return rec.ID, true, nil
}

func (e *memEngine) known(rec *task.Record, k *engine.Key, digest string) (string, error) {
	if k != nil && e.fault != "key is looked up before the body is read" {
		if first, ok := e.keys[k.Hash]; ok && time.Now().Before(first.Expires) {
			if first.Digest != digest {
				return first.TaskID, engine.ErrKeyReused
			}
			return first.TaskID, nil
		}
	}
	for id, t := range e.tasks {
		if rec.Schedule != "" && t.rec.Schedule == rec.Schedule && t.rec.State == task.Queued && t.rec.Starts == 0 {
			return id, nil
		}
	}
	return "", nil
}

func (e *memEngine) count(queue string) (n int) {
	for _, t := range e.tasks {
		if t.rec.State == task.Queued && t.rec.Queue == queue {
			n++
		}
	}
	return n
}

// find returns matching tasks by arrival.
func (e *memEngine) find(match func(t *memTask) bool) []*memTask {
	var out []*memTask
	for _, t := range e.tasks {
		if match(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *memTask) int { return cmp.Compare(a.arrival, b.arrival) })
	return out
}

// sortedPage returns a page of an in-memory list. The position of its cursor is a number.
func sortedPage[T any](all []T, after engine.Cursor, limit int) ([]T, engine.Cursor, error) {
	position, err := after.Position()
	if err != nil {
		return nil, "", err
	}
	from, _ := strconv.Atoi(position)
	from = max(0, min(from, len(all)))
	to := min(from+limit, len(all))
	if to == len(all) {
		return all[from:], "", nil
	}
	return all[from:to], engine.NewCursor(strconv.Itoa(to)), nil
}

func reader(b *[]byte) (io.ReadSeekCloser, error) {
	if b == nil {
		return nil, engine.ErrNotFound
	}
	return engine.InMemory(*b), nil
}
