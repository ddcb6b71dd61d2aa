// Package nats keeps tasks in a NATS JetStream cluster that several gateways share. It
// needs nats-server 2.12 or newer, and permission to use two streams.
//
// A task is one message on a subject of its own, whatever its state. Each step is one
// publish that expects the sequence of the step before; the server refuses it if
// another step came first. So the sequence is both fencing token and version. Bodies
// over 32 KiB are stored as chunks in a second stream, before the step that references
// them.
//
// Each gateway follows the headers of the stream and keeps an index of all tasks in
// memory, about 300 bytes each; hosts, queues, lists and counts come from it. The index
// may lag behind other gateways for a moment; steps never do, because the server checks
// them. With one gateway, counts, the depth limit of a queue, and the order of jobs and
// deliveries are exact. With several they are approximate.
//
// A gateway stores three heartbeats in each lease time. A gateway that has stored four
// heartbeats since the last one of another gateway considers that gateway dead. The tasks
// of a dead gateway are settled as FAILED or queued again, and other gateways take its
// deliveries. So leases do not depend on clocks. Retries and delayed tasks become due by
// the clock of the gateway that takes them.
package nats

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// Config configures an engine.
type Config struct {
	// URLs name servers of the cluster, at least one.
	URLs []string
	// Credentials is the path of a NATS credentials file. Default: none.
	Credentials string
	// Replicas is the number of replicas of each stream that is created, 1 to 5.
	Replicas int
	Settings engine.Settings
	Logger   *zap.Logger // required
	// LeaseTime is how long a gateway can go without a heartbeat before its leases
	// expire. Default: [DefaultLeaseTime].
	LeaseTime time.Duration

	apiPrefix string // replaces that of the subjects of the JetStream API
}

// DefaultLeaseTime is long enough for a leader election and a server restart. Tests
// make it shorter before they open an engine.
var DefaultLeaseTime = 30 * time.Second

// maxReplicas is the limit of the server.
const maxReplicas = 5

// Engine is an open engine. Close it when done.
type Engine struct {
	cfg     Config
	log     *zap.Logger
	id      string // of this gateway; gateways that started later have greater IDs
	nc      *nats.Conn
	js      jetstream.JetStream
	tasks   jetstream.Stream
	bodies  jetstream.Stream
	index   *index
	batches chan struct{}

	settings atomic.Pointer[engine.Settings]
	full     atomic.Pointer[error] // why new tasks are refused, nil if they are not
	isDown   atomic.Bool           // the last heartbeat or step was not stored
	used     atomic.Int64          // bytes of both streams
	limit    atomic.Int64          // of the streams in bytes, if an operator has set one
	beatNow  chan struct{}

	closing     context.Context
	stop        context.CancelFunc
	steps       sync.RWMutex   // read-locked by steps that are being stored
	done        sync.WaitGroup // the goroutines of the engine
	once        sync.Once
	stopReading func() // ends following the stream
}

var _ engine.Engine = (*Engine)(nil)

// openTimeout limits how long an unresponsive cluster delays the caller.
const openTimeout = 10 * time.Second

// Open connects to the cluster and loads its tasks. If the error wraps
// engine.ErrUnavailable, trying again may help; otherwise the configuration is wrong.
func Open(ctx context.Context, cfg Config) (engine.Engine, error) {
	if cfg.Replicas > maxReplicas {
		return nil, fmt.Errorf("%d replicas of a stream are not possible; use 1 to %d", cfg.Replicas, maxReplicas)
	}
	if cfg.Credentials != "" {
		if _, err := os.Stat(cfg.Credentials); err != nil {
			return nil, fmt.Errorf("reading the NATS credentials: %w", err)
		}
	}
	cfg.LeaseTime = cmp.Or(cfg.LeaseTime, DefaultLeaseTime)
	e := &Engine{
		cfg: cfg, log: cfg.Logger, id: newID(),
		batches: make(chan struct{}, maxBatches), beatNow: make(chan struct{}, 1),
	}
	e.index = newIndex(e.id)
	e.configure(cfg.Settings)
	e.closing, e.stop = context.WithCancel(context.Background())
	if err := e.connect(ctx); err != nil {
		e.kill()
		if !errors.Is(err, engine.ErrUnavailable) {
			err = e.unavailable(err)
		}
		return nil, err
	}
	return e, nil
}

func (e *Engine) connect(ctx context.Context) error {
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := e.dial(opening); err != nil {
		return fmt.Errorf("connecting to NATS: %w", err)
	}
	if err := checkServer(e.nc); err != nil {
		return err
	}
	var err error
	if e.js, err = jetstream.NewWithAPIPrefix(e.nc, cmp.Or(e.cfg.apiPrefix, jetstream.DefaultAPIPrefix), jetstream.WithDefaultTimeout(stepTimeout)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if e.tasks, e.bodies, err = e.openStreams(opening); err != nil {
		if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled) {
			return fmt.Errorf("JetStream is not enabled on the NATS servers: %w", err)
		}
		return err
	}
	if err := e.load(ctx); err != nil {
		return fmt.Errorf("reading the stream %s: %w", taskStream, err)
	}
	e.done.Go(e.keepAlive)
	e.done.Go(e.maintain)
	return nil
}

// dial connects within the deadline of ctx. The client library has no deadline for some
// steps.
func (e *Engine) dial(ctx context.Context) error {
	opts := []nats.Option{
		nats.Name("caddy-callback"),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(1), nats.FlusherTimeout(pingInterval),
		// Servers may refuse valid credentials while an operator changes them.
		nats.IgnoreAuthErrorAbort(),
		// A publish without a connection fails at once. In a buffer it would wait for a
		// server that may never receive it.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			e.isDown.Store(true)
			if err != nil {
				e.log.Warn("disconnected from NATS", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			e.log.Info("reconnected to NATS", zap.String("server", nc.ConnectedServerName()))
			signal(e.beatNow)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			e.log.Warn("error of the connection to NATS", zap.Error(err))
		}),
	}
	if e.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(e.cfg.Credentials))
	}
	var nc *nats.Conn
	connected := make(chan error)
	go func() {
		var err error
		nc, err = nats.Connect(strings.Join(e.cfg.URLs, ","), opts...)
		select {
		case connected <- err:
		case <-ctx.Done():
			nc.Close() // nc may be nil, which Close permits
		}
	}()
	select {
	case err := <-connected:
		e.nc = nc
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

const (
	dialTimeout = 3 * time.Second
	// reconnectWait is short, because requests for callbacks are refused while there is
	// no connection.
	reconnectWait = 500 * time.Millisecond
	// pingInterval is how often the server is pinged. After two missed pings the client
	// reconnects, which is before a lease expires. The client library's default is two
	// minutes.
	pingInterval = 5 * time.Second
)

// oldestMajor and oldestMinor are the first release with atomic batches.
const (
	oldestMajor = 2
	oldestMinor = 12
)

// leastPayload is the smallest max_payload that fits a record, its headers and an
// inline body.
const leastPayload = 512 << 10

func checkServer(nc *nats.Conn) error {
	var major, minor int
	version, name := nc.ConnectedServerVersion(), nc.ConnectedServerName()
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	if err != nil || major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return fmt.Errorf("the NATS server %s is version %q; %d.%d or newer is needed", name, version, oldestMajor, oldestMinor)
	}
	if nc.MaxPayload() < leastPayload {
		return fmt.Errorf("the NATS server %s has max_payload %d; %d or more is needed", name, nc.MaxPayload(), leastPayload)
	}
	return nil
}

// newID returns a unique ID. IDs sort by the time at which they were made.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// Ready implements engine.Engine.
func (e *Engine) Ready() error {
	if err := e.available(); err != nil {
		return err
	}
	if full := e.full.Load(); full != nil {
		return *full
	}
	if limit := e.limit.Load(); limit > 0 && e.used.Load() > limit-limit/reserve {
		return fmt.Errorf("%w: %d of %d bytes of the stream are used", engine.ErrFull, e.used.Load(), limit)
	}
	return nil
}

// available returns nil if the cluster is connected and stored the last step or
// heartbeat.
func (e *Engine) available() error {
	switch {
	case e.closing.Err() != nil:
		return e.closed()
	case !e.nc.IsConnected():
		return fmt.Errorf("%w: no NATS server is connected", engine.ErrUnavailable)
	case e.isDown.Load():
		return fmt.Errorf("%w: the NATS servers do not store messages", engine.ErrUnavailable)
	}
	return nil
}

// closed returns an error if the engine is closed.
func (e *Engine) closed() error {
	if e.closing.Err() != nil {
		return fmt.Errorf("%w: the store is closed", engine.ErrUnavailable)
	}
	return nil
}

// down makes the engine unavailable until a heartbeat is stored.
func (e *Engine) down() {
	if e.isDown.CompareAndSwap(false, true) {
		signal(e.beatNow)
	}
}

// Close implements engine.Engine.
func (e *Engine) Close(ctx context.Context) error {
	e.once.Do(func() {
		stored := make(chan struct{})
		go func() {
			e.steps.Lock()
			e.steps.Unlock() //nolint:staticcheck // waits for the steps that have begun
			close(stored)
		}()
		select {
		case <-stored:
		case <-ctx.Done():
		}
		// With this message the other gateways take over at once, without waiting for
		// missed heartbeats.
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		if e.nc.IsConnected() {
			if err := e.storeHolder(ctx, true); err != nil {
				e.log.Debug("end of the gateway not stored", zap.Error(err))
			}
		}
		e.kill()
	})
	return nil
}

// kill ends the engine at once, as if the process had been killed.
func (e *Engine) kill() {
	e.stop()
	if e.nc != nil {
		e.nc.Close()
	}
	e.done.Wait()
	if e.stopReading != nil {
		e.stopReading()
	}
}

// Reconfigure implements engine.Engine. The settings of the gateway that started last
// apply.
func (e *Engine) Reconfigure(_ context.Context, s engine.Settings) error {
	e.configure(s)
	return e.closed()
}

func (e *Engine) configure(s engine.Settings) {
	s.DeliveryWindow = cmp.Or(s.DeliveryWindow, defaultDeliveryWindow)
	e.settings.Store(&s)
}

const defaultDeliveryWindow = 30 * 24 * time.Hour

// Secret implements engine.Engine.
func (e *Engine) Secret(ctx context.Context) ([]byte, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	if err := e.lookUpOrStore(ctx, secretSubject, &secret); err != nil {
		return nil, fmt.Errorf("reading the secret of the store: %w", err)
	}
	return secret, nil
}
