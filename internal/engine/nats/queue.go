package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// ErrExists is returned when a task of that ID is stored already.
var ErrExists = errors.New("the task exists already")

func queuedOn(rec *task.Record) string { return queuedSubject + rec.Queue + "." + rec.ID }

// Enqueue stores a task that waits to run: from then on it runs. It returns
// ErrExists if the task waits already.
func (e *Engine) Enqueue(ctx context.Context, rec *task.Record, body []byte) error {
	_, err := e.publish(ctx, step{subject: queuedOn(rec), rec: rec, body: body, fence: queuedOn(rec), first: true})
	if errors.Is(err, ErrLost) {
		return ErrExists
	}
	return err
}

// StoreBody puts a request's body that is larger than InlineLimit into the object
// store, as it is read, and names it in rec. If reading fails nothing is stored.
func (e *Engine) StoreBody(ctx context.Context, rec *task.Record, body io.Reader) error {
	name := rec.ID + requestBlob
	k := e.link()
	info, err := k.blobs.Put(ctx, jetstream.ObjectMeta{Name: name}, &paced{r: pieces{body, e}, link: k, ctx: ctx})
	if err != nil {
		return fmt.Errorf("storing the body of task %s: %w", rec.ID, err)
	}
	rec.Blob, rec.Request.Size = name, int64(info.Size)
	return nil
}

// RenameBody gives the body of a task to the task of another ID, for rec is to be
// stored as that one. If a body stands there it is the same one.
func (e *Engine) RenameBody(ctx context.Context, rec *task.Record, id string) error {
	if rec.Blob == "" {
		return nil
	}
	name := id + requestBlob
	err := e.link().blobs.UpdateMeta(ctx, rec.Blob, jetstream.ObjectMeta{Name: name})
	if errors.Is(err, jetstream.ErrObjectAlreadyExists) {
		e.dropBlob(ctx, rec.Blob)
	} else if err != nil {
		return fmt.Errorf("renaming the body %s: %w", rec.Blob, err)
	}
	rec.Blob = name
	return nil
}

// DropBody removes the body of a task that was not enqueued after all.
func (e *Engine) DropBody(ctx context.Context, rec *task.Record) { e.dropBlob(ctx, rec.Blob) }

// InlineLimit is the largest body, in bytes, that is stored with its record.
func (e *Engine) InlineLimit() int { return min(maxRewritten, e.link().publishLimit-recordRoom) }

// Queue hands out tasks that wait to run, in order of arrival, each to one node
// at a time.
type Queue struct {
	name   string
	source *Source
}

// queueConsumer is what the name of a queue's consumer begins with.
const queueConsumer = "queue-"

// Queue opens the queue of that name.
func (e *Engine) Queue(ctx context.Context, name string) (*Queue, error) {
	source, err := e.source(ctx, queueConsumer+name, queuedSubject+name+".*")
	if err != nil {
		return nil, err
	}
	return &Queue{name, source}, nil
}

// Waiting returns how many tasks wait in the queue. It asks the server.
func (q *Queue) Waiting(ctx context.Context) (int, error) {
	k, err := q.source.opened(ctx)
	if err != nil {
		return 0, err
	}
	consumer, err := k.live.Consumer(ctx, q.source.name)
	if err != nil {
		return 0, fmt.Errorf("counting the queue %s: %w", q.name, err)
	}
	info := consumer.CachedInfo()
	return int(info.NumPending) + info.NumAckPending, nil
}

// queueWait is how long one request for tasks waits for the first. It is not cut
// short: a task that is on its way when its taker leaves has to come again.
const queueWait = 2 * time.Second

// Fetch yields up to n tasks as they come, and ends when it has n, or when none
// came for two seconds. Every one must be finished with Claim, Drop or Release.
func (q *Queue) Fetch(n int) iter.Seq2[*Queued, error] {
	return func(yield func(*Queued, error) bool) {
		if e := q.source.engine; e.isScarce() {
			// A task that begins needs room. What is left is for those that run.
			select {
			case <-e.closing.Done():
			case <-time.After(queueWait):
			}
			return
		}
		for d, err := range q.source.fetch(q.source.engine.closing, n, queueWait) {
			if err != nil {
				yield(nil, err)
				return
			}
			if q.source.engine.isScarce() { // the room went while we waited
				d.Release()
				continue
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
	w.hand.acknowledge(w.hand.engine.closing)
	w.hand.letGo()
}

// Claim takes the task. rec is what it becomes if the holder dies: with a
// verdict its delivery, without one a task that waits again. lost is as in
// [Engine.Claim]. It returns ErrHeld if somebody holds the task, or it is past
// waiting; the copy is dropped then, or comes again if that is not certain.
func (w *Queued) Claim(ctx context.Context, rec task.Record, lost func()) (*Lease, error) {
	e := w.hand.engine
	if w.mayBeCopy(&rec) {
		// Looked at before the claim too: if we died holding a task that has ended,
		// the lapse would be a second verdict on it.
		if err := w.waits(ctx, &rec); err != nil {
			return nil, w.refuse(err)
		}
	}
	l := &Lease{
		engine: e, rec: rec, body: w.hand.body, request: w.hand.body, lapse: queuedOn(&rec), copy: w.Sequence(), lost: lost,
	}
	if rec.Ended() {
		l.lapse, l.body = dueSubject+hostToken(rec.CallbackHost)+"."+rec.ID, nil
	}
	if err := l.claim(ctx); errors.Is(err, ErrHeld) {
		return nil, w.refuse(w.isHeld(ctx, &rec))
	} else if err != nil {
		return nil, w.refuse(err)
	}
	// Between our taking the copy and the claim, somebody may have claimed, ended
	// and let go of the task; a cancellation does all three within a millisecond.
	if err := w.waits(ctx, &rec); err != nil && !errors.Is(err, errOut) {
		l.giveUp(ctx, err)
		return nil, w.refuse(err)
	}
	defer w.hand.letGo()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := w.takeOut(ctx); err != nil {
		// The copy may come again: do not run. The claim lapses, or whoever gets
		// the copy meets it.
		l.abandon()
		return nil, fmt.Errorf("taking task %s from its queue: %w", rec.ID, err)
	}
	return l, nil
}

// giveUp undoes a claim on a task that does not wait. If that is not certain the
// claim is left to lapse: somebody who has the copy too may have dropped it because
// of the claim, and a removal that was not acknowledged may still come.
func (l *Lease) giveUp(ctx context.Context, cause error) {
	if !isPast(cause) {
		l.abandon()
		return
	}
	if err := l.Drop(ctx); err != nil {
		l.engine.log.Warn("claim not given up", zap.String("task_id", l.rec.ID), zap.Error(err))
	}
}

// takeOut takes the task out of its queue, for certain.
func (w *Queued) takeOut(ctx context.Context) error {
	if w.hand.isStale() {
		return w.hand.remove(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return w.hand.msg.AckSync(nats.Context(ctx))
}

// refuse gives the task back because of err, or drops it if it is past waiting for
// certain.
func (w *Queued) refuse(err error) error {
	if isPast(err) {
		w.Drop()
	} else {
		w.Release()
	}
	return err
}

// isPast says whether an error is that the task is past waiting, for certain.
func isPast(err error) bool { return errors.Is(err, ErrHeld) && !errors.Is(err, errBehind) }

// errBehind is returned if the task seems to be past waiting, but to a server that
// has not heard yet of what is in hand: in a cluster a consumer hands out what its
// own server has stored, and the stream's leader, who is asked about the task, may
// store it a moment later. What made the copy, a lease that lapsed or a retry that
// fell due, still stands there then.
var errBehind = fmt.Errorf("%w, or was until now", ErrHeld)

// mayBeCopy says whether the task may stand elsewhere too: an earlier holder
// died before it could take this copy out, two requests with one idempotency
// key stored it, or its lease lapsed: the server looks what has lapsed, and
// stores it a moment later, whether or not the holder has settled in between.
func (w *Queued) mayBeCopy(rec *task.Record) bool {
	return w.hand.twins || rec.Key != "" || rec.Starts > 1
}

// errOut is returned if the copy was taken out of the queue, and the task stands
// nowhere: if we hold it, somebody who had the copy too dropped it because we do.
var errOut = fmt.Errorf("%w: it was taken out of its queue", ErrHeld)

// heldUnless returns ErrHeld, or errBehind.
func heldUnless(behind bool) error {
	if behind {
		return errBehind
	}
	return ErrHeld
}

// isHeld returns ErrHeld if the lease that stands in the way of a claim is one on
// this copy, or on a later one. A lease on an earlier one, or on none, is about to
// be gone: it became this copy, or whoever took the earlier one gives it up on
// seeing this one.
func (w *Queued) isHeld(ctx context.Context, rec *task.Record) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	lease, err := lastOn(ctx, w.hand.engine.link().live, leaseSubject+rec.ID)
	if err != nil || lease == nil {
		return cmp.Or(err, errBehind)
	}
	on, err := strconv.ParseUint(lease.Header.Get(copyHeader), 10, 64)
	return heldUnless(err != nil || on < w.Sequence())
}

// waits returns ErrHeld if the task is past waiting, or waits elsewhere.
func (w *Queued) waits(ctx context.Context, rec *task.Record) error {
	k := w.hand.engine.link()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	// Who moves a task on takes it out of the queue first.
	last, err := lastOn(ctx, k.live, w.hand.msg.Subject)
	switch {
	case err != nil:
		return err
	case last == nil:
		return w.isOut(ctx, k, rec)
	case last.Sequence != w.Sequence():
		return heldUnless(last.Sequence < w.Sequence())
	case !w.mayBeCopy(rec):
		return nil
	}
	return w.standsElsewhere(ctx, k, rec)
}

// isOut returns ErrHeld or errOut if the copy was taken out of the queue, and
// errBehind if the stream's leader has not stored it yet.
func (w *Queued) isOut(ctx context.Context, k *link, rec *task.Record) error {
	info, err := k.live.Info(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("looking at the stream %s: %w", liveStream, err)
	case info.State.LastSeq < w.Sequence():
		return errBehind
	}
	// It may have stored it between the two looks.
	switch last, err := lastOn(ctx, k.live, w.hand.msg.Subject); {
	case err != nil:
		return err
	case last != nil:
		return heldUnless(last.Sequence <= w.Sequence())
	}
	return cmp.Or(w.standsElsewhere(ctx, k, rec), errOut)
}

// standsElsewhere returns ErrHeld if the task has come further than to run.
func (w *Queued) standsElsewhere(ctx context.Context, k *link, rec *task.Record) error {
	host := hostToken(rec.CallbackHost)
	for _, place := range []struct {
		stream  jetstream.Stream
		subject string
	}{
		{k.live, dueSubject + host + "." + rec.ID}, {k.live, heldSubject + host + "." + rec.ID},
		{k.live, retrySubject + rec.ID}, {k.ended, doneSubject + rec.ID}, {k.dead, deadSubject + rec.ID},
	} {
		msg, err := lastOn(ctx, place.stream, place.subject)
		if err != nil {
			return err
		}
		if msg != nil && !w.became(msg) {
			return ErrHeld
		}
	}
	return nil
}

// became says whether a message is the wait for another run that became this copy
// when it was over. The server moves it as it is.
func (w *Queued) became(msg *jetstream.RawStreamMsg) bool {
	rec, _, err := unframe(msg.Data)
	return err == nil && !rec.Ended() && rec.Starts == w.hand.Record.Starts && msg.Sequence < w.Sequence()
}

// lastOn returns what stands on a task's subject, nil if nothing does.
func lastOn(ctx context.Context, stream jetstream.Stream, subject string) (*jetstream.RawStreamMsg, error) {
	msg, err := stream.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking what stands on %s: %w", subject, err)
	}
	return msg, nil
}

// OpenBody returns the request's body, to be read while the lease is held. It
// returns ErrNotFound if the body is gone.
func (w *Queued) OpenBody(ctx context.Context) (io.ReadCloser, error) {
	body, err := w.hand.engine.openBody(ctx, w.hand.Record, w.hand.body)
	if errors.Is(err, ErrGone) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return body, err
}

// Enqueue turns a waiting client's task into one that waits in a queue: the
// lease ends and the task is stored, in one step.
func (l *Lease) Enqueue(ctx context.Context, rec *task.Record, body []byte) error {
	return l.leave(ctx, step{subject: queuedOn(rec), rec: rec, body: body, first: true})
}

// Requeue gives the task back to its queue, to run again at the given time, or
// at once if that is zero. If that cannot be stored the lease is left to lapse, and
// the task runs again then.
func (l *Lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	s := step{subject: queuedOn(rec), rec: rec, body: l.request}
	if !at.IsZero() {
		s.subject, s.target, s.at = retrySubject+rec.ID, queuedOn(rec), at
	}
	err := l.leave(ctx, s)
	if err != nil {
		l.abandon()
	}
	return err
}

// idOf returns the task's ID in a subject.
func idOf(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
