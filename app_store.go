package callback

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/deadline"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/lifecycle"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// stores are the open engines, by the key of their options. The generations of the
// configuration share them, and every task in flight holds a reference. So a reload
// neither opens a store twice nor closes it while a task uses it.
var stores = caddy.NewUsagePool()

// sharedStore is an open engine, and what works on its tasks.
type sharedStore struct {
	engine.Engine
	key   any // a string; converting it for each task would allocate
	place string

	// owner is the newest running generation that uses the store, or nil. Its settings
	// apply. settling guards it.
	owner     *App
	deliverer *deliver.Deliverer
	schedules *scheduler.Scheduler
	slots     sync.Map // *pace.Slots, by queue
	watch     alert.Watch

	inFlight lifecycle.Gate
	// quit ends the tasks in flight, with a cause, when the process exits. Before that,
	// requeueing ends: tasks that still run are then requeued.
	quit       context.Context
	quitNow    context.CancelCauseFunc
	requeueing context.Context
	requeueNow context.CancelCauseFunc

	// log is the logger of the newest generation that has used the store. The logger of
	// an older one may be closed.
	log    atomic.Pointer[zap.Logger]
	closed chan struct{} // closed when the engine is closed

	// timeout bounds the calls that end leases.
	timeout *deadline.Shared
}

// openStores are the stores whose engines are not closed yet. A closing store has left
// the pool, but must be closed before it is opened again.
var openStores sync.Map // *sharedStore, by key

const (
	// openWait is how long Start waits for a store.
	openWait = 5 * time.Second
	// openTimeout bounds an attempt to open a store.
	openTimeout = 30 * time.Second
	// reopenWait is the wait between two attempts.
	reopenWait = time.Second
	// outageLogInterval is the interval at which a store that cannot be opened is logged, and
	// changeLogInterval the interval if the reason changes.
	outageLogInterval = time.Minute
	changeLogInterval = 5 * time.Second
	// closeWait bounds how long closing a store may take.
	closeWait = 10 * time.Second
)

// keepOpening tries to open the store until it succeeds or ctx ends. It sends the
// result of the first try to first.
func (a *App) keepOpening(ctx context.Context, first chan<- error) {
	var logged time.Time
	var reason string
	for tries := 1; ; tries++ {
		s, err := a.openStore(ctx)
		if err == nil {
			a.joinStore(s)
		}
		held := false
		if tries == 1 {
			held = errors.Is(err, engine.ErrHeld) // Start returns it, if it still waits
			first <- err
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		a.openErr.Store(&err)
		interval := outageLogInterval
		if reason != err.Error() {
			interval = changeLogInterval
		}
		if !held && time.Since(logged) >= interval {
			logged, reason = time.Now(), err.Error()
			a.log.Error("store not opened; callbacks are refused until it is",
				zap.String("store", a.engine.place()), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reopenWait):
		}
	}
}

// joinStore makes this generation use a store.
func (a *App) joinStore(s *sharedStore) {
	s.log.Store(a.log)
	a.store.Store(s)
	if a.openErr.Swap(nil) != nil { // callbacks have been refused
		a.log.Info("store opened; callbacks are accepted", zap.String("store", s.place))
	}
	settling.Lock()
	defer settling.Unlock()
	s.settle()
}

// generations are the running configurations of this process. The newest one that is alive
// has the admin API, the events, and the workers of its store.
var generations lifecycle.Generations[*App]

// settling is held while generations and the owners of stores change.
var settling sync.Mutex

// join makes this generation alive: it claims tasks, and gets events.
func (a *App) join() {
	settling.Lock()
	generations.Add(a)
	settleStores()
	settling.Unlock()
	events.Resume()
}

// drain makes this generation stop claiming. It may be called twice, and before join.
func (a *App) drain() {
	settling.Lock()
	defer settling.Unlock()
	if generations.Drain(a) {
		a.workers.stop()
		settleStores()
	}
}

// settleStores settles all open stores. The caller holds settling.
func settleStores() {
	openStores.Range(func(_, value any) bool {
		value.(*sharedStore).settle()
		return true
	})
}

// settle makes the newest generation that uses the store its owner. The caller holds
// settling.
func (s *sharedStore) settle() {
	var newest *App
	for _, a := range generations.Alive() {
		if a.store.Load() == s {
			a.workers.start(a)
			newest = a
		}
	}
	if newest != s.owner {
		s.change(newest)
	}
}

// settleTimeout bounds how long an unresponsive store can block a reload.
const settleTimeout = 10 * time.Second

// change makes a generation the owner of the store: its settings, schedules and
// delivery options apply. Without an owner, nothing is claimed from the store. The
// caller holds settling.
func (s *sharedStore) change(owner *App) {
	s.owner = owner
	s.schedules.Stop()
	s.watch.Stop()
	if owner == nil {
		s.deliverer.Follow(nil)
		return
	}
	s.log.Store(owner.log)
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	if err := s.Reconfigure(ctx, owner.settings()); err != nil {
		owner.log.Error("applying the limits of the configuration failed; the previous ones apply", zap.Error(err))
	}
	s.schedules.Start(scheduler.Config{
		Plans: owner.plans(), Accepted: func() { owner.metrics.TaskAccepted(1) }, Log: owner.log,
	})
	s.deliverer.Follow(owner.deliveries)
	owner.watchStore(s)
}

// openStore returns the store from the pool, and opens it if it is not there.
func (a *App) openStore(ctx context.Context) (*sharedStore, error) {
	key := a.engine.storeKey()
	construct := func() (caddy.Destructor, error) {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		if closing, ok := openStores.Load(key); ok {
			select {
			case <-closing.(*sharedStore).closed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		e, err := a.engine.open(ctx, a.settings(), a.log)
		if err != nil {
			return nil, err
		}
		a.log.Info("engine started", zap.String("store", a.engine.place()))
		return newStore(e, a.engine, a.log), nil
	}
	for {
		pooled, _, err := stores.LoadOrNew(key, construct)
		switch {
		case err == nil:
			return pooled.(*sharedStore), nil
		case !errors.Is(err, errNotOpen): // errNotOpen: a request looked up the same key just now
			return nil, err
		}
	}
}

func newStore(e engine.Engine, of engineModule, log *zap.Logger) *sharedStore {
	key := any(of.storeKey())
	s := &sharedStore{Engine: e, key: key, place: of.place(), closed: make(chan struct{}), timeout: deadline.New(recordTimeout)}
	s.log.Store(log)
	s.quit, s.quitNow = context.WithCancelCause(context.Background())
	s.requeueing, s.requeueNow = context.WithCancelCause(s.quit)
	for _, stopping := range []context.Context{s.quit, s.requeueing} {
		context.AfterFunc(stopping, func() { inFlight.abandon(stopping) })
	}
	s.deliverer = deliver.New(deliver.Config{
		Engine: e, Folder: of.bodyFolder(), Quit: s.quit, Stopping: s.requeueing, Hold: s.use, Unhold: s.leave, Log: s.logger,
	})
	s.schedules = scheduler.New(e, time.Now)
	openStores.Store(key, s)
	return s
}

// useStore adds a reference to an open store, which stays open until leave.
func useStore(key any) (*sharedStore, error) {
	if _, ok := openStores.Load(key); !ok {
		return nil, errNotOpen
	}
	pooled, _, err := stores.LoadOrNew(key, func() (caddy.Destructor, error) { return nil, errNotOpen })
	if err != nil {
		return nil, err
	}
	s := pooled.(*sharedStore)
	s.inFlight.Enter()
	return s, nil
}

// errNotOpen is the error for a store that no generation has open.
var errNotOpen = errors.New("the store is not open")

// use is useStore for a caller that knows the store to be open.
func (s *sharedStore) use() { _, _ = useStore(s.key) }

// leave drops the reference that useStore added.
func (s *sharedStore) leave() {
	s.inFlight.Leave()
	s.release()
}

// release drops a reference; the last one closes the store.
func (s *sharedStore) release() { _, _ = stores.Delete(s.key) } // Destruct returns no error

// Destruct implements [caddy.Destructor]. It closes the store in the background,
// because the last reference may be that of a request.
func (s *sharedStore) Destruct() error {
	go s.close()
	return nil
}

// close closes the engine. It warns if the store still has tasks that nothing delivers
// from now on.
func (s *sharedStore) close() {
	defer close(s.closed)
	defer openStores.CompareAndDelete(s.key, s)
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	if !caddy.Exiting() {
		s.warnOfTasks(ctx)
	}
	s.quitNow(errStopped)
	s.deliverer.Close(ctx)
	if err := s.Close(ctx); err != nil {
		s.logger().Error("closing the store failed", zap.Error(err))
	}
}

// warnOfTasks warns of tasks that remain in a store after a change of the engine.
func (s *sharedStore) warnOfTasks(ctx context.Context) {
	stats, err := s.Stats(ctx)
	left := stats.Tasks[task.Queued] + stats.Tasks[task.Running] + stats.Tasks[task.Delivering]
	if err == nil && left > 0 {
		s.logger().Warn("tasks are left in a store that is no longer used; `caddy callback migrate` moves them",
			zap.Int64("tasks", left))
	}
}

// logger returns the logger for messages about the store.
func (s *sharedStore) logger() *zap.Logger { return s.log.Load().With(zap.String("store", s.place)) }

// queueGrace is how long an exiting process waits for the tasks of its queues if Caddy
// has no grace_period. A requeued task loses no attempt.
const queueGrace = 10 * time.Second

// drainStores waits until no task is in flight in any store, including those of
// replaced generations. After the grace period, tasks of queues are requeued and other
// tasks get their verdict. Without a grace period, only tasks of queues are bounded.
func drainStores(grace time.Duration) {
	openStores.Range(func(_, value any) bool {
		s := value.(*sharedStore)
		time.AfterFunc(cmp.Or(grace, queueGrace), func() { s.requeueNow(errStopped) })
		if grace > 0 {
			time.AfterFunc(grace, func() { s.quitNow(errStopped) })
		}
		return true
	})
	openStores.Range(func(_, value any) bool {
		value.(*sharedStore).inFlight.Wait()
		return true
	})
}

// recordTimeout bounds how long an unresponsive engine delays a client's response. The
// call is repeated until the lease ends.
const recordTimeout = 5 * time.Second

// endLease makes the call that ends a lease. If the engine is unavailable, endLease
// returns and repeats the call in the background, until it is stored, the lease is
// lost, or the process exits. A lease that is never ended lasts as long as the process.
func (s *sharedStore) endLease(log *zap.Logger, id string, step func(context.Context) error) {
	s.endLeaseWithin(recordTimeout, log, id, step)
}

// endLeaseWithin is like endLease, but the first call has a longer timeout.
func (s *sharedStore) endLeaseWithin(timeout time.Duration, log *zap.Logger, id string, step func(context.Context) error) {
	ctx := s.timeout.Context()
	if timeout > recordTimeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), timeout)
		defer cancel()
	}
	err := step(ctx)
	if err == nil || errors.Is(err, engine.ErrLost) {
		return
	}
	log = log.With(zap.String("task_id", id))
	if !engine.IsTemporary(err) {
		log.Error("lease not ended", zap.Error(err))
		return
	}
	log.Error("lease not ended; trying again", zap.Error(err))
	s.use()
	go func() {
		defer s.leave()
		s.endLeaseLater(log, step)
	}()
}

func (s *sharedStore) endLeaseLater(log *zap.Logger, step func(context.Context) error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.requeueing.Done():
		case <-tick.C:
		}
		err := step(s.quit)
		if err == nil || errors.Is(err, engine.ErrLost) {
			return
		}
		if !engine.IsTemporary(err) || s.requeueing.Err() != nil { // the process exits
			// The next process that opens the store ends the lease.
			log.Error("lease not ended", zap.Error(err))
			return
		}
	}
}
