package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// carrier carries messages from a frozen store into a cluster.
type carrier struct {
	from     *link
	to       *Engine
	nameTick func(rec *task.Record, sequence uint64)
	done     *Migrated
	log      *zap.Logger

	// there are the tasks that the cluster had at the beginning, by ID, and the
	// subjects of its keys and schedules.
	there map[string]bool
	// stands is where each live task of the store stands: an engine that was killed
	// may have left a task in two places. The one that was stored last counts.
	stands map[string]standing

	async    jetstream.JetStream
	inFlight []sent
}

type standing struct {
	sequence uint64
	time     time.Time
}

// sent is a message that was sent and not acknowledged yet.
type sent struct {
	subject string
	future  jetstream.PubAckFuture
	count   func()
}

func (c *carrier) run(ctx context.Context) (err error) {
	if c.there, err = c.to.everything(ctx); err != nil {
		return err
	}
	if err := c.locate(ctx); err != nil {
		return err
	}
	// What is owed first.
	for _, stream := range []struct {
		stream jetstream.Stream
		carry  func(ctx context.Context, msg *jetstream.RawStreamMsg) error
	}{{c.from.live, c.carryLive}, {c.from.dead, c.carryOver}, {c.from.ended, c.carryOver}} {
		if err := eachMessage(ctx, stream.stream, stream.carry); err != nil {
			return err
		}
	}
	return c.settle(ctx, 0)
}

// everything returns the IDs of all tasks, and the subjects of all else that is
// stored. The live ones are looked at twice: a redelivery brings an ended task
// among them.
func (e *Engine) everything(ctx context.Context) (map[string]bool, error) {
	all, k := make(map[string]bool), e.link()
	for _, stream := range []string{liveStream, endedStream, deadStream, liveStream} {
		subjects, err := k.subjects(ctx, stream, ">")
		if err != nil {
			return nil, fmt.Errorf("listing what the cluster has: %w", err)
		}
		for subject := range subjects {
			all[nameOf(subject)] = true
		}
	}
	return all, nil
}

// nameOf returns the ID of a task's subject, and any other subject as it is.
func nameOf(subject string) string {
	for _, prefix := range []string{cronSubject, tickSubject, keySubject, doneKeySubject, probeSubject, endedProbe, deadProbe, anchorSubject, clockSubject} {
		if strings.HasPrefix(subject, prefix) {
			return subject
		}
	}
	if id := idOf(subject); !strings.HasPrefix(id, tickPrefix) {
		return id
	}
	return subject
}

// eachMessage calls f for every message of a stream, oldest first. A work queue
// that has consumers can only be read like this.
func eachMessage(ctx context.Context, stream jetstream.Stream, f func(context.Context, *jetstream.RawStreamMsg) error) error {
	for next := uint64(1); ; {
		msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading the store: %w", err)
		}
		if err := f(ctx, msg); err != nil {
			return err
		}
		next = msg.Sequence + 1
	}
}

// locate finds where the store's live tasks stand.
func (c *carrier) locate(ctx context.Context) error {
	c.stands = make(map[string]standing)
	err := eachMessage(ctx, c.from.live, func(_ context.Context, msg *jetstream.RawStreamMsg) error {
		// Later messages have higher sequences.
		c.stands[nameOf(msg.Subject)] = standing{msg.Sequence, msg.Time}
		return nil
	})
	if err != nil {
		return err
	}
	for id, at := range c.stands {
		for stream, subject := range map[jetstream.Stream]string{c.from.ended: doneSubject + id, c.from.dead: deadSubject + id} {
			msg, err := stream.GetLastMsgForSubject(ctx, subject)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			} else if err != nil {
				return fmt.Errorf("reading the store: %w", err)
			}
			if msg.Time.After(at.time) {
				c.stands[id] = standing{} // it has ended
			}
		}
	}
	return nil
}

// carryLive carries a message of the live stream.
func (c *carrier) carryLive(ctx context.Context, msg *jetstream.RawStreamMsg) error {
	switch {
	case msg.Subject == probeSubject, msg.Subject == anchorSubject, msg.Subject == clockSubject:
		return nil
	case strings.HasPrefix(msg.Subject, keySubject):
		// Its task may have ended in the cluster since.
		return c.carryKey(ctx, msg, doneKeySubject+strings.TrimPrefix(msg.Subject, keySubject))
	case strings.HasPrefix(msg.Subject, cronSubject):
		return c.carrySchedule(ctx, msg)
	case strings.HasPrefix(msg.Subject, tickSubject):
		return c.makeUp(ctx, msg)
	case c.stands[nameOf(msg.Subject)].sequence != msg.Sequence:
		return nil
	default:
		return c.carryTask(ctx, msg)
	}
}

// carryOver carries a message of a stream of what is over.
func (c *carrier) carryOver(ctx context.Context, msg *jetstream.RawStreamMsg) error {
	if msg.Subject == endedProbe || msg.Subject == deadProbe {
		return nil
	}
	if strings.HasPrefix(msg.Subject, doneKeySubject) {
		return c.carryKey(ctx, msg, keySubject+strings.TrimPrefix(msg.Subject, doneKeySubject))
	}
	if c.stands[idOf(msg.Subject)].sequence != 0 {
		return nil // it is being redelivered
	}
	return c.carryTask(ctx, msg)
}

// carryTask carries a task to where it stands, or would stand if a gateway had
// been started on the store.
func (c *carrier) carryTask(ctx context.Context, msg *jetstream.RawStreamMsg) error {
	id := idOf(msg.Subject)
	rec, body, err := unframe(msg.Data)
	if err == nil && rec.ID == "" {
		c.nameTick(rec, msg.Sequence)
		id = rec.ID
	}
	if c.there[id] {
		c.done.There++
		return nil
	}
	c.there[id] = true
	if err != nil {
		c.log.Warn("a stored message is damaged; it is kept among the dead", zap.String("task_id", id), zap.Error(err))
		damaged := &nats.Msg{Subject: deadSubject + id, Data: msg.Data}
		return c.store(ctx, damaged, func() { c.done.Damaged++ })
	}
	if err := c.carryBody(ctx, rec); err != nil {
		return err
	}
	state := stateAt(msg.Subject, rec)
	subject := msg.Subject
	switch {
	case strings.HasPrefix(subject, heldSubject):
		// A lane is only served by gateways that know of it.
		subject = dueSubject + strings.TrimPrefix(subject, heldSubject)
	case strings.HasPrefix(subject, queuedSubject):
		subject = queuedOn(rec)
	}
	s := step{subject: subject, rec: rec, body: body, target: msg.Header.Get(jetstream.ScheduleTargetHeader)}
	if s.target != "" {
		at := strings.TrimPrefix(msg.Header.Get(jetstream.ScheduleHeader), "@at ")
		if s.at, err = time.Parse(time.RFC3339Nano, at); err != nil {
			return fmt.Errorf("reading when task %s is due: %w", id, err)
		}
	}
	return c.storeStep(ctx, s, func() { c.done.Tasks[state]++ })
}

// storeStep stores a task. The cluster's messages may be smaller than the
// store's: what does not fit goes apart from its record.
func (c *carrier) storeStep(ctx context.Context, s step, count func()) error {
	data, err := frame(s.rec, s.body, recordRoom)
	if err != nil {
		return fmt.Errorf("task %s: %w", s.rec.ID, err)
	}
	if len(data) <= c.to.link().publishLimit {
		return c.store(ctx, &nats.Msg{Subject: s.subject, Header: s.header(), Data: data}, count)
	}
	if err := c.settle(ctx, 0); err != nil {
		return err
	}
	s.fence, s.apart = s.subject, true
	if _, err := c.to.publish(ctx, s); err != nil && !errors.Is(err, ErrLost) {
		return err
	}
	count()
	return nil
}

// carryBody carries a body that stands apart, before the task that names it. It
// is stored anew even if it is there: the cluster's gateways may be about to sweep
// out what a killed migration has left.
func (c *carrier) carryBody(ctx context.Context, rec *task.Record) error {
	if rec.Blob == "" {
		return nil
	}
	body, err := c.from.blobs.Get(unhurried{ctx}, rec.Blob)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		c.log.Warn("a task's body is not in the store", zap.String("task_id", rec.ID), zap.String("blob", rec.Blob))
		c.done.Bodyless++
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the body %s: %w", rec.Blob, err)
	}
	defer body.Close() //nolint:errcheck // it was read to its end, or the error is known
	if _, err := c.to.link().blobs.Put(ctx, jetstream.ObjectMeta{Name: rec.Blob}, body); err != nil {
		// The client library says that it took too long if it was told to stop.
		return fmt.Errorf("storing the body %s: %w", rec.Blob, cmp.Or(ctx.Err(), err))
	}
	c.done.Bodies++
	return nil
}

// carryKey carries an idempotency key, unless the cluster has it, here or among
// those of the other kind.
func (c *carrier) carryKey(ctx context.Context, msg *jetstream.RawStreamMsg, other string) error {
	if c.there[msg.Subject] || c.there[other] {
		return nil
	}
	c.there[msg.Subject] = true
	return c.store(ctx, &nats.Msg{Subject: msg.Subject, Data: msg.Data}, func() { c.done.Keys++ })
}

// carrySchedule carries a schedule, unless a gateway on the cluster has set it.
func (c *carrier) carrySchedule(ctx context.Context, msg *jetstream.RawStreamMsg) error {
	if c.there[msg.Subject] {
		return nil
	}
	header := make(nats.Header)
	for _, name := range []string{jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader, jetstream.ScheduleTimeZoneHeader} {
		if value := msg.Header.Get(name); value != "" {
			header[name] = []string{value}
		}
	}
	return c.store(ctx, &nats.Msg{Subject: msg.Subject, Header: header, Data: msg.Data}, func() { c.done.Schedules++ })
}

// makeUp stores a task for a tick that was due while nobody ran the store, as the
// gateway would. msg says when the schedule was to tick.
func (c *carrier) makeUp(ctx context.Context, msg *jetstream.RawStreamMsg) error {
	next, err := time.Parse(time.RFC3339Nano, string(msg.Data))
	if err != nil || next.After(time.Now()) {
		return nil //nolint:nilerr // a damaged memory of a schedule is none
	}
	name := strings.TrimPrefix(msg.Subject, tickSubject)
	queue, own, _ := strings.Cut(name, ".")
	if c.stands[queuedSubject+queue+"."+tickPrefix+own].sequence != 0 {
		return nil // it waits
	}
	schedule, err := c.from.live.GetLastMsgForSubject(ctx, cronSubject+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	tick := *schedule
	tick.Subject, tick.Sequence, tick.Header = queuedSubject+queue+"."+tickPrefix+own, msg.Sequence, nil
	return c.carryTask(ctx, &tick)
}

// maxInFlight bounds what waits for its acknowledgement, and is in memory.
const maxInFlight = 64

// store stores a message if there is none on its subject, and calls count when
// that is acknowledged. Messages arrive in the order of the calls.
func (c *carrier) store(ctx context.Context, msg *nats.Msg, count func()) error {
	if err := c.settle(ctx, maxInFlight-1); err != nil {
		return err
	}
	if msg.Header == nil {
		msg.Header = make(nats.Header)
	}
	msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{"0"}
	future, err := c.async.PublishMsgAsync(msg)
	if err != nil {
		return fmt.Errorf("storing on %s: %w", msg.Subject, err)
	}
	c.inFlight = append(c.inFlight, sent{msg.Subject, future, count})
	return nil
}

// settle waits until at most n messages are not acknowledged.
func (c *carrier) settle(ctx context.Context, n int) error {
	for len(c.inFlight) > n {
		first := c.inFlight[0]
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-first.future.Ok():
			first.count()
		case err := <-first.future.Err():
			var api *jetstream.APIError
			if !errors.As(err, &api) || api.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequence {
				return fmt.Errorf("storing on %s: %w", first.subject, err)
			}
			c.done.There++ // somebody was faster
		}
		c.inFlight = c.inFlight[1:]
	}
	return nil
}
