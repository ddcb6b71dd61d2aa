package nats

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// maintenanceInterval is how often maintain looks for expired tasks.
	maintenanceInterval = 500 * time.Millisecond
	// collectInterval is how often maintain looks for orphaned bodies.
	collectInterval = time.Hour
	// maintenanceBatch is how many tasks maintain changes at a time.
	maintenanceBatch = 256
)

// maintain finds tasks whose holder died, or whose delivery window or retention has
// ended, and stores their next step. The youngest gateway, which started last, does this
// for all gateways. If two gateways consider themselves the youngest, the server refuses
// the later of two steps of a task.
func (e *Engine) maintain() {
	ticker := time.NewTicker(maintenanceInterval)
	defer ticker.Stop()
	collected := time.Now().Add(-collectInterval)
	for {
		select {
		case <-e.closing.Done():
			return
		case <-ticker.C:
		}
		if e.available() != nil {
			continue
		}
		youngest, unneeded := e.index.isYoungest(), e.index.takeUnneeded()
		e.expireAll(e.index.orphans(maintenanceBatch, youngest))
		if youngest {
			e.expireAll(e.index.expired(e.settings.Load(), maintenanceBatch))
			for _, name := range unneeded {
				e.discard(e.closing, name)
			}
		}
		if time.Since(collected) < collectInterval {
			continue
		}
		collected = time.Now()
		e.index.pruneHosts()
		if youngest {
			if err := e.collectBodies(e.closing); err != nil {
				e.log.Debug("orphaned bodies not removed", zap.Error(err))
			}
		}
	}
}

// expireAll stores the next step of each task.
func (e *Engine) expireAll(tasks []candidate) {
	for _, c := range tasks {
		err := e.expire(e.closing, c)
		switch {
		case err == nil, errors.Is(err, engine.ErrLost), errors.Is(err, engine.ErrUnavailable), errors.Is(err, engine.ErrNotFound):
		default:
			e.log.Warn("expired task not updated", zap.String("task_id", c.id), zap.Error(err))
		}
	}
}

// expire settles or requeues a task whose holder died, makes a callback whose delivery
// window has ended a dead letter, or removes a finished task.
func (e *Engine) expire(ctx context.Context, c candidate) error {
	m, err := e.getStep(ctx, c)
	if err != nil {
		return err
	}
	switch m.meta.State {
	case task.Running:
		return e.put(ctx, expired(m), m.seq)
	case task.Delivering:
		return e.giveUp(ctx, m)
	default:
		return e.put(ctx, removal(c.id), m.seq)
	}
}

// pruneHosts removes the hosts that have no pending deliveries and have not answered
// lately.
func (x *index) pruneHosts() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, b := range x.hosts {
		old := b.state.Failures == 0 && time.Since(b.state.AnsweredAt) > hostMemory
		if old && b.pending == 0 && !b.state.Paused {
			delete(x.hosts, name)
		}
	}
}

// hostMemory is how long an idle, healthy host stays in the index.
const hostMemory = 24 * time.Hour

// isYoungest reports whether no running gateway was started after this one.
func (x *index) isYoungest() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range x.holders {
		if !h.dead && h.id > x.me.id {
			return false
		}
	}
	return true
}

// orphans returns up to n running tasks without a lease: this gateway's, if the claim
// was stored but not acknowledged, and those of dead gateways, if this gateway is the
// youngest.
func (x *index) orphans(n int, youngest bool) (found []candidate) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range x.holders {
		if h != x.me && !(h.dead && youngest) {
			continue
		}
		for e := range h.tasks {
			if e.state == task.Running && x.inFlight[e.id] == nil && len(found) < n {
				found = append(found, e.candidate())
			}
		}
	}
	return found
}

// expired returns the next step of a task whose holder died. A job that has starts left
// is queued again; any other task is settled as FAILED.
func expired(m *message) *message {
	if m.meta.Queue != "" && m.rec.Starts < m.meta.MaxStarts {
		m.rec.StartedAt = time.Time{}
		return m.next(m.rec, task.Queued)
	}
	return failed(m, task.ErrorHolderDied)
}

// failed returns the step that settles a task without a result.
func failed(m *message, reason string) *message {
	rec := m.rec
	rec.Status, rec.Error, rec.FinishedAt, rec.NextAttemptAt = task.Failed, reason, time.Now().UTC(), time.Time{}
	rec.DropRequest()
	return settled(m, rec)
}

// bound selects the tasks in a state that are evicted.
type bound struct {
	before int64 // tasks that finished before are evicted
	excess int64 // how many tasks exceed the retention count; the oldest are evicted
}

func (x *index) bound(state task.State, keep time.Duration, count int64) (b bound) {
	if keep > 0 {
		b.before = time.Now().Add(-keep).UnixNano()
	}
	if count > 0 {
		b.excess = max(0, x.counts[state]-count)
	}
	return b
}

func (b *bound) exceeds(e *entry) bool {
	if b.excess > 0 {
		b.excess--
		return true
	}
	return e.finished < b.before
}

// expired returns up to n tasks whose retention or delivery window has ended, and those
// that exceed the retention count, oldest first.
func (x *index) expired(s *engine.Settings, n int) (found []candidate) {
	x.mu.Lock()
	defer x.mu.Unlock()
	done := x.bound(task.Done, s.Retention, s.RetentionCount)
	dead := x.bound(task.Dead, s.Dead, s.DeadCount)
	delivering := x.bound(task.Delivering, s.DeliveryWindow, 0)
	latest := max(done.before, dead.before, delivering.before)
	for _, e := range x.byAge {
		// A task finishes after it was accepted, so all later ones are too young.
		if len(found) >= n || e.created > latest && done.excess == 0 && dead.excess == 0 {
			break
		}
		if e.state == task.Done && done.exceeds(e) || e.state == task.Dead && dead.exceeds(e) ||
			e.state == task.Delivering && e.at != nil && delivering.exceeds(e) {
			found = append(found, e.candidate())
		}
	}
	return found
}
