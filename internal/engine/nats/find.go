package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Found is a task as it stood when it was looked up.
type Found struct {
	Record *task.Record // its State says where it stands
	body   []byte
	engine *Engine
	msg    *jetstream.RawStreamMsg
}

// findRounds is how often a task is looked for: it may be between two places
// while each is looked at.
const findRounds = 3

// Find looks a task up, wherever it stands. It returns ErrNotFound if the
// engine does not have it, or no longer.
func (e *Engine) Find(ctx context.Context, id string) (*Found, error) {
	for range findRounds {
		for _, look := range []func(context.Context, string) (*jetstream.RawStreamMsg, error){
			e.findLive, e.findEnded, e.findDead,
		} {
			msg, err := look(ctx, id)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			} else if err != nil {
				return nil, fmt.Errorf("looking up task %s: %w", id, err)
			}
			return e.found(msg)
		}
	}
	return nil, ErrNotFound
}

func (e *Engine) findLive(ctx context.Context, id string) (*jetstream.RawStreamMsg, error) {
	// The lease first: while a task runs, a copy may stand in its queue.
	msg, err := e.link().live.GetLastMsgForSubject(ctx, leaseSubject+id)
	for _, subject := range []string{queuedSubject + "*.", dueSubject + "*.", heldSubject + "*.", retrySubject} {
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		msg, err = e.link().live.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject+id))
	}
	return msg, err
}

func (e *Engine) findEnded(ctx context.Context, id string) (*jetstream.RawStreamMsg, error) {
	return e.link().ended.GetLastMsgForSubject(ctx, doneSubject+id)
}

func (e *Engine) findDead(ctx context.Context, id string) (*jetstream.RawStreamMsg, error) {
	return e.link().dead.GetLastMsgForSubject(ctx, deadSubject+id)
}

func (e *Engine) found(msg *jetstream.RawStreamMsg) (*Found, error) {
	rec, body, err := unframe(msg.Data)
	if err != nil && strings.HasPrefix(msg.Subject, deadSubject) {
		return &Found{Record: damaged(msg), engine: e, msg: msg}, nil // see bury
	} else if err != nil {
		return nil, err
	}
	rec.State = stateAt(msg.Subject, rec)
	hideLapse(rec)
	return &Found{Record: rec, body: body, engine: e, msg: msg}, nil
}

// hideLapse takes away what is stored of a task that runs, and what becomes of
// it only if its holder dies.
func hideLapse(rec *task.Record) {
	if rec.State == task.Running {
		rec.Status, rec.Error = "", ""
	}
}

// stateAt says in which state a task is whose record stands on subject.
func stateAt(subject string, rec *task.Record) task.State {
	place := subject[:strings.IndexByte(subject[len("callback."):], '.')+len("callback.")+1]
	switch {
	case place == leaseSubject:
		return task.Running
	case place == doneSubject:
		return task.Done
	case place == deadSubject:
		return task.Dead
	case rec.Ended():
		return task.Delivering
	default:
		return task.Queued
	}
}

// OpenBody returns the body of the task's result, to be read while the task is
// retained.
func (f *Found) OpenBody(ctx context.Context) (io.ReadCloser, error) {
	return f.engine.openBody(ctx, f.Record, f.body)
}

// ErrEnded is returned for a task that has its verdict already.
var ErrEnded = errors.New("the task has ended")

// cancelRounds is how often a cancellation is tried against a task that moves.
const cancelRounds = 10

// Cancel gives a task that waits or runs the verdict FAILED, with the given
// error. Whoever runs it, on any node, is told to stop. It returns ErrEnded if
// the task has its verdict, and ErrNotFound if the engine does not have it.
func (e *Engine) Cancel(ctx context.Context, id, reason string) error {
	for range cancelRounds {
		f, err := e.Find(ctx, id)
		if err != nil {
			return err
		}
		switch f.Record.State {
		case task.Queued:
			err = e.cancelQueued(ctx, f, reason)
		case task.Running:
			err = e.cancelRunning(ctx, f, reason)
		default:
			return ErrEnded
		}
		if !errors.Is(err, ErrLost) && !errors.Is(err, ErrHeld) {
			return err
		}
	}
	return fmt.Errorf("canceling task %s: it moves too fast", id)
}

// canceled is the record of a task that was canceled.
func canceled(f *Found, reason string) *task.Record {
	rec := *f.Record
	rec.Status, rec.Error, rec.State, rec.Result = task.Failed, reason, "", nil
	rec.FinishedAt, rec.NextAttemptAt, rec.Blob = time.Now().UTC(), time.Time{}, ""
	rec.ForgetRequest()
	return &rec
}

// cancelQueued claims the task, so that nobody else can, takes it out of its
// queue, and settles it.
func (e *Engine) cancelQueued(ctx context.Context, f *Found, reason string) error {
	rec := canceled(f, reason)
	l, err := e.Claim(ctx, *rec, func() {})
	if err != nil {
		return err
	}
	if err := e.stillWaits(ctx, f); err != nil {
		return errors.Join(err, l.Drop(ctx))
	}
	// The next run first: when its time comes it moves into the queue.
	for _, subject := range []string{retrySubject + rec.ID, queuedOn(rec)} {
		if err := e.link().live.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("taking task %s from its queue: %w", rec.ID, err)
		}
	}
	if err := l.Settle(ctx, rec, nil, false); err != nil {
		return err
	}
	e.dropBlob(ctx, f.Record.Blob)
	return nil
}

// stillWaits returns ErrHeld if a task that waited when it was found does not any
// more: since then somebody may have claimed, run and settled it.
func (e *Engine) stillWaits(ctx context.Context, f *Found) error {
	last, err := lastOn(ctx, e.link().live, f.msg.Subject)
	if err == nil && (last == nil || last.Sequence != f.msg.Sequence) {
		return ErrHeld
	}
	return err
}

// cancelRunning settles the task over the head of its holder, as its fencing
// token allows, and tells the holder.
func (e *Engine) cancelRunning(ctx context.Context, f *Found, reason string) error {
	rec := canceled(f, reason)
	_, err := e.publish(ctx, step{
		subject: dueSubject + hostToken(rec.CallbackHost) + "." + rec.ID, rec: rec,
		fence: f.msg.Subject, seq: f.msg.Sequence, purge: true,
	})
	if err != nil {
		return err
	}
	e.dropBlob(ctx, f.Record.Blob)
	e.announce(canceledNote, rec.ID)
	e.announce(endedNote, rec.ID)
	return nil
}
