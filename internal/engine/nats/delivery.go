package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A Delivery is a callback in this node's hands: nobody else gets it until it
// is given back, or this node dies.
type Delivery struct {
	Record *task.Record
	body   []byte
	engine *Engine
	link   *link // over which it was taken
	msg    *nats.Msg
	seq    uint64 // where the message stands in the stream; 0 if that is not known
	behind int
	// twins says that the delivery may stand elsewhere too: an earlier holder
	// died between storing its next step and acknowledging this one.
	twins bool
}

// take makes a delivery of a message and holds it in this node's hands.
func (e *Engine) take(ctx context.Context, k *link, msg *nats.Msg) *Delivery {
	rec, body, err := unframe(msg.Data)
	if err != nil {
		e.bury(ctx, msg, err)
		return nil
	}
	d := &Delivery{Record: rec, body: body, engine: e, link: k, msg: msg}
	if meta, err := msg.Metadata(); err == nil {
		d.seq, d.behind, d.twins = meta.Sequence.Stream, int(meta.NumPending), meta.NumDelivered > 1
	}
	if !e.keep(d) {
		// It is being worked on here, since before the server was opened anew.
		d.giveBack(outstandingDelay)
		return nil
	}
	switch {
	case d.seq > k.found.Load():
	case strings.HasPrefix(msg.Subject, queuedSubject):
		d.twins = true // a claim looks where
	case d.dropMoved(ctx):
		d.letGo()
		return nil
	}
	return d
}

// keep holds a delivery in this node's hands, unless its message was there when
// the server was opened anew and still is.
func (e *Engine) keep(d *Delivery) bool {
	e.handsMu.Lock()
	defer e.handsMu.Unlock()
	if _, ok := e.outstanding[d.seq]; ok {
		return false
	}
	e.hands[d] = struct{}{}
	return true
}

// outstandingDelay is how soon a delivery is offered again that is in hand.
const outstandingDelay = time.Second

// isStale says that the server was opened anew since the delivery was taken: it
// comes again, and its message can be acknowledged no more.
func (d *Delivery) isStale() bool { return d.link != d.engine.link() }

// handTime is how long a delivery is nobody else's after its holder was heard of
// last. It is short in a cluster: what was on its way from a server that died, or is
// given back to one, is out for that long, and for all that time a server may take
// it for acknowledged, see [Delivery.isNowhere].
func (e *Engine) handTime() time.Duration {
	if e.remote() {
		return e.cfg.LeaseTime / 3
	}
	return e.cfg.LeaseTime
}

// keepHands tells the server in time that the deliveries in hand are being worked
// on.
func (e *Engine) keepHands(ctx context.Context) {
	tick := time.NewTicker(e.handTime() / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.handsMu.Lock()
		for d := range e.hands {
			if d.isStale() {
				continue
			}
			if err := d.msg.InProgress(); err != nil {
				e.log.Warn("delivery not kept in hand", zap.String("task_id", d.Record.ID), zap.Error(err))
			}
		}
		e.handsMu.Unlock()
	}
}

func (d *Delivery) letGo() {
	d.engine.handsMu.Lock()
	delete(d.engine.hands, d)
	if len(d.engine.outstanding) > 0 && d.isStale() {
		delete(d.engine.outstanding, d.seq)
	}
	d.engine.handsMu.Unlock()
}

// Behind returns how many deliveries stood behind this one in its source when it
// was handed out.
func (d *Delivery) Behind() int { return d.behind }

// Body returns the body of the task's result as it was captured, loading it
// if it did not fit in the message.
func (d *Delivery) Body(ctx context.Context) ([]byte, error) {
	if d.Record.Blob == "" {
		return d.body, nil
	}
	return d.engine.blob(ctx, d.Record.Blob)
}

// openBody opens the body of a record, which stands beside it or in the object
// store.
func (e *Engine) openBody(ctx context.Context, rec *task.Record, body []byte) (io.ReadCloser, error) {
	if rec.Blob == "" {
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	return e.openBlob(ctx, rec.Blob)
}

// Done records the task as ended, a queue's with its result, and gives the
// delivery back for good. An error means that the task cannot be looked up; its
// delivery is over all the same.
func (d *Delivery) Done(ctx context.Context) error {
	rec, body := *d.Record, d.body
	if !d.engine.keepsResult(&rec) {
		defer d.engine.dropBlob(ctx, rec.Blob)
		rec.Blob, body = "", nil
		if rec.Queue != "" && rec.Result != nil {
			rec.Blob = rec.ID + goneBlob
		}
	}
	_, err := d.engine.publish(ctx, step{subject: doneSubject + rec.ID, rec: &rec, body: body})
	err = errors.Join(err, d.engine.retireKey(ctx, &rec))
	d.forgetFormer(ctx, task.Done)
	d.finish(ctx)
	return err
}

// Dead keeps the delivery, body and all, where it can be redelivered by hand.
func (d *Delivery) Dead(ctx context.Context) error {
	_, err := d.engine.publish(ctx, step{subject: deadSubject + d.Record.ID, rec: d.Record, body: d.body})
	if err != nil {
		d.Release()
		return err
	}
	d.forgetFormer(ctx, task.Dead)
	d.finish(ctx)
	return nil
}

// Retry schedules the delivery for its next attempt. The server writes it anew
// when that is due, and we after it: a large body does not go with it.
func (d *Delivery) Retry(ctx context.Context, at time.Time) error {
	return d.move(ctx, step{
		subject: retrySubject + d.Record.ID, apart: len(d.body) > maxRewritten,
		at: at, target: dueSubject + hostToken(d.Record.CallbackHost) + "." + d.Record.ID,
	})
}

// Hold moves the delivery into its host's lane.
func (d *Delivery) Hold(ctx context.Context) error {
	return d.move(ctx, step{subject: heldSubject + hostToken(d.Record.CallbackHost) + "." + d.Record.ID})
}

// move stores the delivery's next step, if it is still where this node took it
// from, and gives it back.
func (d *Delivery) move(ctx context.Context, s step) error {
	if d.engine.isTight() {
		// It is written anew at every step, and there is no room for that. The attempt
		// does not count: the callback is not given up for want of room.
		d.letGo()
		d.giveBack(max(time.Until(s.at), tightDelay))
		return nil
	}
	s.rec, s.body = d.Record, d.body
	s.fence, s.seq = d.msg.Subject, d.seq
	_, err := d.engine.publish(ctx, s)
	if errors.Is(err, ErrLost) && d.isNowhere(ctx) {
		s.seq = 0
		_, err = d.engine.publish(ctx, s)
	}
	if err != nil {
		d.Release()
		return err
	}
	d.acknowledge(ctx)
	d.letGo()
	return nil
}

// isNowhere says whether the task is in this node's hands only. A server of a cluster
// that was killed, started again and then leads the stream of live tasks may remove
// what is in hand: it refuses what the others tell it of their consumers if a
// message has gone meanwhile, knows later of what was handed out after that, and
// takes what it does not know of for acknowledged (nats-server 2.15.2,
// consumerFileStore.Update and consumer.checkStateForInterestStream).
func (d *Delivery) isNowhere(ctx context.Context) bool {
	if !d.engine.remote() {
		return false
	}
	_, err := d.engine.Find(ctx, d.Record.ID)
	return errors.Is(err, ErrNotFound)
}

// Release gives the delivery back untouched: it comes again, to any node.
func (d *Delivery) Release() {
	d.letGo()
	d.giveBack(releaseDelay)
}

func (d *Delivery) giveBack(delay time.Duration) {
	if d.isStale() {
		return // it comes again in any case
	}
	if err := d.msg.NakWithDelay(delay); err != nil && !d.isStale() {
		d.engine.log.Warn("delivery not released", zap.String("task_id", d.Record.ID), zap.Error(err))
	}
}

// releaseDelay keeps a delivery that cannot be stored from coming again in a
// tight loop.
const releaseDelay = 250 * time.Millisecond

// tightDelay is how long a delivery at least stays where it is if there is no
// room to move it.
const tightDelay = time.Second

// finish takes the delivery out of the stream, wherever it stands.
func (d *Delivery) finish(ctx context.Context) {
	defer d.letGo()
	if d.twins {
		host := hostToken(d.Record.CallbackHost)
		for _, subject := range []string{retrySubject, heldSubject + host + ".", dueSubject + host + "."} {
			if subject += d.Record.ID; subject == d.msg.Subject {
				continue
			}
			if err := d.engine.link().live.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
				d.engine.log.Warn("twin not removed", zap.String("task_id", d.Record.ID), zap.Error(err))
			}
		}
	}
	d.acknowledge(ctx)
}

// acknowledge takes the delivery's message out of the stream.
func (d *Delivery) acknowledge(ctx context.Context) {
	var err error
	if d.isStale() {
		err = d.remove(ctx)
	} else {
		err = d.msg.Ack()
	}
	if err != nil {
		d.engine.log.Warn("delivery not acknowledged; it will be repeated",
			zap.String("task_id", d.Record.ID), zap.Error(err))
	}
}

// remove takes the message out of the stream where its consumer, which is gone,
// cannot.
func (d *Delivery) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return d.engine.link().live.DeleteMsg(ctx, d.seq)
}
