package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// ErrExists is returned when a task of that ID is stored already.
var ErrExists = errors.New("the task exists already")

func queuedOn(rec *task.Record) string { return queuedSubject + rec.Queue + "." + rec.ID }

// Enqueue stores a task that waits to run: from then on it runs. It returns
// ErrExists if the task waits already.
func (e *Engine) Enqueue(ctx context.Context, rec *task.Record, body []byte) error {
	_, err := e.publish(ctx, step{subject: queuedOn(rec), rec: rec, body: body, fence: queuedOn(rec)})
	if errors.Is(err, ErrLost) {
		return ErrExists
	}
	return err
}

// StoreBody puts a request's body that does not fit in a message into the
// object store, as it is read, and names it in rec. If reading fails nothing is
// stored.
func (e *Engine) StoreBody(ctx context.Context, rec *task.Record, body io.Reader) error {
	name := rec.ID + requestBlob
	info, err := e.blobs.Put(ctx, jetstream.ObjectMeta{Name: name}, body)
	if err != nil {
		return fmt.Errorf("storing the body of task %s: %w", rec.ID, err)
	}
	rec.Blob, rec.Request.Size = name, int64(info.Size)
	return nil
}

// DropBody removes the body of a task that was not enqueued after all.
func (e *Engine) DropBody(ctx context.Context, rec *task.Record) { e.dropBlob(ctx, rec.Blob) }

// InlineLimit is the largest body, in bytes, that is stored with its record.
func (e *Engine) InlineLimit() int { return e.publishLimit - recordRoom }

// Queue hands out tasks that wait to run, in order of arrival, each to one node
// at a time.
type Queue struct {
	name   string
	source *Source
}

// Queue opens the queue of that name.
func (e *Engine) Queue(ctx context.Context, name string) (*Queue, error) {
	source, err := e.source(ctx, "queue-"+name, queuedSubject+name+".*")
	if err != nil {
		return nil, err
	}
	return &Queue{name, source}, nil
}

// Waiting returns how many tasks wait in the queue. It asks the server.
func (q *Queue) Waiting(ctx context.Context) (int, error) {
	info, err := q.source.consumer.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("counting the queue %s: %w", q.name, err)
	}
	return int(info.NumPending) + info.NumAckPending, nil
}

// Fetch yields up to n tasks as they come, like [Source.Fetch]. Every one must
// be finished with Claim, Drop or Release.
func (q *Queue) Fetch(ctx context.Context, n int) iter.Seq2[*Queued, error] {
	return func(yield func(*Queued, error) bool) {
		for d, err := range q.source.Fetch(ctx, n) {
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&Queued{d}, nil) {
				return
			}
		}
	}
}

// Queued is a task in this node's hands that waits to be claimed.
type Queued struct{ hand *Delivery }

// Record returns the task's record. Its ID is empty for a schedule's tick: the
// claim gives it one.
func (w *Queued) Record() *task.Record { return w.hand.Record }

// Sequence says when the task arrived, in the engine's own count.
func (w *Queued) Sequence() uint64 {
	meta, err := w.hand.msg.Metadata()
	if err != nil {
		return 0
	}
	return meta.Sequence.Stream
}

// Release gives the task back unclaimed: it comes again, to any node.
func (w *Queued) Release() { w.hand.Release() }

// Drop takes a copy of a task that is past waiting out of the queue.
func (w *Queued) Drop() {
	w.hand.letGo()
	w.hand.engine.acknowledge(w.hand.msg)
}

// Claim takes the task. rec is what it becomes if the holder dies: with a
// verdict its delivery, without one a task that waits again. lost is as in
// [Engine.Claim]. It returns ErrHeld if somebody holds the task; the copy is
// dropped then.
func (w *Queued) Claim(ctx context.Context, rec task.Record, lost func()) (*Lease, error) {
	e := w.hand.engine
	l := &Lease{engine: e, rec: rec, body: w.hand.body, request: w.hand.body, lapse: queuedOn(&rec), lost: lost}
	if rec.Ended() {
		l.lapse, l.body = dueSubject+hostToken(rec.CallbackHost)+"."+rec.ID, nil
	}
	if err := l.claim(ctx); err != nil {
		if errors.Is(err, ErrHeld) {
			w.Drop()
		} else {
			w.Release()
		}
		return nil, err
	}
	w.hand.letGo()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := w.hand.msg.DoubleAck(ctx); err != nil {
		// The copy may come again: do not run. The claim lapses, or whoever gets
		// the copy meets it.
		l.mu.Lock()
		l.end()
		l.mu.Unlock()
		return nil, fmt.Errorf("taking task %s from its queue: %w", rec.ID, err)
	}
	return l, nil
}

// OpenBody returns the request's body, to be read while the lease is held.
func (w *Queued) OpenBody(ctx context.Context) (io.ReadCloser, error) {
	return w.hand.engine.openBody(ctx, w.hand.Record, w.hand.body)
}

// Enqueue turns a waiting client's task into one that waits in a queue: the
// lease ends and the task is stored, in one step.
func (l *Lease) Enqueue(ctx context.Context, rec *task.Record, body []byte) error {
	return l.leave(ctx, step{subject: queuedOn(rec), rec: rec, body: body})
}

// Requeue gives the task back to its queue, to run again at the given time, or
// at once if that is zero.
func (l *Lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	s := step{subject: queuedOn(rec), rec: rec, body: l.request}
	if !at.IsZero() {
		s.subject, s.target, s.at = retrySubject+rec.ID, queuedOn(rec), at
	}
	return l.leave(ctx, s)
}

// idOf returns the task's ID in a subject.
func idOf(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
