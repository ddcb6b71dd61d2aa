package nats

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// holderMeta is a heartbeat.
type holderMeta struct {
	ID    string `json:"id"`
	Ended bool   `json:"ended,omitempty"` // the gateway was shut down
}

// pauseMeta says whether a host or a queue is paused.
type pauseMeta struct {
	engine.Target
	Paused bool
}

// maxMissed is how many heartbeats a gateway stores after another gateway's last one
// before it considers that gateway dead. It is one more than a lease time has.
const maxMissed = 4

// holderTTL is how long the last heartbeat of a gateway stays in the stream.
const holderTTL = 24 * time.Hour

// load starts to follow the task stream. It returns when the heartbeat that it stored
// first has been read, because then the index has everything before it.
func (e *Engine) load(ctx context.Context) error {
	err := e.beat(ctx)
	if err == nil {
		err = e.follow()
	}
	if err != nil {
		return err
	}
	select {
	case <-e.index.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow reads the headers of the task stream from its beginning and keeps following
// it. The client library resumes after an interruption.
func (e *Engine) follow() error {
	consumer, err := e.js.OrderedConsumer(e.closing, taskStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: watchedSubjects, HeadersOnly: true, DeliverPolicy: jetstream.DeliverAllPolicy,
	})
	if err != nil {
		return err
	}
	reading, err := consumer.Consume(func(msg jetstream.Msg) {
		info, err := msg.Metadata()
		if err == nil {
			err = e.apply(msg.Subject(), info.Sequence.Stream, msg.Headers())
		}
		if err != nil {
			e.log.Error("stored message not readable", zap.String("subject", msg.Subject()), zap.Error(err))
		}
	}, jetstream.PullMaxMessages(readAhead), jetstream.PullExpiry(readExpiry), jetstream.PullHeartbeat(readHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			e.log.Debug("task stream interrupted", zap.Error(err))
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

// apply updates the index with a message of the stream.
func (e *Engine) apply(subject string, seq uint64, header nats.Header) (err error) {
	read := func(meta any) bool {
		err = getMeta(header, meta)
		return err == nil
	}
	switch {
	case strings.HasPrefix(subject, taskSubject):
		if m := (meta{ID: strings.TrimPrefix(subject, taskSubject)}); read(&m) {
			e.index.apply(m.ID, seq, &m, true)
		}
	case strings.HasPrefix(subject, holderSubject):
		if h := (holderMeta{}); read(&h) {
			e.index.recordHeartbeat(h)
		}
	case strings.HasPrefix(subject, hostSubject):
		if h := (engine.HostState{}); read(&h) {
			e.index.setHostState(h)
		}
	case strings.HasPrefix(subject, pauseSubject):
		if p := (pauseMeta{}); read(&p) {
			e.index.pause(p.Target, p.Paused)
		}
	}
	return err
}

// beat stores a heartbeat.
func (e *Engine) beat(ctx context.Context) error {
	err := e.storeHolder(ctx, false)
	if err == nil {
		e.isDown.Store(false)
	}
	return err
}

func (e *Engine) storeHolder(ctx context.Context, ended bool) error {
	_, err := e.store(ctx, newMessage(holderSubject+e.id, holderMeta{e.id, ended}, holderTTL))
	return err
}

// keepAlive stores heartbeats, more often while the cluster is unavailable. If the streams
// were deleted, it creates them again and empties the index.
func (e *Engine) keepAlive() {
	interval := e.cfg.LeaseTime / 3
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	followed := e.tasks.CachedInfo().Created
	for {
		select {
		case <-e.closing.Done():
			return
		case <-ticker.C:
		case <-e.beatNow:
		}
		err := e.beat(e.closing)
		if err == nil || errors.Is(err, engine.ErrFull) {
			var created time.Time
			if created, err = e.measure(e.closing); err == nil && !created.Equal(followed) {
				e.log.Error("task stream was deleted and created again; its tasks are lost")
				e.index.clear()
				if err = e.follow(); err == nil {
					followed = created
				}
			}
		}
		ticker.Reset(interval)
		if err != nil && e.closing.Err() == nil {
			e.isDown.Store(true)
			e.log.Debug("heartbeat not stored", zap.Error(err))
			ticker.Reset(min(interval, retryInterval))
			if _, _, err := e.openStreams(e.closing); err != nil {
				e.log.Debug("streams not opened", zap.Error(err))
			}
		}
	}
}

// retryInterval is the longest wait between two heartbeats while the cluster is
// unavailable.
const retryInterval = time.Second

// recordHeartbeat records a heartbeat of a gateway. This gateway's own heartbeats count as
// missed by all others, so that no clocks are compared.
func (x *index) recordHeartbeat(m holderMeta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.holder(m.ID)
	h.missed = 0
	x.setDead(h, m.Ended)
	if h != x.me {
		return
	}
	x.endLoad()
	for _, h := range x.holders {
		if h.missed++; h.missed >= maxMissed {
			x.setDead(h, true)
		}
		if h.dead && len(h.tasks) == 0 {
			delete(x.holders, h.id)
		}
	}
}

// setDead records whether a gateway is dead. Other gateways take the deliveries of a
// dead one.
func (x *index) setDead(h *holder, dead bool) {
	if h == x.me || h.dead == dead {
		return
	}
	h.dead = dead
	for e := range h.tasks {
		x.enqueue(e)
	}
}
