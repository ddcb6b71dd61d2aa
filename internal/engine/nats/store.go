package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// stepTimeout bounds the wait for a step to be stored: a client is waiting.
const stepTimeout = 5 * time.Second

// maxBatches is how many atomic batches a gateway has open at once. The server
// refuses more than 50 a stream.
const maxBatches = 12

// put stores the next step of a task, if its last one has the sequence last, and
// returns the sequence of the new one. It returns ErrLost if the task has moved on.
func (e *Engine) put(ctx context.Context, m *message, last uint64) error {
	if m.meta.Token == "" {
		m.meta.Token = newID()
	}
	msg, err := m.encode()
	if err != nil {
		return err
	}
	expect(msg, last)
	return e.putMessages(ctx, m, msg)
}

// putMessages stores messages in one atomic step; the last one is m. Each has an
// expected sequence.
func (e *Engine) putMessages(ctx context.Context, m *message, msgs ...*nats.Msg) error {
	seq, err := e.store(ctx, msgs...)
	if errors.Is(err, engine.ErrLost) {
		// What an earlier try stored without being acknowledged is ours.
		if now, getErr := e.getTask(ctx, m.meta.ID); getErr == nil && now.meta.Token == m.meta.Token {
			seq, err = now.seq, nil
		}
	}
	if err != nil {
		return err
	}
	m.seq = seq
	if m.rec != nil {
		m.rec.Version, m.rec.State = seq, m.meta.State
	}
	e.index.apply(m.meta.ID, seq, &m.meta, m)
	return nil
}

// store publishes messages as one atomic step and returns the sequence of the last.
func (e *Engine) store(ctx context.Context, msgs ...*nats.Msg) (uint64, error) {
	e.steps.RLock()
	defer e.steps.RUnlock()
	own, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if len(msgs) > 1 {
		select {
		case e.batches <- struct{}{}:
			defer func() { <-e.batches }()
		case <-own.Done():
			return 0, e.unavailable(own.Err())
		}
	}
	for {
		seq, err := e.publish(own, msgs)
		if err == nil {
			e.full.Store(nil)
			return seq, nil
		}
		if ctx.Err() != nil { // the caller's: it says nothing of the cluster
			return 0, e.unavailable(ctx.Err())
		}
		err = e.classify(err)
		if !errors.Is(err, errNotYet) {
			return 0, err
		}
		select { // a leader is being elected; nothing was stored
		case <-own.Done():
			return 0, err
		case <-time.After(electionPause):
		}
	}
}

// electionPause is how long to wait before the new leader of a stream is asked.
const electionPause = 100 * time.Millisecond

// errNotYet is returned if nothing was stored, and will be soon.
var errNotYet = fmt.Errorf("%w: no leader", engine.ErrUnavailable)

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
	reply, err := e.nc.RequestMsgWithContext(ctx, last)
	if err != nil {
		return 0, err
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fmt.Errorf("decoding an acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	return ack.Seq, nil
}

// Error codes of JetStream that the client library has no names for.
const (
	codeWrongSequence         = 10071
	codeWrongSequenceConstant = 10164
	codeInsufficientResources = 10023
	codeAccountResources      = 10002
	codeMemoryResources       = 10028
	codeStorageResources      = 10047
	codeStoreFailed           = 10077
	codeMessageTooLarge       = 10054
	codeBatchIncomplete       = 10176
	codeTooManyBatches        = 10210
)

// classify wraps an error of the server or the connection in one of package engine.
func (e *Engine) classify(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode {
		case codeWrongSequence, codeWrongSequenceConstant:
			return errWrongSequence
		case codeInsufficientResources, codeAccountResources, codeMemoryResources, codeStorageResources, codeStoreFailed:
			full := fmt.Errorf("%w: %w", engine.ErrFull, err)
			e.full.Store(&full)
			return full
		case codeMessageTooLarge:
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
	case errors.Is(err, nats.ErrNoResponders):
		e.down()
		return fmt.Errorf("%w: %w", errNotYet, err)
	}
	e.down()
	return e.unavailable(err)
}

func (e *Engine) unavailable(err error) error {
	return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
}

// getTask returns a task as it is now, which its stream's leader knows. It returns
// ErrNotFound if there is none.
func (e *Engine) getTask(ctx context.Context, id string) (*message, error) {
	m, err := e.lastStep(ctx, id)
	if err == nil && m.meta.State == removed {
		err = fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	return m, err
}

// lastStep is getTask, and returns the message that says that a task was removed, too.
func (e *Engine) lastStep(ctx context.Context, id string) (*message, error) {
	msg, seq, err := e.get(ctx, taskStream, taskSubject+token(id))
	if err != nil {
		return nil, err
	}
	return decode(msg, seq)
}

// loadTask returns a task's step with a sequence, or the latest if there is another.
func (e *Engine) loadTask(ctx context.Context, id string, seq uint64) (*message, error) {
	if m := e.index.cached(id, seq); m != nil {
		return m, nil
	}
	// Any server of the stream may answer, for a sequence is never stored anew. One
	// that is behind does not have it yet.
	request := []byte(`{"seq":` + strconv.FormatUint(seq, 10) + `}`)
	msg, found, err := e.direct(ctx, taskStream, request)
	if err != nil {
		return nil, err
	}
	if msg == nil || msg.Subject != taskSubject+token(id) {
		return e.getTask(ctx, id)
	}
	return decode(msg, found)
}

// direct asks any server that has the stream for a message; nil if it has none.
func (e *Engine) direct(ctx context.Context, stream string, request []byte) (*nats.Msg, uint64, error) {
	own, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	msg, err := e.nc.RequestWithContext(own, "$JS.API.DIRECT.GET."+stream, request)
	if ctx.Err() != nil {
		return nil, 0, e.unavailable(ctx.Err())
	}
	if err != nil {
		return nil, 0, e.classify(err)
	}
	seq, err := strconv.ParseUint(msg.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil { // it has a status instead
		return nil, 0, nil
	}
	msg.Subject = msg.Header.Get("Nats-Subject")
	return msg, seq, nil
}

// get asks the leader of a stream for the last message of a subject.
func (e *Engine) get(ctx context.Context, stream, subject string) (*nats.Msg, uint64, error) {
	return e.ask(ctx, stream, map[string]any{"last_by_subj": subject})
}

// ask asks the leader of a stream for a message. It returns ErrNotFound if there is
// none.
func (e *Engine) ask(ctx context.Context, stream string, request map[string]any) (*nats.Msg, uint64, error) {
	own, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	question, err := json.Marshal(request)
	if err != nil {
		return nil, 0, err
	}
	for {
		msg, seq, err := e.askOnce(own, stream, question)
		var api *jetstream.APIError
		if errors.As(err, &api) && api.Code == http.StatusNotFound {
			return nil, 0, engine.ErrNotFound
		}
		if err == nil {
			return msg, seq, nil
		}
		if ctx.Err() != nil {
			return nil, 0, e.unavailable(ctx.Err())
		}
		if err = e.classify(err); !errors.Is(err, errNotYet) {
			return nil, 0, err
		}
		select {
		case <-own.Done():
			return nil, 0, err
		case <-time.After(electionPause):
		}
	}
}

func (e *Engine) askOnce(ctx context.Context, stream string, question []byte) (*nats.Msg, uint64, error) {
	reply, err := e.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, question)
	if err != nil {
		return nil, 0, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Header  []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return nil, 0, fmt.Errorf("decoding a message: %w", err)
	}
	m := answer.Message
	switch {
	case answer.Error != nil:
		return nil, 0, answer.Error
	case m == nil:
		return nil, 0, errors.New("the server returned no message")
	}
	header, err := nats.DecodeHeadersMsg(m.Header)
	if err != nil && len(m.Header) > 0 {
		return nil, 0, fmt.Errorf("decoding a message's header: %w", err)
	}
	return &nats.Msg{Subject: m.Subject, Header: header, Data: m.Data}, m.Seq, nil
}
