// Package engine is where tasks stand: three NATS JetStream streams, in a
// server embedded in the process or in an existing cluster. Where a message
// stands is its task's state, and every step of a task is one publish that
// either happens whole or not at all.
//
// Open an [Engine], [Engine.Claim] a task before its work starts, and settle
// the [Lease] with the task's record when it has its verdict: from then on the
// callback is owed. Deliveries come from [Engine.Due] and [Engine.Lane] and
// leave as done, dead or to be retried.
//
// What is promised: a claim that returned survives kill -9; of a task's
// holders one at most settles it; a lease that nobody renews or settles turns
// into what was stored with it within about 0.3 s of its lapse. All methods
// may be called from several goroutines at once.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Config says where the engine keeps its data and for how long.
type Config struct {
	// Store is the folder of the embedded server. Unused if URLs is set.
	Store string
	// Sync is how often the embedded server syncs its files to disk; zero or
	// less syncs every message before it is acknowledged.
	Sync time.Duration
	// URLs name the servers of an existing cluster.
	URLs []string
	// Credentials is the path of a NATS credentials file; may be empty.
	Credentials string
	// Replicas of each stream; zero means 1 embedded and 3 in a cluster.
	Replicas int
	// Retention is how long an ended task can be looked up, RetentionCount how
	// many of them.
	Retention      time.Duration
	RetentionCount int64
	// LeaseTime is how long a task outlives a holder that does not renew it.
	// Zero means [DefaultLeaseTime].
	LeaseTime time.Duration
	Logger    *zap.Logger

	// space measures the store's disk; nil means [diskSpace].
	space func(folder string) (free, total uint64, err error)
	// patience is how long a server that failed has to end; zero means [closeTimeout].
	patience time.Duration
}

// DefaultLeaseTime is how long after the death of a gateway its tasks are
// taken up. A lease is renewed at a third of it, so that two renewals may be
// lost before a living gateway loses a task.
const DefaultLeaseTime = 30 * time.Second

// publishTimeout bounds the wait for a publish to be acknowledged. A server
// with a full disk does not answer at all: a client must hear so soon.
const publishTimeout = 5 * time.Second

const (
	// startTimeout bounds the recovery of the store at start.
	startTimeout = 60 * time.Second
	// connectTimeout bounds how long a cluster that does not answer delays Caddy.
	connectTimeout = 10 * time.Second
)

var (
	// ErrHeld is returned by a claim on a task that somebody else holds.
	ErrHeld = errors.New("the task is held by another")
	// ErrLost is returned to a holder whose lease lapsed or was settled by
	// somebody else: another verdict stands.
	ErrLost = errors.New("the lease is no longer held")
	// ErrFull is returned while the store's disk has no room, by Open too.
	ErrFull = errors.New("the disk of the store is full")
	// ErrUnreachable is returned by Open if the cluster does not answer.
	ErrUnreachable = errors.New("the NATS cluster cannot be reached")
	// ErrGone is returned for a result that is not kept any more.
	ErrGone = errors.New("the result is not kept any more")
	// ErrNotFound is returned for a task that the engine does not have.
	ErrNotFound = errors.New("no such task")
)

// Engine is an open engine. Close it when done.
type Engine struct {
	cfg   Config
	log   *zap.Logger
	lock  *folderLock // embedded only, as are the next three
	disk  *disk
	home  home
	stock stock

	current atomic.Pointer[link]

	closing context.Context // ends when the engine closes
	stop    context.CancelFunc
	done    sync.WaitGroup

	handsMu sync.Mutex
	hands   map[*Delivery]struct{} // deliveries taken and not given back
	// outstanding are those of them that were taken before the server was opened
	// anew, by their sequence in the stream.
	outstanding map[uint64]struct{}

	leases sync.Map // of *Lease, by task ID: those held here

	moving byHand

	health health
	stored atomic.Uint64 // messages, ever

	mu        sync.Mutex // guards the retention in cfg, and what follows
	schedules []Schedule // as they were set last
	limitsDue bool       // the retention has not been brought to the stream yet
}

// Open starts the embedded server, or connects to the cluster, and creates
// the streams where they are absent.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.LeaseTime <= 0 {
		cfg.LeaseTime = DefaultLeaseTime
	}
	if cfg.patience <= 0 {
		cfg.patience = closeTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger,
		hands: make(map[*Delivery]struct{}), outstanding: make(map[uint64]struct{}),
	}
	if err := e.open(ctx); err != nil {
		e.leaveFolder()
		return nil, err
	}
	e.closing, e.stop = context.WithCancel(context.Background())
	e.done.Go(func() { e.keepHands(e.closing) })
	e.done.Go(func() { e.watchHealth(e.closing) })
	if e.disk != nil {
		e.done.Go(func() { e.watchDisk(e.closing) })
		e.done.Go(func() { e.watchRoom(e.closing) })
		e.done.Go(func() { e.watchBursts(e.closing) })
		e.done.Go(func() { e.watchStock(e.closing) })
	}
	e.done.Go(func() { e.watchClocks(e.closing) })
	e.done.Go(func() { e.sweepBlobs(e.closing) })
	return e, nil
}

func (e *Engine) open(ctx context.Context) error {
	timeout := connectTimeout
	if !e.remote() {
		timeout = startTimeout
		if err := awaitClosing(ctx, e.cfg.Store); err != nil {
			return err
		}
		if err := e.openFolder(); err != nil {
			return err
		}
		if err := checkMoved(e.cfg.Store); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	k, err := e.openLink(ctx)
	if err != nil {
		if e.remote() && IsAway(err) {
			if errors.Is(err, nats.ErrNoResponders) {
				err = fmt.Errorf("JetStream is not enabled on the servers: %w", err)
			}
			err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return err
	}
	e.current.Store(k)
	return nil
}

// Close stops the engine and waits until its files are written. Leases that
// are still held lapse; deliveries in hand come again.
func (e *Engine) Close() {
	if e.remote() {
		e.stop()
		e.done.Wait()
		e.link().close()
		return
	}
	free := beginClosing(e.cfg.Store)
	e.stop()
	e.done.Wait()
	e.settleDown()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.link().close()
		e.closeStock()
		e.leaveFolder()
		free()
	}()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
		// Who opens the folder next in this process waits for it.
		e.log.Error("the engine's files are not written yet; closing goes on in the background")
	}
}

// closeTimeout bounds how long a disk that does not answer keeps the process
// from its end.
const closeTimeout = 30 * time.Second

// settleTime bounds how long the embedded server has to take note of the last
// acknowledgements.
const settleTime = 2 * time.Second

// settleDown waits until the embedded server has taken note of what was
// acknowledged: what it has not would come again after the next start.
func (e *Engine) settleDown() {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	k := e.link()
	for k.nc.FlushWithContext(ctx) == nil {
		unsettled := 0
		consumers := k.live.ListConsumers(ctx)
		for info := range consumers.Info() {
			unsettled += info.NumAckPending
		}
		e.handsMu.Lock()
		held := len(e.hands)
		e.handsMu.Unlock()
		if consumers.Err() != nil || unsettled <= held {
			return
		}
	}
}

// remote says whether the engine is somebody else's cluster.
func (e *Engine) remote() bool { return len(e.cfg.URLs) > 0 }

// IsAway says whether an error means that the engine may answer later.
func IsAway(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == http.StatusServiceUnavailable // no leader yet
	}
	for _, away := range []error{
		ErrUnreachable, ErrFull,
		nats.ErrNoServers, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrDisconnected,
		jetstream.ErrNoStreamResponse, context.DeadlineExceeded,
	} {
		if errors.Is(err, away) {
			return true
		}
	}
	return false
}

func (e *Engine) replicas() int {
	switch {
	case e.cfg.Replicas > 0:
		return e.cfg.Replicas
	case e.remote():
		return 3
	default:
		return 1
	}
}

// Reconfigure brings an open engine to the limits of cfg: a configuration that
// was reloaded uses the engine of the one before. What can only be set at
// opening (Sync) stays until the process starts again.
func (e *Engine) Reconfigure(ctx context.Context, cfg Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cfg.Sync != e.cfg.Sync {
		e.log.Warn("a change of sync takes effect when the process is started again")
	}
	if cfg.Retention == e.cfg.Retention && cfg.RetentionCount == e.cfg.RetentionCount {
		return nil
	}
	e.cfg.Retention, e.cfg.RetentionCount = cfg.Retention, cfg.RetentionCount
	_, err := e.openStream(ctx, e.link(), endedConfig(cfg.Retention, cfg.RetentionCount))
	if err != nil && (IsAway(err) || e.Ready() != nil) {
		// It is a reload's; what it asks for comes when the engine stores again.
		e.log.Warn("a change of retention takes effect when the engine stores again", zap.Error(err))
		e.limitsDue, err = true, nil
	}
	return err
}
