package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A RefusedError says why a task, standing where it does, cannot be redelivered
// or purged.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// byHand keeps two operators of this node from moving one task at once. On two
// nodes they can: the callback may then be attempted once more than was asked
// for.
type byHand struct {
	mu  sync.Mutex
	ids map[string]struct{}
}

// enter says whether nobody moves the task, and if so counts the caller in.
func (h *byHand) enter(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.ids[id]; ok {
		return false
	}
	if h.ids == nil {
		h.ids = make(map[string]struct{})
	}
	h.ids[id] = struct{}{}
	return true
}

func (h *byHand) leave(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ids, id)
}

var errMoving = &RefusedError{"somebody else is moving the task at the moment"}

// Redeliver makes the callback of a task that has ended due again: its attempts
// start anew. The task is stored among the live ones before it is taken from
// where it stands, so that it is nowhere missing. It returns a *RefusedError if
// the task cannot be redelivered, and ErrNotFound if the engine does not have it.
func (e *Engine) Redeliver(ctx context.Context, id string) error {
	if !e.moving.enter(id) {
		return errMoving
	}
	defer e.moving.leave(id)
	f, err := e.findOver(ctx, id)
	if err != nil {
		return err
	}
	if err := e.redeliverable(ctx, f); err != nil {
		return err
	}
	rec := *f.Record
	rec.Redeliver(time.Now().UTC())
	due := dueSubject + hostToken(rec.CallbackHost) + "." + rec.ID
	if _, err := e.publish(ctx, step{subject: due, rec: &rec, body: f.body, fence: due}); errors.Is(err, ErrLost) {
		return errMoving
	} else if err != nil {
		return err
	}
	err = e.over(f.Record.State).DeleteMsg(ctx, f.msg.Sequence)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		// It is due all the same. What is left goes when the redelivery has ended.
		e.log.Warn("task not taken from where it stood", zap.String("task_id", id), zap.Error(err))
	}
	return nil
}

// findOver finds a task that is to be moved because it is over. If it was given up
// and its last delivery is not taken out yet, or never was because the process died,
// the delivery is removed and the dead task found. In a cluster another node may
// have that delivery in hand: there the task is being delivered.
func (e *Engine) findOver(ctx context.Context, id string) (*Found, error) {
	f, err := e.Find(ctx, id)
	if err != nil || f.Record.State != task.Delivering || e.remote() || e.isInHand(id, nil) {
		return f, err
	}
	dead, err := e.givenUp(ctx, f.Record)
	if dead == nil || err != nil {
		return f, err
	}
	err = e.link().live.DeleteMsg(ctx, f.msg.Sequence)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("removing the last delivery of task %s: %w", id, err)
	}
	return dead, nil
}

// over is the stream of tasks that are over.
func (e *Engine) over(state task.State) jetstream.Stream {
	if state == task.Dead {
		return e.link().dead
	}
	return e.link().ended
}

// redeliverable says what is missing for a redelivery.
func (e *Engine) redeliverable(ctx context.Context, f *Found) error {
	rec := f.Record
	switch {
	case rec.State != task.Dead && rec.State != task.Done:
		return &RefusedError{"the task has not ended: it is " + string(rec.State)}
	case rec.Callback == nil:
		return &RefusedError{"the task has no callback"}
	case rec.Result == nil:
		return nil // the callback says why there is none
	case rec.State == task.Done && rec.Queue == "" && rec.Result.Size > 0:
		return &RefusedError{"the result was delivered and is not kept: only a queue's tasks keep theirs"}
	case rec.Blob == "":
		return nil
	}
	_, err := e.link().blobs.GetInfo(ctx, rec.Blob)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return &RefusedError{"the result is gone"}
	} else if err != nil {
		return fmt.Errorf("looking for the body %s: %w", rec.Blob, err)
	}
	return nil
}

// Purge removes a task that has ended, with its result. It returns a
// *RefusedError if the task has not ended, and ErrNotFound if the engine does not
// have it.
func (e *Engine) Purge(ctx context.Context, id string) error {
	if !e.moving.enter(id) {
		return errMoving
	}
	defer e.moving.leave(id)
	f, err := e.findOver(ctx, id)
	if err != nil {
		return err
	}
	rec := f.Record
	if rec.State != task.Dead && rec.State != task.Done {
		return &RefusedError{"the task has not ended: it is " + string(rec.State) + "; cancel it first"}
	}
	err = e.over(rec.State).DeleteMsg(ctx, f.msg.Sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return ErrNotFound
	} else if err != nil {
		return fmt.Errorf("purging task %s: %w", id, err)
	}
	e.dropBlob(ctx, rec.Blob)
	return e.dropKey(ctx, rec)
}

// dropKey forgets the idempotency key of a task that is purged: a request with
// it starts another.
func (e *Engine) dropKey(ctx context.Context, rec *task.Record) error {
	if rec.Key == "" {
		return nil
	}
	for _, place := range []struct {
		stream  jetstream.Stream
		subject string
	}{
		{e.link().live, keySubject + rec.Queue + "." + rec.Key}, {e.link().ended, doneKeySubject + rec.Queue + "." + rec.Key},
	} {
		k, err := getKey(ctx, place.stream, place.subject)
		if err != nil {
			return err
		}
		if k == nil || k.TaskID != rec.ID {
			continue
		}
		if err := place.stream.Purge(ctx, jetstream.WithPurgeSubject(place.subject)); err != nil {
			return fmt.Errorf("forgetting the key of task %s: %w", rec.ID, err)
		}
	}
	return nil
}

// forgetFormer removes what a gateway that died may have left of the task where it
// was over before: in the middle of a redelivery, or before it took out the
// delivery that ended it. stays is where the task has come to.
func (d *Delivery) forgetFormer(ctx context.Context, stays task.State) {
	if len(d.Record.Redelivered) == 0 && !d.twins {
		return
	}
	k, id := d.engine.link(), d.Record.ID
	stream, subject := k.dead, deadSubject+id
	if stays == task.Dead {
		stream, subject = k.ended, doneSubject+id
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		d.engine.log.Warn("former place of a task not cleared", zap.String("task_id", id), zap.Error(err))
	}
}
