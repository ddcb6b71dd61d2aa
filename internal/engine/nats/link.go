package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// link is one opening of the store: the server, the connection to it and what
// was opened over it. The engine replaces it as a whole when the embedded server
// has to be opened anew; to a cluster there is one.
type link struct {
	server *server.Server // embedded only
	nc     *nats.Conn
	js     jetstream.JetStream
	live   jetstream.Stream
	ended  jetstream.Stream
	dead   jetstream.Stream
	blobs  jetstream.ObjectStore
	opened time.Time
	// found is the last message that was in the stream of live tasks when it was
	// opened. Clocks step; sequences do not.
	found atomic.Uint64
	moved moved

	// ahead is how far the clock of the servers is ahead of ours, in nanoseconds.
	ahead atomic.Int64

	// publishLimit is the largest payload that goes into a message; larger
	// bodies go to the object store.
	publishLimit int

	life  context.Context // ends when the link is closed
	end   context.CancelFunc
	close func()      // waits until the server's files are written; may be called twice
	left  atomic.Bool // the server does not end, and its files were taken away from it
}

// link returns the opening of the store that is in use.
func (e *Engine) link() *link { return e.current.Load() }

// openLink opens the store, or connects to the cluster.
func (e *Engine) openLink(ctx context.Context) (*link, error) {
	k := &link{opened: time.Now()}
	k.life, k.end = context.WithCancel(context.Background())
	k.close = sync.OnceFunc(k.shutDown)
	if err := e.fill(ctx, k); err != nil {
		return nil, errors.Join(err, e.closeLink(k))
	}
	return k, nil
}

func (e *Engine) fill(ctx context.Context, k *link) (err error) {
	if e.remote() {
		k.nc, err = connectCluster(e.cfg)
	} else {
		err = e.startEmbedded(k)
	}
	if err != nil {
		return err
	}
	if err := checkVersion(k.nc); err != nil {
		return err
	}
	if err := checkPayload(k.nc); err != nil {
		return err
	}
	// Room for headers and for the record that is framed before the body.
	k.publishLimit = int(k.nc.MaxPayload()) - headroom
	if k.js, err = jetstream.New(k.nc, jetstream.WithDefaultTimeout(publishTimeout)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if !e.remote() {
		if err := e.checkOpened(ctx, k); err != nil {
			return err
		}
	}
	if err := e.openStreams(ctx, k); err != nil {
		return err
	}
	k.found.Store(k.live.CachedInfo().State.LastSeq)
	if e.remote() {
		if err := e.compareClocks(ctx, k); err != nil {
			return err
		}
	} else {
		e.tellLost(k)
	}
	return e.heedNotes(k)
}

// within returns a context that also ends with the link.
func (k *link) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(k.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// headroom is what a message's headers and framing may take of the server's
// largest payload.
const headroom = 8 << 10

func (k *link) shutDown() {
	k.end()
	if k.nc != nil {
		k.nc.Close()
	}
	if k.server != nil {
		k.server.Shutdown()
		k.server.WaitForShutdown()
	}
}

// reopen puts a new opening of the store in the place of one that stores no
// more. The folder stays locked throughout. What the old one was doing fails: a
// server that cannot write must be gone, or without its files, before another reads
// them.
func (e *Engine) reopen(ctx context.Context) error {
	if e.disk.isTight() {
		if err := e.disk.throwBallast(); err != nil {
			return err
		}
	}
	// A server that starts on a disk that it cannot write to removes the streams
	// it cannot open, whatever is in them.
	if err := e.disk.canStore(); err != nil {
		return err
	}
	if err := e.closeLink(e.link()); err != nil {
		return err
	}
	k, err := e.openLink(ctx)
	if err != nil {
		return err
	}
	e.handsMu.Lock()
	for d := range e.hands {
		// What is in hand comes again from the new server.
		if seq := d.seq; seq != 0 {
			e.outstanding[seq] = struct{}{}
		}
	}
	e.current.Store(k)
	e.handsMu.Unlock()
	// Leases whose time was up meanwhile are about to lapse: their holder lives.
	e.leases.Range(func(_, l any) bool {
		e.done.Go(l.(*Lease).renew)
		return true
	})
	e.mu.Lock()
	schedules := e.schedules
	e.mu.Unlock()
	// The server forgets which ticks it missed.
	if err := e.SetSchedules(ctx, schedules); err != nil {
		e.log.Error("missed ticks not made up for", zap.Error(err))
	}
	return nil
}
