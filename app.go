package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/event"
	"github.com/caddy-callback/caddy-callback/internal/hop"
	"github.com/caddy-callback/caddy-callback/internal/metrics"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// App configures where tasks are kept and how callbacks are delivered. All callbacks of
// this Caddy share it. Every field has a default, and the app itself is optional.
type App struct {
	// The engine that keeps tasks: `sqlite`, in a local folder, or `nats`, in an
	// existing cluster that several gateways share. Default: `sqlite` in the folder
	// `callback` of Caddy's data directory.
	EngineRaw json.RawMessage `json:"engine,omitempty" caddy:"namespace=callback.engines inline_key=engine"`

	// How long finished tasks can be looked up, with their results. Default: `24h`.
	Retention caddy.Duration `json:"retention,omitempty"`

	// How many finished tasks can be looked up; the oldest are removed first.
	// Default: `100000`.
	RetentionCount int64 `json:"retention_count,omitempty"`

	// How long dead letters are kept for redelivery. Default: `30d`.
	Dead caddy.Duration `json:"dead,omitempty"`

	// How many dead letters are kept; the oldest are removed first. Default: `10000`.
	DeadCount int64 `json:"dead_count,omitempty"`

	// Keep the results of delivered callbacks until their retention ends, so that they
	// can be shown and redelivered. The results of a queue's tasks are always kept.
	// Default: true.
	KeepResults *bool `json:"keep_results,omitempty"`

	// The URL that gets alerts: signed callbacks that say that a task is dead, that a host
	// has failed for an hour or is paused, or that the store is nearly full. It may be
	// private. Placeholders such as `{env.ALERTS}` expand. Default: none.
	Alert string `json:"alert,omitempty"`

	// How the tasks of each queue are run, by the queue's name. Default: the defaults of
	// its options.
	Queues map[string]*QueueOptions `json:"queues,omitempty"`

	// How callbacks are delivered. Default: the defaults of its options.
	Delivery *Delivery `json:"delivery,omitempty"`

	ctx      caddy.Context
	log      *zap.Logger
	metrics  *metrics.Metrics
	api      *web.API
	tracing  tracingSetup
	handlers *event.Handlers
	engine   engineModule
	queues   map[string]*TaskQueue

	// store is nil while it is not open, and openErr has the reason. started is closed once
	// Start has tried to open it.
	store   atomic.Pointer[sharedStore]
	openErr atomic.Pointer[error]
	started chan struct{}

	hops atomic.Pointer[hop.Key] // nil until first used

	// waits ends when clients must stop waiting for their tasks.
	waits    context.Context
	endWaits context.CancelFunc

	opening sync.WaitGroup // the goroutine that opens the store
	stop    context.CancelFunc

	alertReceiver *alert.Receiver // nil without alerts

	spool string // the folder for the bodies of requests that are being read

	workers    workers
	deliveries *deliver.Options

	// linking are the handlers with large_results, and statusPaths the paths of the
	// task_status handlers, "" for an unknown one. They are complete once all apps are
	// provisioned.
	linking     []*Handler
	statusPaths []string
}

// Defaults of the app.
const (
	defaultRetention      = 24 * time.Hour
	defaultRetentionCount = 100_000
	defaultDead           = 30 * 24 * time.Hour
	defaultDeadCount      = 10_000
)

// loadApp returns the app of a configuration that is being loaded. Every handler needs it.
func loadApp(ctx caddy.Context) (*App, error) {
	app, err := ctx.App("callback")
	if err != nil {
		return nil, fmt.Errorf("loading the callback app: %w", err)
	}
	return app.(*App), nil
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "callback", New: func() caddy.Module { return new(App) }}
}

// Provision applies the defaults. It opens nothing, because `caddy validate` runs it
// while a server uses the same store.
func (a *App) Provision(ctx caddy.Context) (err error) {
	a.ctx, a.log = ctx, ctx.Logger()
	a.queues = make(map[string]*TaskQueue)
	a.api = a.newAPI()
	a.started, a.stop = make(chan struct{}), func() {}
	a.waits, a.endWaits = context.WithCancel(context.Background())
	for name, opts := range a.Queues {
		if opts == nil {
			opts = new(QueueOptions)
			a.Queues[name] = opts
		}
		opts.provision()
	}
	if err := a.loadEngine(ctx); err != nil {
		return err
	}
	a.spool = a.engine.spoolFolder()
	setDefault(&a.Retention, caddy.Duration(defaultRetention))
	setDefault(&a.RetentionCount, defaultRetentionCount)
	setDefault(&a.Dead, caddy.Duration(defaultDead))
	setDefault(&a.DeadCount, defaultDeadCount)
	if a.KeepResults == nil {
		keep := true
		a.KeepResults = &keep
	}
	if a.Delivery == nil {
		a.Delivery = new(Delivery)
	}
	if err := a.provisionMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.provisionEvents(ctx); err != nil {
		return err
	}
	if err := a.Delivery.provision(); err != nil {
		return err
	}
	if err := a.provisionAlert(); err != nil {
		return err
	}
	a.deliveries = a.newDeliveryOptions()
	return nil
}

// loadEngine loads the engine's module.
func (a *App) loadEngine(ctx caddy.Context) (err error) {
	var module any
	if a.EngineRaw == nil {
		module, err = ctx.LoadModuleByID(engineNamespace+".sqlite", nil)
	} else {
		module, err = ctx.LoadModule(a, "EngineRaw")
	}
	if err != nil {
		return fmt.Errorf("loading the engine: %w", err)
	}
	loaded, ok := module.(engineModule)
	if !ok {
		return fmt.Errorf("the module %T is not an engine", module)
	}
	a.engine = loaded
	return nil
}

// setDefault sets a field that was left out to its default.
func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate checks what needs no I/O.
func (a *App) Validate() error {
	switch {
	case a.Retention < 0:
		return fmt.Errorf("retention: %v is negative", time.Duration(a.Retention))
	case a.RetentionCount < 0:
		return fmt.Errorf("retention: %d is negative", a.RetentionCount)
	case a.Dead < 0:
		return fmt.Errorf("dead: %v is negative", time.Duration(a.Dead))
	case a.DeadCount < 0:
		return fmt.Errorf("dead: %d is negative", a.DeadCount)
	}
	for name, opts := range a.Queues {
		if err := opts.validate(); err != nil {
			return fmt.Errorf("queue %s: %w", name, err)
		}
	}
	return a.Delivery.validate()
}

// settings returns the limits that this configuration sets in the store.
func (a *App) settings() engine.Settings {
	return engine.Settings{
		Retention: time.Duration(a.Retention), RetentionCount: a.RetentionCount,
		Dead: time.Duration(a.Dead), DeadCount: a.DeadCount,
		KeepResults: *a.KeepResults, DeliveryWindow: a.Delivery.window(), GaveUp: attemptObserver{a}.Expired,
	}
}

// Start opens the store, or shares it with the generation that has it open. If it
// cannot be opened now, Start keeps trying in the background, and plain requests are
// served meanwhile. It is an error only if another process has the store open.
func (a *App) Start() error {
	a.warnOfOrder()
	if err := a.checkLinks(); err != nil {
		return err
	}
	if err := a.openTracing(); err != nil {
		return err
	}
	a.startQueues()
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	first := make(chan error, 1)
	a.opening.Go(func() { a.keepOpening(ctx, first) })
	select {
	case err := <-first:
		if errors.Is(err, engine.ErrHeld) {
			stop()
			return fmt.Errorf("opening the store %s: %w", a.engine.place(), err)
		}
		if err != nil {
			a.openErr.CompareAndSwap(nil, &err)
		}
	case <-time.After(openWait):
		err := errors.New("the store does not answer")
		a.openErr.CompareAndSwap(nil, &err)
		a.log.Error("store not open yet; callbacks are refused until it is",
			zap.String("store", a.engine.place()), zap.Error(err))
	}
	close(a.started)
	return nil
}

// errStopped is the cause with which tasks in flight end when the process exits.
var errStopped = errors.New("the gateway was stopped")

// Stop stops claiming. After a reload, tasks in flight continue in the background. An
// exiting process waits for them, up to Caddy's grace_period.
func (a *App) Stop() error {
	a.endClaims()
	defer a.endEvents()
	if caddy.Exiting() {
		a.endWaits() // apps stop in any order, and the drain waits for these requests
		drainStores(a.gracePeriod())
	}
	return nil
}

// endClaims stops claiming tasks. It may be called twice, and after a Start that
// failed.
func (a *App) endClaims() {
	a.drain()
	a.stop()
	a.opening.Wait()
	a.api.Close()
}

// gracePeriod is how long Caddy waits for requests at shutdown; zero means no limit.
func (a *App) gracePeriod() time.Duration {
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		return time.Duration(app.(*caddyhttp.App).GracePeriod)
	}
	return 0
}

// Cleanup releases the store. Tasks in flight keep it open. Cleanup is also called
// after a failed Start, or without any Start.
func (a *App) Cleanup() error {
	if a.metrics == nil {
		return nil // not provisioned
	}
	a.endClaims()
	generations.Remove(a)
	if s := a.store.Swap(nil); s != nil {
		s.release()
		if caddy.Exiting() {
			drainStores(a.gracePeriod()) // Stop ran before the process was told to exit
			<-s.closed
		}
	}
	return a.tracing.close()
}

// startWait is how long a request with a callback waits for the app to start. It is
// longer than Start waits for the store: servers may listen before this app starts.
const startWait = 2 * openWait

// enter returns the store if it accepts tasks. The store stays open until its leave is
// called.
func (a *App) enter() (*sharedStore, error) {
	s, err := a.look()
	if err != nil {
		return nil, err
	}
	if err := s.Ready(); err != nil {
		s.leave()
		return nil, err
	}
	return s, nil
}

// look is enter for look-ups. An operator can see the tasks of a full store.
func (a *App) look() (*sharedStore, error) {
	if caddy.Exiting() && !generations.IsAlive(a) {
		return nil, errStopped
	}
	// During a reload the new servers may get a request before this app starts.
	select {
	case <-a.started:
	default:
		select {
		case <-a.started:
		case <-time.After(startWait):
			return nil, fmt.Errorf("%w: the gateway is starting", engine.ErrUnavailable)
		}
	}
	var key any
	if s := a.store.Load(); s != nil {
		key = s.key
	} else {
		key = a.engine.storeKey()
	}
	s, err := useStore(key)
	if err == nil {
		return s, nil
	}
	if openErr := a.openErr.Load(); openErr != nil {
		err = *openErr
	}
	return nil, err
}

// hopKey returns the key of the gateways of the store, or nil if the store is unavailable.
func (a *App) hopKey(ctx context.Context) *hop.Key {
	if key := a.hops.Load(); key != nil {
		return key
	}
	s, err := a.look()
	if err != nil {
		return nil
	}
	defer s.leave()
	secret, err := s.Secret(ctx)
	if err != nil {
		return nil
	}
	key := hop.NewKey(secret)
	a.hops.Store(key)
	return key
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
