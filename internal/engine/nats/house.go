package nats

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// houseInterval is how often tasks are looked for that have to be moved on.
	houseInterval = 500 * time.Millisecond
	// collectInterval is how often bodies are looked for that no task names.
	collectInterval = time.Hour
	// houseBatch is how many tasks are moved on at a time.
	houseBatch = 256
)

// keepHouse moves tasks on whose holder died, whose delivery window ended or whose
// retention is over. The youngest gateway does it for all; should two believe that
// they are the youngest, the second one's steps are refused.
func (e *Engine) keepHouse() {
	ticker := time.NewTicker(houseInterval)
	defer ticker.Stop()
	collected, pruned := time.Now().Add(-collectInterval), time.Now()
	for {
		select {
		case <-e.closing.Done():
			return
		case <-ticker.C:
		}
		if e.available() != nil {
			continue
		}
		if e.purgeBodies(e.closing); time.Since(pruned) >= collectInterval {
			pruned = time.Now()
			e.index.pruneHosts()
		}
		for _, id := range e.index.orphans(houseBatch) {
			e.housework("a task whose holder died was not moved on", id, e.expire)
		}
		if !e.index.isYoungest() {
			continue
		}
		for _, id := range e.index.expired(e.limits(), houseBatch) {
			e.housework("a task that expired was not moved on", id, e.evict)
		}
		if time.Since(collected) >= collectInterval {
			collected = time.Now()
			if err := e.collectBodies(e.closing); err != nil {
				e.log.Debug("bodies that no task names were not removed", zap.Error(err))
			}
		}
	}
}

func (e *Engine) housework(failure, id string, do func(context.Context, string) error) {
	err := do(e.closing, id)
	switch {
	case err == nil, errors.Is(err, engine.ErrLost), errors.Is(err, engine.ErrUnavailable):
	case errors.Is(err, engine.ErrNotFound):
		e.index.forget(id)
	default:
		e.log.Warn(failure, zap.String("task_id", id), zap.Error(err))
	}
}

// pruneHosts forgets the hosts that have nothing to be delivered, and of which nothing
// was learned lately.
func (x *index) pruneHosts() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, b := range x.hosts {
		old := b.learned.Failures == 0 && time.Since(b.learned.AnsweredAt) > hostMemory
		if old && b.pending == 0 && !b.paused && !b.toReport {
			delete(x.hosts, name)
		}
	}
}

// hostMemory is how long a host is remembered that answered and has nothing waiting.
const hostMemory = 24 * time.Hour

// forget removes a task that the stream has no message of any more.
func (x *index) forget(id string) {
	x.mu.Lock()
	seq := uint64(0)
	if e := x.tasks[id]; e != nil {
		seq = e.seq + 1
	}
	x.mu.Unlock()
	x.apply(id, seq, &meta{State: removed}, nil)
}

// isYoungest says whether this gateway is the last one that was started.
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

// orphans returns up to n running tasks without a holder: this gateway's without a
// lease, whose claim was stored without being acknowledged, and, if it is the youngest
// gateway, those of holders that died.
func (x *index) orphans(n int) (ids []string) {
	youngest := x.isYoungest()
	x.mu.Lock()
	defer x.mu.Unlock()
	some := x.me.running > len(x.leases)
	for _, h := range x.holders {
		some = some || youngest && h.dead && h.running > 0
	}
	if !some {
		return nil
	}
	for _, e := range x.tasks {
		if e.state == task.Running && x.isOrphan(e) && (youngest || e.holder == x.me) && len(ids) < n {
			ids = append(ids, e.id)
		}
	}
	return ids
}

func (x *index) isOrphan(e *entry) bool {
	return e.holder == nil || e.holder.dead || e.holder == x.me && x.leases[e.id] == nil
}

// expire moves a running task on that has no holder.
func (e *Engine) expire(ctx context.Context, id string) error {
	m, err := e.getTask(ctx, id)
	if err != nil {
		return err
	}
	if m.meta.State != task.Running || !e.index.isStillOrphan(id, m.seq) {
		return engine.ErrLost
	}
	n := e.expired(m)
	if err := e.put(ctx, n, m.seq); err != nil {
		return err
	}
	if n.meta.Body != m.meta.Body {
		e.dropBody(m.meta.Body)
	}
	return nil
}

func (x *index) isStillOrphan(id string, seq uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.tasks[id]
	return e != nil && e.seq == seq && x.isOrphan(e)
}

// expired returns the step of a task whose holder died: a job is queued again if it
// may be started once more, all others have FAILED.
func (e *Engine) expired(m *message) *message {
	rec := cloneRecord(m.rec)
	if m.meta.Queue != "" && rec.Starts < m.meta.MaxStarts {
		rec.StartedAt = time.Time{}
		n := m.next(rec, task.Queued)
		n.meta.Holder, n.meta.MaxStarts = "", 0
		return n
	}
	return e.failed(m, rec, task.ErrorHolderDied)
}

// failed returns the step that settles a task without a result.
func (e *Engine) failed(m *message, rec *task.Record, reason string) *message {
	rec.Status, rec.Error, rec.FinishedAt, rec.NextAttemptAt = task.Failed, reason, time.Now().UTC(), time.Time{}
	rec.ForgetRequest()
	return e.settled(m, rec)
}

// limits are the times before which tasks are removed or given up, and how many may
// stay.
type limits struct {
	done, dead, deliver   int64
	doneCount, deadCount  int64
	hasDone, hasDead      bool
	limitsDone, limitDead bool
}

func (e *Engine) limits() limits {
	s, now := e.settings.Load(), time.Now()
	return limits{
		done: now.Add(-s.Retention).UnixNano(), hasDone: s.Retention > 0,
		dead: now.Add(-s.Dead).UnixNano(), hasDead: s.Dead > 0,
		deliver:   now.Add(-e.deliveryWindow()).UnixNano(),
		doneCount: s.RetentionCount, limitsDone: s.RetentionCount > 0,
		deadCount: s.DeadCount, limitDead: s.DeadCount > 0,
	}
}

// expired returns up to n tasks whose time is over, and the oldest of those that are
// too many, by when they were accepted.
func (x *index) expired(l limits, n int) (ids []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	done, dead := int64(0), int64(0)
	if l.limitsDone {
		done = max(0, x.counts[task.Done]-l.doneCount)
	}
	if l.limitDead {
		dead = max(0, x.counts[task.Dead]-l.deadCount)
	}
	latest := l.deliver
	if l.hasDone {
		latest = max(latest, l.done)
	}
	if l.hasDead {
		latest = max(latest, l.dead)
	}
	for _, e := range x.byAge {
		// A task has ended after it was accepted: the rest is too young.
		if len(ids) >= n || e.created > latest && done == 0 && dead == 0 {
			break
		}
		over := false
		switch e.state {
		case task.Done:
			if over = done > 0; over {
				done--
			}
			over = over || l.hasDone && e.finished < l.done
		case task.Dead:
			if over = dead > 0; over {
				dead--
			}
			over = over || l.hasDead && e.finished < l.dead
		case task.Delivering:
			over = e.finished < l.deliver && !e.taken
		}
		if over {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// evict gives up a callback whose delivery window is over, and removes any other task.
func (e *Engine) evict(ctx context.Context, id string) error {
	m, err := e.getTask(ctx, id)
	if err != nil {
		return err
	}
	switch m.meta.State {
	case task.Delivering:
		if !e.isLate(m) {
			return engine.ErrLost
		}
		return e.bury(ctx, m)
	case task.Done, task.Dead:
		return e.remove(ctx, m)
	}
	return engine.ErrLost
}

// remove removes a task with its body.
func (e *Engine) remove(ctx context.Context, m *message) error {
	gone := &message{meta: meta{ID: m.meta.ID, State: removed}}
	if err := e.put(ctx, gone, m.seq); err != nil {
		return err
	}
	e.dropBody(m.meta.Body)
	return nil
}

// age returns how long ago an ID of newID was made.
func age(id string) time.Duration {
	u, err := uuid.Parse(id)
	if err != nil {
		return 0
	}
	return time.Since(time.Unix(u.Time().UnixTime()))
}
