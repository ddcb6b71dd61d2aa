package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// storage is one of the streams. Each has files of its own, and can fail while
// the others store.
type storage int

const (
	liveStorage storage = iota
	endedStorage
	deadStorage
	blobsStorage
	storages
)

// storageOf returns the stream that a subject is stored in.
func storageOf(subject string) storage {
	switch {
	case strings.HasPrefix(subject, doneSubject), strings.HasPrefix(subject, doneKeySubject), subject == endedProbe:
		return endedStorage
	case strings.HasPrefix(subject, deadSubject), subject == deadProbe:
		return deadStorage
	default:
		return liveStorage
	}
}

// health remembers of each stream the last publish that failed, until one
// succeeds again. A server with a full disk answers nothing, so requests for
// callbacks are turned away at once instead of each waiting for a publish to
// time out.
type health struct {
	down    [storages]atomic.Pointer[error]
	suspect atomic.Bool // the embedded server has said that something is wrong
}

func (h *health) ok(s storage) {
	if h.down[s].Load() != nil {
		h.down[s].Store(nil)
	}
}

func (h *health) failed(s storage, err error) { h.down[s].Store(&err) }

func (h *health) err() error {
	for s := range h.down {
		if err := h.down[s].Load(); err != nil {
			return *err
		}
	}
	return nil
}

// probeInterval is how soon after its recovery the engine takes callbacks
// again.
const probeInterval = time.Second

const (
	// probeTimeout bounds the wait for one probe.
	probeTimeout = 2 * time.Second
	// reopenAfter is how long the embedded server may store nothing before it is
	// opened anew. A disk may take its time.
	reopenAfter = 3 * time.Second
	// remindInterval is how often an outage that goes on is logged.
	remindInterval = time.Minute
)

// Ready returns nil if the engine can take a new task, or else why it cannot.
func (e *Engine) Ready() error {
	if e.disk != nil && e.disk.gone.Load() {
		return errNoFolder
	}
	if e.disk != nil && e.disk.isFull() {
		return ErrFull
	}
	return e.Stores()
}

var errNoFolder = errors.New("the folder of the store is gone")

// Stores returns nil if what is under way can be moved on, or else why it cannot.
// A disk that is full for new tasks has a reserve for that.
func (e *Engine) Stores() error {
	if err := e.health.err(); err != nil {
		return err
	}
	if !e.link().nc.IsConnected() {
		return errors.New("not connected to the engine")
	}
	return nil
}

// outage is a time in which the engine cannot store.
type outage struct {
	since    time.Time // zero if there is none
	reminded time.Time
	cause    string // why it could not be ended, as it was logged last
}

// watchHealth tries to store for as long as the engine is unwell, and opens the
// embedded server anew if it does not get well by itself.
func (e *Engine) watchHealth(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	var out outage
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.bringLimits(ctx)
		suspect := e.health.suspect.Swap(false)
		down := e.health.err()
		if down == nil && !suspect && out.since.IsZero() {
			continue
		}
		if out.since.IsZero() {
			out.since = time.Now()
		}
		err := e.probe(ctx, suspect)
		if err == nil {
			e.recovered(&out)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		out.remind(e.log, err)
		if !e.remote() && time.Since(out.since) >= reopenAfter {
			out.tried(e.log, e.reopen(ctx))
		}
		if e.remote() && time.Since(out.since) >= reopenAfter {
			e.makeMissing(ctx, &out)
		}
	}
}

// remind logs the outage when it begins, and then now and then.
func (o *outage) remind(log *zap.Logger, err error) {
	if time.Since(o.reminded) >= remindInterval {
		o.reminded = time.Now()
		log.Error("the engine cannot store; requests for callbacks are refused", zap.Error(err))
	}
}

// tried logs what came of opening the server anew, unless it came of it before.
func (o *outage) tried(log *zap.Logger, err error) {
	if err == nil {
		o.cause = ""
		log.Warn("the embedded engine was opened anew")
		return
	}
	if cause := err.Error(); cause != o.cause {
		o.cause = cause
		log.Error("the embedded engine cannot be opened anew yet; trying on", zap.Error(err))
	}
}

// recovered ends an outage.
func (e *Engine) recovered(out *outage) {
	if !out.reminded.IsZero() { // or nobody knew of it
		e.log.Info("the engine stores again", zap.Duration("after", time.Since(out.since)))
	}
	*out = outage{}
}

// bringLimits brings the retention to the stream if a reload could not.
func (e *Engine) bringLimits(ctx context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.limitsDue || e.Ready() != nil {
		return
	}
	e.limitsDue = false
	if _, err := e.openStream(ctx, e.link(), endedConfig(e.cfg.Retention, e.cfg.RetentionCount)); err != nil {
		e.log.Error("the retention was not changed", zap.Error(err))
	}
}

// probe tries to store in the streams that do not, or in all.
func (e *Engine) probe(ctx context.Context, all bool) error {
	if e.link().life.Err() != nil {
		return errClosed
	}
	for s := range storages {
		if !all && e.health.down[s].Load() == nil {
			continue
		}
		if err := e.probeStorage(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

var errClosed = errors.New("the embedded engine is closed")

func (e *Engine) probeStorage(ctx context.Context, s storage) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	data := make([]byte, probeSize)
	if s == blobsStorage {
		_, err := e.link().blobs.PutBytes(ctx, "probe", data) // the sweep removes it
		if err != nil {
			e.health.failed(s, err)
			return fmt.Errorf("storing a body: %w", err)
		}
		e.health.ok(s)
		return nil
	}
	subject := [...]string{liveStorage: probeSubject, endedStorage: endedProbe, deadStorage: deadProbe}[s]
	_, err := e.send(ctx, &nats.Msg{Subject: subject, Data: data})
	if errors.Is(err, jetstream.ErrNoStreamResponse) {
		return fmt.Errorf("%w; is the stream gone?", err)
	}
	return err
}

// probeSize is that of a small task: a disk with room for less is full.
const probeSize = 4 << 10
