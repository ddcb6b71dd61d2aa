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

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// stores are the engines that are open, by the key of their options. Generations
// of the configuration share them, and everything in flight holds a reference, so
// that a reload neither opens a store twice nor closes it under a task.
var stores = caddy.NewUsagePool()

// sharedStore is an engine that is open, with what works on its tasks.
type sharedStore struct {
	engine.Engine
	key, place string

	// owner is the newest generation that is alive and uses the store, nil if there
	// is none: the store works as it says. Only [generationList] reads and changes it.
	owner     *App
	deliverer *deliver.Deliverer
	schedules *scheduler
	slots     sync.Map // *slots, by queue
	secret    storeSecret

	inFlight gate
	// quit ends what is in flight, with a cause, when the process exits;
	// givingBack ends before it when jobs that still run go back to their queues.
	quit        context.Context
	quitNow     context.CancelCauseFunc
	givingBack  context.Context
	giveBackNow context.CancelCauseFunc

	// log is that of the newest generation that has used the store: that of an older
	// one may be closed.
	log    atomic.Pointer[zap.Logger]
	closed chan struct{} // closed when the engine is
}

// openStores are the stores whose engines are not closed yet: one that is closing
// is not in the pool any more, and must be closed before it is opened again.
var openStores sync.Map // *sharedStore, by key

const (
	// openWait is how long Start waits for a store.
	openWait = 5 * time.Second
	// openTimeout bounds an attempt to open a store.
	openTimeout = 30 * time.Second
	// reopenWait is the wait between two attempts.
	reopenWait = time.Second
	// awayInterval is how often it is logged that a store cannot be opened, and
	// newsInterval how often if the reason changes.
	awayInterval = time.Minute
	newsInterval = 5 * time.Second
	// closeWait bounds how long closing a store may take.
	closeWait = 10 * time.Second
)

// keepOpening opens the store, again and again until it is open or ctx ends. first
// gets what the first attempt returned.
func (a *App) keepOpening(ctx context.Context, first chan<- error) {
	var logged time.Time
	var reason string
	for tries := 1; ; tries++ {
		s, err := a.openStore(ctx)
		if err == nil {
			a.joinStore(s, tries > 1)
		}
		held := false
		if tries == 1 {
			held = errors.Is(err, engine.ErrHeld) // Start says so, if it still waits
			first <- err
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		a.away.Store(&err)
		interval := awayInterval
		if reason != err.Error() {
			interval = newsInterval
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

// joinStore makes this generation use a store. later says that it was waited for.
func (a *App) joinStore(s *sharedStore, later bool) {
	s.log.Store(a.log)
	a.store.Store(s)
	a.away.Store(nil)
	if later {
		a.log.Info("store opened after all; callbacks are accepted", zap.String("store", s.place))
	}
	generations.settle(s)
}

// openStore takes the store out of the pool.
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
		case !errors.Is(err, errNotOpen): // or a request has looked for it just now
			return nil, err
		}
	}
}

func newStore(e engine.Engine, of engineModule, log *zap.Logger) *sharedStore {
	key := of.storeKey()
	s := &sharedStore{Engine: e, key: key, place: of.place(), closed: make(chan struct{})}
	s.log.Store(log)
	s.quit, s.quitNow = context.WithCancelCause(context.Background())
	s.givingBack, s.giveBackNow = context.WithCancelCause(s.quit)
	s.deliverer = deliver.New(deliver.Config{
		Engine: e, Folder: of.bodyFolder(), Quit: s.quit, Stopping: s.givingBack, Hold: s.use, Unhold: s.leave, Log: s.logger,
	})
	s.schedules = newScheduler(e)
	openStores.Store(key, s)
	return s
}

// useStore counts the caller in: the store stays open until leave.
func useStore(key string) (*sharedStore, error) {
	if _, ok := openStores.Load(key); !ok {
		return nil, errNotOpen
	}
	pooled, _, err := stores.LoadOrNew(key, func() (caddy.Destructor, error) { return nil, errNotOpen })
	if err != nil {
		return nil, err
	}
	s := pooled.(*sharedStore)
	s.inFlight.enter()
	return s, nil
}

// errNotOpen is the error of a store that no generation has open.
var errNotOpen = errors.New("the store is not open")

// use is useStore for a caller that knows the store to be open.
func (s *sharedStore) use() { _, _ = useStore(s.key) }

// leave undoes useStore.
func (s *sharedStore) leave() {
	s.inFlight.leave()
	s.release()
}

// release gives a reference back; the last one closes the store.
func (s *sharedStore) release() { _, _ = stores.Delete(s.key) } // Destruct returns no error

// Destruct implements [caddy.Destructor]. It does not wait: a request may be the
// last to leave.
func (s *sharedStore) Destruct() error {
	go s.close()
	return nil
}

// close closes the engine, and warns if callbacks are left in it that nobody
// delivers from now on.
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

// warnOfTasks tells the operator of tasks that a change of the engine leaves.
func (s *sharedStore) warnOfTasks(ctx context.Context) {
	stats, err := s.Stats(ctx)
	left := stats.Tasks[task.Queued] + stats.Tasks[task.Running] + stats.Tasks[task.Delivering]
	if err == nil && left > 0 {
		s.logger().Warn("tasks are left in a store that is no longer used; `caddy callback migrate` moves them",
			zap.Int64("tasks", left))
	}
}

// logger returns the log for what concerns the store.
func (s *sharedStore) logger() *zap.Logger { return s.log.Load().With(zap.String("store", s.place)) }

// quotaDomain returns whose share of the store a callback counts against: the
// registrable domain or the network of a URL that a request named, and nobody's for
// the operator's own.
func quotaDomain(callback *task.Callback, hostPort string) string {
	if callback == nil || callback.Trusted {
		return ""
	}
	return dispatch.Group(hostPort)
}

// queueGrace is how long a process that exits waits for the jobs of its queues if
// Caddy's grace_period says nothing. To give a job back costs it no attempt.
const queueGrace = 10 * time.Second

// drainStores waits until nothing is in flight in any store, also of generations
// that reloads have replaced. After the grace period jobs go back to their queues,
// and other tasks get their verdict; zero is without end, except for jobs.
func drainStores(grace time.Duration) {
	openStores.Range(func(_, value any) bool {
		s := value.(*sharedStore)
		time.AfterFunc(cmp.Or(grace, queueGrace), func() { s.giveBackNow(errStopped) })
		if grace > 0 {
			time.AfterFunc(grace, func() { s.quitNow(errStopped) })
		}
		return true
	})
	openStores.Range(func(_, value any) bool {
		value.(*sharedStore).inFlight.wait()
		return true
	})
}

// gate counts those inside. Unlike a WaitGroup it may be entered while somebody
// waits.
type gate struct {
	mu     sync.Mutex
	inside int
	empty  chan struct{} // closed when the last one leaves; nil if nobody waits
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// wait returns when nobody is inside; others may enter afterwards.
func (g *gate) wait() {
	g.mu.Lock()
	if g.inside == 0 {
		g.mu.Unlock()
		return
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	<-empty
}

// recordTimeout bounds how long a client's response is held back by an engine
// that does not answer. The step is repeated as long as the lease lasts.
const recordTimeout = 5 * time.Second

// endLease makes the step that ends a lease. If the engine is away it returns, and
// the step is repeated until it is stored, somebody else has decided, or the process
// exits: a lease that nobody ends lasts as long as the process.
func (s *sharedStore) endLease(log *zap.Logger, id string, step func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	err := step(ctx)
	if err == nil || errors.Is(err, engine.ErrLost) {
		return
	}
	log = log.With(zap.String("task_id", id))
	if !passes(err) {
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

// passes says whether an error of the engine may be gone the next time.
func passes(err error) bool {
	return errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrFull)
}

func (s *sharedStore) endLeaseLater(log *zap.Logger, step func(context.Context) error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.givingBack.Done():
		case <-tick.C:
		}
		err := step(s.quit)
		if err == nil || errors.Is(err, engine.ErrLost) {
			return
		}
		if !passes(err) || s.givingBack.Err() != nil { // or quit: the process exits
			// The next process that opens the store ends the lease.
			log.Error("lease not ended", zap.Error(err))
			return
		}
	}
}
