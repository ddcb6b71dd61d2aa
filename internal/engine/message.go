package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A message is the task's record as one line of JSON, then the body.

func frame(rec *task.Record, body []byte, room int) ([]byte, error) {
	data, err := encodeRecord(make([]byte, 0, usualRecord+len(body)), rec)
	if err == nil && len(data) > room {
		data, err = task.Encode(rec) // leaves out what is not needed
	}
	if err != nil {
		return nil, fmt.Errorf("encoding the record of task %s: %w", rec.ID, err)
	}
	if len(data) > room {
		return nil, ErrTooLarge
	}
	data = append(data, '\n')
	return append(data, body...), nil
}

// usualRecord is the room that the record of a task needs after its first
// attempt. More is made as it is needed.
const usualRecord = 1 << 10

func unframe(data []byte) (*task.Record, []byte, error) {
	line, body, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return nil, nil, errors.New("a stored message has no record")
	}
	rec, err := decodeRecord(line)
	if err != nil {
		return nil, nil, fmt.Errorf("decoding a stored record: %w", err)
	}
	return rec, body, nil
}

// A step is one publish. Zero fields ask for nothing. None carries a Nats-Msg-Id:
// the server looks at fences first, so a repeated step is refused as lost, and
// an unfenced one only writes the same message again.
type step struct {
	subject string
	rec     *task.Record
	body    []byte
	// at and target make the message a schedule: at that time the server moves
	// it to the target. It is told to the server by its own clock.
	at     time.Time
	target string
	// fence is the subject whose last sequence must be seq, or nothing is
	// published.
	fence string
	seq   uint64
	// first says that the record is stored for the first time.
	first bool
	// apart says that the body goes to the object store, whatever its size.
	apart bool
	// purge removes the schedule on the fence's subject in the same step.
	purge bool
	// copy is noted in the message: see [Lease].
	copy uint64
}

// publish carries out s and returns the sequence of the new message. It
// returns ErrLost if the fence does not hold.
func (e *Engine) publish(ctx context.Context, s step) (uint64, error) {
	s, err := e.putApart(ctx, s)
	if err != nil {
		return 0, err
	}
	room := recordRoom
	if s.first {
		room /= 2 // what comes to it later must fit as well
	}
	data, err := frame(s.rec, s.body, room)
	if err != nil {
		return 0, err
	}
	if len(data) > e.link().publishLimit && len(s.body) > 0 {
		s.apart = true // the record has outgrown its room
		return e.publish(ctx, s)
	}
	s.at = e.link().theirs(s.at)
	return e.send(ctx, &nats.Msg{Subject: s.subject, Header: s.header(), Data: data})
}

// maxRewritten is the largest body that is written anew with each step of its
// task, as a message is. A lease is renewed every ten seconds and a callback tried
// a dozen times: a larger body stands in the object store before that begins, or
// it would fill the disk and its share of the disk's time by itself.
const maxRewritten = 64 << 10

// recordRoom is the room kept in a message for the record. Attempts with
// their answers are the largest part of it.
const recordRoom = 256 << 10

// ErrTooLarge is returned for a record that does not fit in a message: a request
// with more than 100 KiB of headers.
var ErrTooLarge = task.ErrTooLarge

func (s *step) header() nats.Header {
	h := make(nats.Header, 6)
	if s.target != "" {
		maps.Copy(h, scheduled(s.at, s.target))
	}
	if s.fence != "" {
		h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(s.seq, 10)}
		if s.fence != s.subject {
			h[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{s.fence}
		}
	}
	if s.purge {
		h[schedulerHeader] = []string{s.fence}
		h[scheduleNextHeader] = []string{"purge"}
	}
	if s.copy > 0 {
		h[copyHeader] = []string{strconv.FormatUint(s.copy, 10)}
	}
	return h
}

// scheduled is the header of a message that the server moves to target at a time of
// its clock.
func scheduled(at time.Time, target string) nats.Header {
	return nats.Header{
		jetstream.ScheduleHeader:       {"@at " + at.UTC().Format(time.RFC3339Nano)},
		jetstream.ScheduleTargetHeader: {target},
	}
}

// The client library has no names for these; the server's are in its
// stream.go.
const (
	schedulerHeader    = "Nats-Scheduler"
	scheduleNextHeader = "Nats-Schedule-Next"
)

// copyHeader is ours, on leases.
const copyHeader = "Callback-Copy"

// send publishes msg and waits until it is stored. It counts, unlike what keeps the
// engine going.
func (e *Engine) send(ctx context.Context, msg *nats.Msg) (uint64, error) {
	seq, err := e.store(ctx, msg)
	if err == nil {
		e.stored.Add(1)
	}
	return seq, err
}

// store publishes msg and waits until it is stored.
func (e *Engine) store(ctx context.Context, msg *nats.Msg) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	e.disk.begin(len(msg.Data))
	defer e.disk.end(len(msg.Data))
	ack, err := e.link().js.PublishMsg(ctx, msg)
	for isOnItsWay(err) {
		select {
		case <-ctx.Done():
			return 0, e.notStored(msg.Subject, err)
		case <-time.After(onItsWayPause):
		}
		ack, err = e.link().js.PublishMsg(ctx, msg)
	}
	if err == nil {
		e.health.ok(storageOf(msg.Subject))
		return ack.Sequence, nil
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return 0, ErrLost
	}
	return 0, e.notStored(msg.Subject, err)
}

// isOnItsWay says whether a cluster refused a publish because an earlier one on the
// fence's subject is still on its way to the other servers. What the fence says is
// known when it has arrived, or never will.
func isOnItsWay(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}

// onItsWayPause is a few times what a message takes to the other servers.
const onItsWayPause = 20 * time.Millisecond

// notStored notes that a publish failed.
func (e *Engine) notStored(subject string, err error) error {
	// A caller that gave up, or asks too much, says nothing about the engine.
	if !errors.Is(err, context.Canceled) && !errors.Is(err, nats.ErrMaxPayload) {
		e.health.failed(storageOf(subject), err)
	}
	return fmt.Errorf("storing on %s: %w", subject, err)
}

// bury keeps a message that cannot be read where an operator finds it.
func (e *Engine) bury(ctx context.Context, msg *nats.Msg, cause error) {
	id := idOf(msg.Subject)
	e.log.Error("a stored message is damaged; it is kept among the dead", zap.String("task_id", id), zap.Error(cause))
	if _, err := e.send(ctx, &nats.Msg{Subject: deadSubject + id, Data: msg.Data}); err != nil {
		e.log.Error("damaged message not kept", zap.String("task_id", id), zap.Error(err))
		return
	}
	if err := msg.Ack(); err != nil {
		e.log.Warn("damaged message not taken out of its stream", zap.String("task_id", id), zap.Error(err))
	}
}
