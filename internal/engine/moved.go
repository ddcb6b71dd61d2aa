package engine

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// A process that dies between storing a delivery's next step and acknowledging
// the step before leaves both. The next process finds out which those are once,
// with the first delivery that it takes of those it found, and not with each: to
// ask the server took longer than to deliver.

// moved are the deliveries that waited for their host's turn or their next attempt
// when the link's first old delivery was taken. The zero value is ready.
type moved struct {
	mu    sync.Mutex
	known bool
	held  map[string]struct{} // by task ID
	retry map[string]struct{}
}

// hasMoved says whether a delivery that was stored before the link was opened
// has been moved on from its subject, so that it is over there. One that was stored
// since must not be asked for: it may have come back from where it was moved to.
func (k *link) hasMoved(ctx context.Context, subject, id string) (bool, error) {
	k.moved.mu.Lock()
	defer k.moved.mu.Unlock()
	if !k.moved.known {
		held, err := k.idsOn(ctx, heldSubject+">")
		if err != nil {
			return false, err
		}
		retry, err := k.idsOn(ctx, retrySubject+">")
		if err != nil {
			return false, err
		}
		k.moved.known, k.moved.held, k.moved.retry = true, held, retry
	}
	_, isRetried := k.moved.retry[id]
	_, isHeld := k.moved.held[id]
	return isRetried || isHeld && !strings.HasPrefix(subject, heldSubject), nil
}

// idsOn lists the tasks that stand on subjects.
func (k *link) idsOn(ctx context.Context, filter string) (map[string]struct{}, error) {
	info, err := k.live.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("listing what stands on %s: %w", filter, err)
	}
	ids := make(map[string]struct{}, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		ids[strings.Clone(idOf(subject))] = struct{}{}
	}
	return ids, nil
}

// dropMoved takes a delivery out that has been moved on, if it is one.
func (d *Delivery) dropMoved(ctx context.Context) (dropped bool) {
	is, err := d.link.hasMoved(ctx, d.msg.Subject, d.Record.ID)
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
