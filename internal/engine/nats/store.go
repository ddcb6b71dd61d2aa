package nats

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// stepTimeout limits the wait for a step to be stored, because a client is waiting.
const stepTimeout = 5 * time.Second

// put stores the next step of a task, if its last one has the sequence last. It returns
// ErrLost if the task has a later step. The messages in with, each with an expected
// sequence, are stored in the same atomic step; if one of them was refused, the error is
// errConflict.
func (e *Engine) put(ctx context.Context, m *message, last uint64, with ...*nats.Msg) error {
	msg, err := m.encode(last)
	if err != nil {
		return err
	}
	var seq uint64
	err = e.untilCurrent(ctx, func(ctx context.Context) (err error) {
		seq, err = e.store(ctx, append(with, msg)...)
		if errors.Is(err, engine.ErrLost) {
			seq, err = e.refused(ctx, m, last, len(with) > 0)
		}
		return err
	})
	if err != nil {
		return err
	}
	m.seq = seq
	if m.rec != nil {
		m.rec.Version = seq
	}
	e.index.apply(m.meta.ID, seq, &m.meta, false)
	return nil
}

// refused says why a server refused a step: the task has a later one, or this one, stored
// by an earlier try, whose sequence it returns; another message of the same atomic step
// was refused; or the server did not have the step before it yet.
func (e *Engine) refused(ctx context.Context, m *message, last uint64, isAtomic bool) (seq uint64, err error) {
	now, err := e.lastStep(ctx, m.meta.ID)
	switch {
	case err == nil && now.meta.Token == m.meta.Token:
		m.meta, m.body = now.meta, now.body
		return now.seq, nil
	case err == nil && now.seq > last:
		return 0, errLaterStep
	case err != nil && !errors.Is(err, engine.ErrNotFound):
		return 0, e.unavailable(err) // it is not known whether the step is stored
	case last > 0 && err != nil: // the task was removed
		return 0, errLaterStep
	case isAtomic:
		return 0, errConflict
	default:
		return 0, errNotYet
	}
}

// errConflict means that another task with the idempotency key, or another run of the
// schedule, was stored first.
var errConflict = fmt.Errorf("%w: a task with the same key or schedule was stored first", engine.ErrUnavailable)

// store publishes messages as one atomic step and returns the sequence of the last.
func (e *Engine) store(ctx context.Context, msgs ...*nats.Msg) (seq uint64, err error) {
	e.steps.RLock()
	defer e.steps.RUnlock()
	err = e.retry(ctx, func(ctx context.Context) error {
		seq, err = e.publish(ctx, msgs)
		return err
	})
	if err == nil {
		e.full.Store(nil)
	}
	return seq, err
}

// untilCurrent repeats a call while it returns errNotYet, for about stepTimeout. All calls
// together may take twice as long.
func (e *Engine) untilCurrent(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*stepTimeout)
	defer cancel()
	for began := time.Now(); ; {
		err := call(ctx)
		if !errors.Is(err, errNotYet) || time.Since(began) > stepTimeout {
			return err
		}
		e.sleep(ctx, nil, electionPause)
	}
}

// retry calls the cluster, and repeats the call while a leader is being elected.
func (e *Engine) retry(ctx context.Context, ask func(context.Context) error) error {
	own, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	for {
		err := ask(own)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil { // the caller gave up; the cluster may be available
			return e.unavailable(ctx.Err())
		}
		if err = e.classify(err); !errors.Is(err, errNotYet) {
			return err
		}
		select {
		case <-own.Done():
			return err
		case <-time.After(electionPause):
		}
	}
}

// electionPause is the wait between two calls of retry.
const electionPause = 100 * time.Millisecond

// errNotYet means that nothing was stored, but a retry will soon succeed.
var errNotYet = fmt.Errorf("%w: no current leader", engine.ErrUnavailable)

func (e *Engine) publish(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	last := msgs[len(msgs)-1]
	if len(msgs) > 1 {
		batch := newID()
		for i, msg := range msgs {
			msg.Header.Set("Nats-Batch-Id", batch)
			msg.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		}
		last.Header.Set("Nats-Batch-Commit", "1")
		for _, msg := range msgs[:len(msgs)-1] {
			if err := e.nc.PublishMsg(msg); err != nil {
				return 0, err
			}
		}
	}
	ack, err := e.js.PublishMsg(ctx, last, jetstream.WithRetryAttempts(0))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// Error codes of JetStream that the client library does not define.
const (
	codeInsufficientResources = 10023
	codeAccountResources      = 10002
	codeMemoryResources       = 10028
	codeStorageResources      = 10047
	codeStoreFailed           = 10077
	codeBatchIncomplete       = 10176
	codeTooManyBatches        = 10210
)

var errLaterStep = fmt.Errorf("%w: the task has a later step", engine.ErrLost)

// classify wraps an error of the server or the connection in one of package engine.
func (e *Engine) classify(err error) error {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return engine.ErrNotFound
	}
	var api *jetstream.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
			return errLaterStep
		case codeInsufficientResources, codeAccountResources, codeMemoryResources, codeStorageResources, codeStoreFailed:
			full := fmt.Errorf("%w: %w", engine.ErrFull, err)
			e.full.Store(&full)
			return full
		case jetstream.JSErrCodeStreamMessageExceedsMaximum:
			return fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
		case codeBatchIncomplete, codeTooManyBatches:
			return fmt.Errorf("%w: %w", errNotYet, err)
		}
		if api.Code == http.StatusServiceUnavailable {
			return fmt.Errorf("%w: %w", errNotYet, err)
		}
	}
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		e.down()
		return fmt.Errorf("%w: %w", errNotYet, err)
	}
	e.down()
	return e.unavailable(err)
}

func (e *Engine) unavailable(err error) error {
	return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
}

// getTask returns the last step of a task, or ErrNotFound.
func (e *Engine) getTask(ctx context.Context, id string) (*message, error) {
	m, err := e.lastStep(ctx, id)
	if err == nil && m.meta.State == removed {
		err = fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	return m, err
}

// lastStep is like getTask, but also returns the removal of a task. It returns no step
// that is older than the one in the index: around an election, a server that has not
// stored the latest steps may answer.
func (e *Engine) lastStep(ctx context.Context, id string) (*message, error) {
	known, exists := e.index.lastStep(id)
	var msg *jetstream.RawStreamMsg
	err := e.untilCurrent(ctx, func(ctx context.Context) (err error) {
		msg, err = e.get(ctx, e.tasks, taskSubject+token(id))
		switch {
		case err == nil && msg.Sequence < known:
			return errNotYet
		case exists && errors.Is(err, engine.ErrNotFound):
			return e.confirmMissing(ctx, id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return decode(msg)
}

// confirmMissing returns ErrNotFound if a task of the index is no longer in the stream,
// because somebody purged it. It stores the removal of the task, which a server refuses
// if there is a step.
func (e *Engine) confirmMissing(ctx context.Context, id string) error {
	m := removal(id)
	msg, err := m.encode(0)
	if err != nil {
		return err
	}
	seq, err := e.store(ctx, msg)
	switch {
	case errors.Is(err, engine.ErrLost):
		return errNotYet
	case err != nil:
		return err
	}
	e.index.apply(id, seq, &m.meta, false)
	return engine.ErrNotFound
}

// getStep returns the step of a task that the index has. It returns ErrLost if the
// task has a later one.
func (e *Engine) getStep(ctx context.Context, c candidate) (*message, error) {
	m, err := e.getTask(ctx, c.id)
	if err == nil && m.seq != c.seq {
		err = errLaterStep
	}
	return m, err
}

// get returns the last message of a subject from the leader of a stream, or
// ErrNotFound. Around an election, the answer may be outdated.
func (e *Engine) get(ctx context.Context, stream jetstream.Stream, subject string) (msg *jetstream.RawStreamMsg, err error) {
	err = e.retry(ctx, func(ctx context.Context) error {
		msg, err = stream.GetLastMsgForSubject(ctx, subject)
		return err
	})
	return msg, err
}
