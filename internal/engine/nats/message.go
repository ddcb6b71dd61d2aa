package nats

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// The headers of a message. The server interprets those that begin with Nats-.
const (
	metaHeader     = "Callback-Meta" // JSON: the part that gateways keep in memory
	expectedHeader = "Nats-Expected-Last-Subject-Sequence"
	ttlHeader      = "Nats-TTL"
)

// removed is the state of a deleted task. Its message has no record. Other gateways read
// it to remove the task from their index. It expires.
const removed task.State = "removed"

// removedTTL is how long a removal stays in the stream. A gateway that was disconnected
// for longer removes the task from its index when it does not find the message.
const removedTTL = 24 * time.Hour

// meta is the part of a task that gateways keep in memory. Times are Unix nanoseconds.
type meta struct {
	ID      string       `json:"id,omitempty"` // empty if it equals the subject's token
	State   task.State   `json:"s"`
	Status  task.Verdict `json:"v,omitempty"`
	Queue   string       `json:"q,omitempty"`
	Host    string       `json:"h,omitempty"` // of the callback
	Trusted bool         `json:"t,omitempty"`
	Created int64        `json:"c,omitempty"`
	// Finished is when a delivering task got its verdict or was redelivered. For a
	// finished task it is when it became done or dead.
	Finished int64 `json:"f,omitempty"`
	// Ready is when a queued task may start and when a delivery is due.
	Ready int64 `json:"r,omitempty"`
	// Order sorts tasks that are ready at the same time: it is the sequence under which
	// the task was queued. Zero means the message's own sequence.
	Order uint64 `json:"o,omitempty"`
	// Holder is the gateway that runs the task or attempts the delivery.
	Holder string `json:"g,omitempty"`
	// MaxStarts is how often a running job may be started.
	MaxStarts int `json:"m,omitempty"`
	// Token identifies the step that stored the message.
	Token string `json:"k,omitempty"`
	// Body is the name of the body in the body stream, empty if the body is inline.
	// Size is the length of the body in both cases.
	Body string `json:"b,omitempty"`
	Size int64  `json:"z,omitempty"`
}

// message is a stored task: metadata in a header, then the record as a line of JSON,
// then the body if it is small.
type message struct {
	seq  uint64
	meta meta
	rec  *task.Record
	body []byte
}

// removal returns the step that removes a task.
func removal(id string) *message { return &message{meta: meta{ID: id, State: removed}} }

// encode returns the message for a task's subject, after it has completed the metadata.
// The server refuses the message unless the task's last step has the sequence last.
func (m *message) encode(last uint64) (*nats.Msg, error) {
	if m.meta.Token == "" {
		m.meta.Token = newID()
	}
	ttl, data := removedTTL, []byte(nil)
	if m.rec != nil {
		m.rec.State, m.meta.Status, m.meta.Created = m.meta.State, m.rec.Status, fromTime(m.rec.CreatedAt)
		m.meta.Host, m.meta.Trusted = "", false
		if m.rec.Callback != nil {
			m.meta.Host, m.meta.Trusted = m.rec.CallbackHost, m.rec.Callback.Trusted
		}
		line, err := task.Encode(m.rec)
		if errors.Is(err, task.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
		}
		if err != nil {
			return nil, fmt.Errorf("encoding the task %s: %w", m.meta.ID, err)
		}
		ttl, data = 0, append(append(line, '\n'), m.body...)
	}
	subject, meta := taskSubject+token(m.meta.ID), m.meta
	if subject == taskSubject+meta.ID {
		meta.ID = ""
	}
	msg := expect(newMessage(subject, meta, ttl), last)
	msg.Data = data
	return msg, nil
}

// decode reads a stored message. The message of a removed task has no record.
func decode(msg *jetstream.RawStreamMsg) (*message, error) {
	m := &message{seq: msg.Sequence, meta: meta{ID: strings.TrimPrefix(msg.Subject, taskSubject)}}
	if err := getMeta(msg.Header, &m.meta); err != nil {
		return nil, err
	}
	if m.meta.State == removed {
		return m, nil
	}
	line, body, _ := bytes.Cut(msg.Data, []byte{'\n'})
	var err error
	if m.rec, err = task.Decode(line); err != nil {
		return nil, fmt.Errorf("decoding the task %s: %w", m.meta.ID, err)
	}
	m.rec.State, m.rec.Version, m.body = m.meta.State, m.seq, body
	return m, nil
}

// next returns the message of the task's next step: a copy that may be changed, without
// a holder. If the task becomes done or dead, the copy has no due time, and it finished
// now.
func (m *message) next(rec *task.Record, state task.State) *message {
	n := &message{meta: m.meta, rec: rec, body: m.body}
	n.meta.State, n.meta.Token = state, ""
	n.meta.Holder, n.meta.MaxStarts = "", 0
	if state == task.Done || state == task.Dead {
		rec.NextAttemptAt = time.Time{}
		n.meta.Ready, n.meta.Finished = 0, time.Now().UnixNano()
	}
	return n
}

// dropped reports whether the result is no longer kept.
func (m *message) dropped() bool {
	return m.rec.Result != nil && m.rec.Result.Kept > 0 && m.meta.Size == 0
}

// clearBody removes the body from the message.
func (m *message) clearBody() { m.meta.Body, m.meta.Size, m.body = "", 0, nil }

// newMessage returns a message that has only metadata. If ttl is positive, the server
// removes the message after that time.
func newMessage(subject string, meta any, ttl time.Duration) *nats.Msg {
	text, _ := json.Marshal(meta) // fails only for a time after the year 9999
	msg := nats.NewMsg(subject)
	msg.Header.Set(metaHeader, string(text))
	if ttl > 0 {
		msg.Header.Set(ttlHeader, ttl.String())
	}
	return msg
}

// getMeta reads the metadata of a message.
func getMeta(header nats.Header, meta any) error {
	if err := json.Unmarshal([]byte(header.Get(metaHeader)), meta); err != nil {
		return fmt.Errorf("decoding the header of a message: %w", err)
	}
	return nil
}

// lookUp reads the metadata of the last message of a subject, and returns the sequence.
// The message may be outdated, so what depends on it is stored with an expected sequence.
func (e *Engine) lookUp(ctx context.Context, subject string, meta any) (seq uint64, err error) {
	msg, err := e.get(ctx, e.tasks, subject)
	if err != nil {
		return 0, err
	}
	return msg.Sequence, getMeta(msg.Header, meta)
}

// lookUpOrStore is like lookUp, but stores meta if the subject has no message.
func (e *Engine) lookUpOrStore(ctx context.Context, subject string, meta any) error {
	_, err := e.lookUp(ctx, subject, meta)
	if errors.Is(err, engine.ErrNotFound) {
		_, err = e.store(ctx, expect(newMessage(subject, meta, 0), 0))
		if errors.Is(err, engine.ErrLost) { // another gateway stored it
			_, err = e.lookUp(ctx, subject, meta)
		}
	}
	return err
}

// expect makes the server refuse a message unless the last one of its subject has the
// sequence last. Zero means that there is none.
func expect(msg *nats.Msg, last uint64) *nats.Msg {
	msg.Header.Set(expectedHeader, strconv.FormatUint(last, 10))
	return msg
}

// cloneRecord returns a copy whose attempts can be added to without changing rec.
func cloneRecord(rec *task.Record) *task.Record {
	c := *rec
	c.Attempts = append([]task.Attempt(nil), rec.Attempts...)
	return &c
}

func fromTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func toTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
