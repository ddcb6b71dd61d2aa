package callback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// App holds what all callbacks of this Caddy share: where tasks are kept, and
// how callbacks are delivered. Every field has a default; the app need not be
// configured at all.
type App struct {
	// The folder that keeps tasks until they are delivered. Only one process
	// can use it. Default: `callback` in Caddy's data directory.
	Store string `json:"store,omitempty"`

	// An existing JetStream cluster that keeps tasks instead of the folder, so
	// that several gateways can share them. Default: none.
	NATS *NATSOptions `json:"nats,omitempty"`

	// How often what was written is synced to disk. A killed process loses
	// nothing whatever this is; a power failure loses what was accepted since
	// the last sync. Default: `10ms`.
	Sync caddy.Duration `json:"sync,omitempty"`

	// Sync each message to disk before it is acknowledged, so that a power
	// failure loses nothing either. Costs most of the throughput.
	// Default: `false`.
	SyncAlways bool `json:"sync_always,omitempty"`

	// How long ended tasks can be looked up. Default: `24h`.
	Retention caddy.Duration `json:"retention,omitempty"`

	// How many ended tasks can be looked up; the oldest are forgotten first.
	// Default: `100000`.
	RetentionCount int64 `json:"retention_count,omitempty"`

	// How the tasks of each queue are run, by its name. Default: each queue has
	// the defaults of its options.
	Queues map[string]*QueueOptions `json:"queues,omitempty"`

	// How callbacks are delivered. Default: the defaults of its options.
	Delivery *Delivery `json:"delivery,omitempty"`

	ctx     caddy.Context
	log     *zap.Logger
	metrics *metrics
	api     *web.API
	tracing tracing
	events  *caddyevents.App

	// engineKey is what this generation holds of the pool; empty before Start
	// and after Cleanup.
	engineKey string
	pooled    pooledEngine // what it stands for
	engine    atomic.Pointer[engine.Engine]
	deliverer *deliverer

	// working counts what still needs the engine after Stop: tasks whose
	// endpoint is at work, results to record, deliveries in flight.
	working gate

	spool string // the folder for the bodies of requests that are being read

	secrets     sync.Mutex
	storeSecret []byte // nil until it is asked for
	// quit ends them, with a cause, when the process exits.
	quit    context.Context
	quitNow context.CancelCauseFunc
	// givingBack ends when queues' tasks that still run go back to their queues.
	givingBack  context.Context
	giveBackNow context.CancelCauseFunc
	queues      map[string]*TaskQueue
	workers     sync.WaitGroup     // what takes tasks from queues
	stopWorkers context.CancelFunc // nil before Start
	draining    atomic.Bool
	started     chan struct{}         // closed when the engine is open
	away        atomic.Pointer[error] // why it could not be opened at Start
	opening     sync.WaitGroup        // what tries to open the engine
	stopOpening context.CancelFunc    // nil before Start
	released    chan struct{}         // closed when nothing of a retired app is left
}

// Defaults of the app.
const (
	defaultSync           = 10 * time.Millisecond
	defaultRetention      = 24 * time.Hour
	defaultRetentionCount = 100_000
)

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "callback", New: func() caddy.Module { return new(App) }}
}

// Provision applies the defaults. It opens nothing: `caddy validate` runs it
// beside a live server.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.log = ctx, ctx.Logger()
	a.quit, a.quitNow = context.WithCancelCause(context.Background())
	a.givingBack, a.giveBackNow = context.WithCancelCause(a.quit)
	a.queues = make(map[string]*TaskQueue)
	a.api = a.newAPI()
	a.started, a.released = make(chan struct{}), make(chan struct{})
	for name, opts := range a.Queues {
		if opts == nil {
			opts = new(QueueOptions)
			a.Queues[name] = opts
		}
		opts.provision()
	}
	if a.Store == "" {
		a.Store = filepath.Join(caddy.AppDataDir(), "callback")
	}
	store, err := filepath.Abs(caddy.NewReplacer().ReplaceKnown(a.Store, ""))
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	a.Store, a.spool = store, filepath.Join(store, "spool")
	setDefault(&a.Sync, caddy.Duration(defaultSync))
	setDefault(&a.Retention, caddy.Duration(defaultRetention))
	setDefault(&a.RetentionCount, defaultRetentionCount)
	if a.NATS != nil {
		a.NATS.provision()
	}
	if a.Delivery == nil {
		a.Delivery = new(Delivery)
	}
	if a.metrics, err = newMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.provisionEvents(ctx); err != nil {
		return err
	}
	return a.Delivery.provision()
}

// setDefault gives a field that was left out its default.
func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate checks what needs no I/O.
func (a *App) Validate() error {
	switch {
	case a.Sync < 0:
		return fmt.Errorf("sync: %v is negative", time.Duration(a.Sync))
	case a.Retention < 0:
		return fmt.Errorf("retention: %v is negative", time.Duration(a.Retention))
	case a.RetentionCount < 0:
		return fmt.Errorf("retention: %d is negative", a.RetentionCount)
	}
	if a.NATS != nil {
		if err := a.NATS.validate(); err != nil {
			return err
		}
	}
	for name, opts := range a.Queues {
		if err := opts.validate(); err != nil {
			return fmt.Errorf("queue %s: %w", name, err)
		}
	}
	return a.Delivery.validate()
}

// Start opens the engine, or joins the generation that has it open, and begins
// to run tasks and to deliver. If it is in a cluster that cannot be reached, or on
// a disk that is full, it goes on trying: plain requests are served meanwhile.
func (a *App) Start() error {
	a.warnOfLateAuthentication()
	var ctx context.Context
	ctx, a.stopOpening = context.WithCancel(context.Background())
	err := a.open(ctx)
	if err == nil || !a.comesLater(err) {
		return err
	}
	a.log.Error("engine not reached; requests for callbacks are refused until it is", zap.Error(err))
	a.away.Store(&err)
	a.opening.Go(func() { a.openLater(ctx) })
	return nil
}

// errStopped is why work in flight ends when the process exits.
var errStopped = errors.New("the gateway was stopped")

// Stop stops claiming. A reload leaves what is in flight to its end, in the
// background; a process that exits waits for it, and for what reloads have left,
// as long as Caddy's grace_period says.
func (a *App) Stop() error {
	a.draining.Store(true)
	a.endOpening()
	a.endAPI()
	a.endWorkers()
	if a.deliverer != nil {
		a.deliverer.leave(a)
	}
	defer a.endEvents()
	if !caddy.Exiting() {
		return nil
	}
	grace := a.gracePeriod()
	before := retired.all()
	for _, app := range append(before, a) {
		app.endWithin(grace)
	}
	a.working.wait()
	for _, app := range before {
		<-app.released
	}
	return nil
}

// queueGrace is how long a process that exits waits for the tasks of its
// queues, and for an engine that is away, if Caddy's grace_period says nothing. To
// give a task back costs it no attempt.
const queueGrace = 10 * time.Second

// endWithin ends what is in flight after the grace period: the tasks of queues go
// back to them, the others get their verdict. Zero is without end, but for queues.
func (a *App) endWithin(grace time.Duration) {
	time.AfterFunc(cmp.Or(grace, queueGrace), func() { a.giveBackNow(errStopped) })
	if grace > 0 {
		time.AfterFunc(grace, func() { a.quitNow(errStopped) })
	}
}

// gracePeriod is how long Caddy lets requests finish; zero is without end.
func (a *App) gracePeriod() time.Duration {
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		return time.Duration(app.(*caddyhttp.App).GracePeriod)
	}
	return 0
}

// Cleanup gives the engine back once nothing of this generation needs it. It
// is also called after a Start that failed, or without any Start.
func (a *App) Cleanup() error {
	a.endOpening()
	a.endAPI()
	events.leave(a)
	if a.engineKey == "" {
		return nil
	}
	key := a.engineKey
	a.engineKey = ""
	a.endWorkers()
	if a.deliverer != nil {
		a.deliverer.leave(a)
	}
	if heir := a.pooled.deliverer.heirOf(a); heir != nil {
		heir.takeBack()
	}
	release := func() error {
		a.working.close()
		_, err := engines.Delete(key)
		return err
	}
	if caddy.Exiting() {
		a.endWithin(a.gracePeriod()) // if Stop came before the process was told to exit
		return release()
	}
	// A reload does not wait for a task that runs for an hour; the task keeps
	// the engine open.
	retired.add(a)
	go func() {
		defer close(a.released)
		defer retired.remove(a)
		if err := release(); err != nil {
			a.log.Error("closing the engine", zap.Error(err))
		}
	}()
	return nil
}

// retired are the apps that reloads have replaced, and whose tasks still run.
var retired appList

// startWait is how long a request for a callback waits for the app to start.
const startWait = 2 * time.Second

// enter returns the engine, if it can take a task, and keeps it open until
// leave is called.
func (a *App) enter() (e *engine.Engine, leave func(), err error) {
	if e, leave, err = a.look(); err != nil {
		return nil, nil, err
	}
	if err := e.Ready(); err != nil {
		leave()
		return nil, nil, err
	}
	return e, leave, nil
}

// look is enter for who asks about tasks: that a disk is full, say, must not keep
// an operator from seeing them.
func (a *App) look() (e *engine.Engine, leave func(), err error) {
	if caddy.Exiting() && a.draining.Load() {
		return nil, nil, errStopped
	}
	// During a reload the new servers may take a request before this app starts.
	select {
	case <-a.started:
	default:
		if away := a.away.Load(); away != nil {
			return nil, nil, *away
		}
		select {
		case <-a.started:
		case <-time.After(startWait):
			return nil, nil, errors.New("the gateway is starting")
		}
	}
	e = a.engine.Load()
	leave = a.working.leave
	if !a.working.enter() {
		// A reload has replaced this generation while the request was on its
		// way here. The next one has the engine open.
		return joinEngine(a.key())
	}
	return e, leave, nil
}

// gate counts those inside, until it is closed. Unlike a WaitGroup it may be
// entered while somebody waits.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{} // closed when the last one leaves; nil if nobody waits
}

// enter reports whether the gate is open, and if so counts the caller in.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
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
func (g *gate) wait() { g.waitAnd(false) }

// close waits until nobody is inside and lets nobody in from then on.
func (g *gate) close() { g.waitAnd(true) }

func (g *gate) waitAnd(closed bool) {
	for {
		g.mu.Lock()
		if g.inside == 0 {
			g.closed = g.closed || closed
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
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
