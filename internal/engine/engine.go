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
	"time"

	"github.com/nats-io/nats-server/v2/server"
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
	// ErrUnreachable is returned by Open if the cluster does not answer.
	ErrUnreachable = errors.New("the NATS cluster cannot be reached")
	// ErrNotFound is returned for a task that the engine does not have.
	ErrNotFound = errors.New("no such task")
)

// Engine is an open engine. Close it when done.
type Engine struct {
	cfg    Config
	log    *zap.Logger
	lock   *folderLock    // embedded only
	server *server.Server // embedded only
	nc     *nats.Conn
	js     jetstream.JetStream
	live   jetstream.Stream
	ended  jetstream.Stream
	dead   jetstream.Stream
	blobs  jetstream.ObjectStore

	// publishLimit is the largest payload that goes into a message; larger
	// bodies go to the object store.
	publishLimit int
	opened       time.Time

	closing context.Context // ends when the engine closes
	stop    context.CancelFunc
	done    sync.WaitGroup

	handsMu sync.Mutex
	hands   map[*Delivery]struct{} // deliveries taken and not given back

	leases sync.Map // of *Lease, by task ID: those held here

	health health

	mu sync.Mutex // guards the retention in cfg
}

// Open starts the embedded server, or connects to the cluster, and creates
// the streams where they are absent.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.LeaseTime <= 0 {
		cfg.LeaseTime = DefaultLeaseTime
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	e := &Engine{cfg: cfg, log: cfg.Logger, opened: time.Now(), hands: make(map[*Delivery]struct{})}
	timeout := startTimeout
	if e.remote() {
		timeout = connectTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := e.open(ctx); err != nil {
		e.disconnect()
		if e.remote() && isAway(err) {
			err = fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return nil, err
	}
	e.closing, e.stop = context.WithCancel(context.Background())
	e.done.Go(func() { e.keepHands(e.closing) })
	e.done.Go(func() { e.watchHealth(e.closing) })
	e.done.Go(func() { e.sweepBlobs(e.closing) })
	return e, nil
}

func (e *Engine) open(ctx context.Context) (err error) {
	if e.remote() {
		e.nc, err = connectCluster(e.cfg)
	} else {
		err = e.startEmbedded()
	}
	if err != nil {
		return err
	}
	if err := checkVersion(e.nc); err != nil {
		return err
	}
	// Room for headers and for the record that is framed before the body.
	e.publishLimit = int(e.nc.MaxPayload()) - headroom
	if e.js, err = jetstream.New(e.nc, jetstream.WithDefaultTimeout(publishTimeout)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if err := e.openStreams(ctx); err != nil {
		return err
	}
	return e.heedNotes()
}

// headroom is what a message's headers and framing may take of the server's
// largest payload.
const headroom = 8 << 10

// Close stops the engine and waits until its files are written. Leases that
// are still held lapse; deliveries in hand come again.
func (e *Engine) Close() {
	e.stop()
	e.done.Wait()
	if e.server != nil {
		e.settleDown()
	}
	e.disconnect()
}

// settleTime bounds how long the embedded server has to take note of the last
// acknowledgements.
const settleTime = 2 * time.Second

// settleDown waits until the embedded server has taken note of what was
// acknowledged: what it has not would come again after the next start.
func (e *Engine) settleDown() {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	for e.nc.FlushWithContext(ctx) == nil {
		unsettled := 0
		consumers := e.live.ListConsumers(ctx)
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

func (e *Engine) disconnect() {
	if e.nc != nil {
		e.nc.Close()
	}
	if e.server != nil {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	if e.lock != nil {
		e.lock.release()
	}
}

// remote says whether the engine is somebody else's cluster.
func (e *Engine) remote() bool { return len(e.cfg.URLs) > 0 }

// isAway says whether an error means that a cluster may answer later.
func isAway(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == http.StatusServiceUnavailable // no leader yet
	}
	for _, away := range []error{
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
	_, err := e.openEnded(ctx)
	return err
}
