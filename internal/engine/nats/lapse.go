package engine

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
)

// The server looks which leases have lapsed, and stores what becomes of them a
// moment later without looking again. A holder that was paused past its lease makes
// sure of it before it settles. If it settled in between all the same, it has
// settled: what the lapse stores after it would be a second verdict.

// TakeLapsed says whether the delivery of a lapsed lease counts. If the holder
// has settled after all, the delivery is taken out; if what it settled is being
// attempted on this node, the delivery comes again when it is known what became
// of that.
func (d *Delivery) TakeLapsed(ctx context.Context) (counts bool, err error) {
	if d.engine.isInHand(d.Record.ID, d) {
		d.Release()
		return false, nil
	}
	settled, err := d.isSettled(ctx)
	switch {
	case err != nil:
		d.Release()
		return false, err
	case settled:
		d.letGo()
		d.acknowledge(ctx)
		return false, nil
	}
	return true, nil
}

// isInHand says whether this node has a delivery of a task in hand, other than not.
func (e *Engine) isInHand(id string, not *Delivery) bool {
	e.handsMu.Lock()
	defer e.handsMu.Unlock()
	for d := range e.hands {
		if d != not && d.Record.ID == id {
			return true
		}
	}
	return false
}

// isSettled says whether the task stands where only a holder that settled can
// have put it.
func (d *Delivery) isSettled(ctx context.Context) (bool, error) {
	k, id := d.engine.link(), d.Record.ID
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	for _, place := range []struct {
		stream  jetstream.Stream
		subject string
	}{
		{k.live, heldSubject + hostToken(d.Record.CallbackHost) + "." + id}, {k.live, retrySubject + id},
		{k.ended, doneSubject + id}, {k.dead, deadSubject + id},
	} {
		if place.subject == d.msg.Subject {
			continue
		}
		if msg, err := lastOn(ctx, place.stream, place.subject); msg != nil || err != nil {
			return msg != nil, err
		}
	}
	return false, nil
}
