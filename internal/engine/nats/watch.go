package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// holderMeta is a heartbeat.
type holderMeta struct {
	ID    string `json:"id"`
	Ended bool   `json:"ended,omitempty"` // the gateway was closed
}

// hostMeta is what the dispatcher has learned of a host.
type hostMeta struct {
	engine.HostState
}

// pauseMeta says whether a host or a queue is paused.
type pauseMeta struct {
	engine.Target
	Paused bool
}

// scheduleMeta are the run times of a schedule.
type scheduleMeta struct {
	Schedule   string
	Last, Next time.Time
}

// beatsToDeath is how many heartbeats a gateway stores itself after the last one of
// another before it takes that one for dead: one more than a lease time has.
const beatsToDeath = 4

// holderTTL is how long the last heartbeat of a gateway stays in the stream.
const holderTTL = 24 * time.Hour

// load starts to follow the stream of tasks, and returns when what was in it is in
// the index: when the heartbeat that is stored now has been read.
func (e *Engine) load(ctx context.Context) error {
	if err := e.follow(); err != nil {
		return err
	}
	seq, err := e.beat(ctx)
	if err != nil {
		return err
	}
	stalled := time.NewTicker(openTimeout)
	defer stalled.Stop()
	for before := uint64(0); ; {
		select {
		case read := <-e.watched:
			if read >= seq {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-stalled.C:
			now := e.index.position()
			if now == before {
				return errors.New("nothing is received")
			}
			before = now
		}
	}
}

func (x *index) position() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.applied
}

// follow reads the headers of the stream of tasks from its beginning, and goes on with
// what is stored. The client library reads on after an interruption.
func (e *Engine) follow() error {
	consumer, err := e.js.OrderedConsumer(e.closing, taskStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: watchedSubjects, HeadersOnly: true, DeliverPolicy: jetstream.DeliverAllPolicy,
	})
	if err != nil {
		return err
	}
	reading, err := consumer.Consume(e.read, jetstream.PullMaxMessages(readAhead),
		jetstream.PullExpiry(readExpiry), jetstream.PullHeartbeat(readHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			e.log.Debug("following the stream of tasks", zap.Error(err))
		}))
	if err != nil {
		return err
	}
	if e.stopReading != nil {
		e.stopReading()
	}
	e.stopReading = reading.Stop
	return nil
}

const (
	readAhead     = 2000 // messages
	readExpiry    = 10 * time.Second
	readHeartbeat = time.Second
)

// read brings the index to a message of the stream.
func (e *Engine) read(msg jetstream.Msg) {
	info, err := msg.Metadata()
	if err != nil {
		return // it is no message of a stream
	}
	seq := info.Sequence.Stream
	if err := e.apply(msg.Subject(), seq, msg.Headers()); err != nil {
		e.log.Error("a message of the store cannot be read", zap.String("subject", msg.Subject()), zap.Error(err))
	}
	e.index.mu.Lock()
	e.index.applied = max(e.index.applied, seq)
	e.index.bury()
	e.index.mu.Unlock()
}

func (e *Engine) apply(subject string, seq uint64, header nats.Header) error {
	switch {
	case strings.HasPrefix(subject, taskSubject):
		var m meta
		if err := getMeta(header, &m); err != nil {
			return err
		}
		if m.ID == "" {
			m.ID = strings.TrimPrefix(subject, taskSubject)
		}
		e.index.apply(m.ID, seq, &m, nil)
	case strings.HasPrefix(subject, holderSubject):
		var h holderMeta
		if err := getMeta(header, &h); err != nil {
			return err
		}
		e.index.heard(h)
		if h.ID == e.id {
			select {
			case e.watched <- seq:
			default:
			}
		}
	case strings.HasPrefix(subject, hostSubject):
		var h hostMeta
		if err := getMeta(header, &h); err != nil {
			return err
		}
		e.index.learn(h.HostState)
	case strings.HasPrefix(subject, pauseSubject):
		var p pauseMeta
		if err := getMeta(header, &p); err != nil {
			return err
		}
		e.index.pause(p.Target, p.Paused)
	case strings.HasPrefix(subject, scheduleSubject):
		var s scheduleMeta
		if err := getMeta(header, &s); err != nil {
			return err
		}
		e.index.mu.Lock()
		e.index.schedules[s.Schedule] = s
		e.index.mu.Unlock()
	}
	return nil
}

// beat stores a heartbeat.
func (e *Engine) beat(ctx context.Context) (uint64, error) {
	seq, err := e.storeHolder(ctx, holderMeta{ID: e.id})
	if err == nil {
		e.isDown.Store(false)
	}
	return seq, err
}

// farewell tells the other gateways that this one has ended.
func (e *Engine) farewell(ctx context.Context) error {
	if !e.nc.IsConnected() {
		return nats.ErrConnectionClosed
	}
	_, err := e.storeHolder(ctx, holderMeta{ID: e.id, Ended: true})
	return err
}

func (e *Engine) storeHolder(ctx context.Context, h holderMeta) (uint64, error) {
	msg := nats.NewMsg(holderSubject + h.ID)
	msg.Header.Set(ttlHeader, holderTTL.String())
	if err := setMeta(msg, h); err != nil {
		return 0, err
	}
	return e.store(ctx, msg)
}

// keepAlive stores heartbeats, more often while the cluster does not store.
func (e *Engine) keepAlive() {
	interval := e.cfg.LeaseTime / 3
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-e.beating.Done():
			return
		case <-ticker.C:
		case <-e.beatNow:
		}
		before := e.index.position()
		seq, err := e.beat(e.closing)
		if err == nil && seq <= before {
			err = e.startAnew()
		}
		if err == nil || errors.Is(err, engine.ErrFull) {
			err = e.measure(e.closing)
		}
		if err != nil && e.closing.Err() == nil {
			e.isDown.Store(true)
			e.log.Debug("heartbeat not stored", zap.Error(err))
			ticker.Reset(min(interval, retryInterval))
			// The streams may be gone.
			if err := e.openStreams(e.closing); err != nil {
				e.log.Debug("streams not opened", zap.Error(err))
			}
			continue
		}
		ticker.Reset(interval)
	}
}

// retryInterval is how often a cluster that does not store is tried.
const retryInterval = time.Second

// startAnew reads the stream from its beginning after somebody made it anew.
func (e *Engine) startAnew() error {
	e.log.Error("the stream of tasks was made anew; what it had is lost")
	e.index.clear()
	if err := e.follow(); err != nil {
		return fmt.Errorf("following the new stream: %w", err)
	}
	return nil
}

// clear makes the index as it is for an empty stream. Every lease is lost.
func (x *index) clear() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.tasks {
		if e.state != removed {
			x.leave(e)
			x.gone++
			e.state = removed
		}
		x.notify(e.id)
	}
	for id, l := range x.leases {
		delete(x.leases, id)
		l.lose()
	}
	clear(x.tasks)
	clear(x.cache)
	x.graves, x.cacheSize, x.applied = nil, 0, 0
}

// heard notes a heartbeat. One of this gateway's own is the clock by which the others
// are found dead.
func (x *index) heard(m holderMeta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.holder(m.ID)
	h.silent = 0
	if h.dead != m.Ended && h != x.me {
		h.dead = m.Ended
		x.placeAll(h)
	}
	if h != x.me {
		return
	}
	for _, h := range x.holders {
		if h == x.me {
			continue
		}
		if h.silent++; h.silent >= beatsToDeath && !h.dead {
			h.dead = true
			x.placeAll(h)
		}
		if h.dead && h.entries == 0 {
			delete(x.holders, h.id)
		}
	}
}

// placeAll gives out the deliveries of a holder that died, or takes them back.
func (x *index) placeAll(h *holder) {
	if h.entries == 0 {
		return
	}
	for _, e := range x.tasks {
		if e.holder == h && e.state == task.Delivering {
			x.count(e, -1)
			x.count(e, 1)
			x.place(e)
		}
	}
}

// keepAlarms moves what becomes ready.
func (e *Engine) keepAlarms() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-e.closing.Done():
			return
		case <-timer.C:
		case <-e.index.reset:
		}
		timer.Reset(min(e.index.ring(), maxSleep))
	}
}

// maxSleep bounds how long a change of the clock goes unnoticed.
const maxSleep = 5 * time.Second
