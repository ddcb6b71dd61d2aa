package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A process that dies between storing a delivery's next step and acknowledging
// the step before leaves both. The next process finds out which those are once,
// with the first delivery that it takes of those it found, and not with each, unless
// there are very many: to ask the server took longer than to deliver.

// moved are the deliveries that waited for their host's turn or their next attempt,
// or were given up, when the link's first old delivery was taken. The zero value is
// ready.
type moved struct {
	mu    sync.Mutex
	known bool
	many  bool                // more than a page of one of them: each is asked for
	held  map[string]struct{} // by task ID
	retry map[string]struct{}
	dead  map[string]struct{}
}

// hasMoved says whether a delivery that was stored before the link was opened
// has been moved on from its subject, so that it is over there. One that was stored
// since must not be asked for: it may have come back from where it was moved to.
func (d *Delivery) hasMoved(ctx context.Context) (bool, error) {
	m, id := &d.link.moved, d.Record.ID
	if err := m.list(ctx, d.link); err != nil {
		return false, err
	}
	if m.many {
		if is, err := d.standsFurther(ctx); is || err != nil {
			return is, err
		}
	} else {
		_, isRetried := m.retry[id]
		_, isHeld := m.held[id]
		if isRetried || isHeld && !strings.HasPrefix(d.msg.Subject, heldSubject) {
			return true, nil
		}
		if _, isDead := m.dead[id]; !isDead {
			return false, nil
		}
	}
	f, err := d.engine.givenUp(ctx, d.Record)
	return f != nil, err
}

func (m *moved) list(ctx context.Context, k *link) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known {
		return nil
	}
	for _, place := range []struct {
		stream, subject string
		ids             *map[string]struct{}
	}{{liveStream, heldSubject, &m.held}, {liveStream, retrySubject, &m.retry}, {deadStream, deadSubject, &m.dead}} {
		page, total, err := k.subjectPage(ctx, place.stream, place.subject+">", 0)
		if err != nil {
			return err
		}
		if total > len(page) {
			m.many, m.held, m.retry, m.dead = true, nil, nil, nil
			break
		}
		*place.ids = make(map[string]struct{}, len(page))
		for _, subject := range page {
			(*place.ids)[strings.Clone(idOf(subject))] = struct{}{}
		}
	}
	m.known = true
	return nil
}

// standsFurther says whether a step of the delivery's task is stored that came after
// the delivery.
func (d *Delivery) standsFurther(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	id, host := d.Record.ID, hostToken(d.Record.CallbackHost)
	for _, subject := range []string{retrySubject + id, heldSubject + host + "." + id, dueSubject + host + "." + id} {
		if msg, err := lastOn(ctx, d.link.live, subject); err != nil || msg != nil && msg.Sequence > d.seq {
			return err == nil, err
		}
	}
	return false, nil
}

// givenUp finds a task among the dead that came there from the delivery rec. It
// returns nil if it is not there, is still there though rec is its redelivery, or is
// damaged there, so that rec is the better one.
func (e *Engine) givenUp(ctx context.Context, rec *task.Record) (*Found, error) {
	msg, err := e.findDead(ctx, rec.ID)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("looking for task %s among the dead: %w", rec.ID, err)
	}
	dead, _, err := unframe(msg.Data)
	if err != nil || !slices.EqualFunc(dead.Redelivered, rec.Redelivered, time.Time.Equal) {
		return nil, nil
	}
	return e.found(msg)
}

// dropMoved takes a delivery out that has been moved on, if it is one.
func (d *Delivery) dropMoved(ctx context.Context) (dropped bool) {
	is, err := d.hasMoved(ctx)
	if err != nil {
		d.twins = true // it may have been; who finishes it takes out both
		d.engine.log.Warn("not known which deliveries have been moved on", zap.Error(err))
		return false
	}
	if is {
		d.acknowledge(ctx)
	}
	return is
}
