package engine

import (
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

// Schedule is a clock that puts tasks into a queue. One tick makes one task,
// however many nodes have the schedule; the server keeps the clock.
type Schedule struct {
	Queue string
	// Name is the schedule's own: a changed schedule has another.
	Name string
	// Cron has six fields, seconds first, or is a descriptor such as @daily or
	// @every 10m.
	Cron string
	// Zone is a name such as Europe/Paris; empty is UTC.
	Zone   string
	Record task.Record // without an ID: the claim of a tick gives it one
	Body   []byte
}

// target is where a tick stands until it is claimed.
func (s *Schedule) target() string { return queuedSubject + s.Queue + "." + tickPrefix + s.Name }

const tickPrefix = "cron-"

func (s *Schedule) subject() string { return cronSubject + s.Queue + "." + s.Name }

// SetSchedules makes the given schedules the ones there are: others are taken
// out, unchanged ones keep their place. Ticks that were missed while no server
// ran are made up for by one.
func (e *Engine) SetSchedules(ctx context.Context, schedules []Schedule) error {
	e.mu.Lock()
	e.schedules = schedules
	e.mu.Unlock()
	info, err := e.link().live.Info(ctx, jetstream.WithSubjectFilter(cronSubject+">"))
	if err != nil {
		return fmt.Errorf("listing schedules: %w", err)
	}
	old := info.State.Subjects
	for i := range schedules {
		s := &schedules[i]
		if _, ok := old[s.subject()]; ok {
			delete(old, s.subject())
			if err := e.watchTick(ctx, s); err != nil {
				return err
			}
			continue
		}
		if err := e.addSchedule(ctx, s); err != nil {
			return err
		}
	}
	for subject := range old {
		if err := e.link().live.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("taking out the schedule %s: %w", strings.TrimPrefix(subject, cronSubject), err)
		}
		next := tickSubject + strings.TrimPrefix(subject, cronSubject)
		if err := e.link().live.Purge(ctx, jetstream.WithPurgeSubject(next)); err != nil {
			return fmt.Errorf("forgetting the next tick of a schedule: %w", err)
		}
	}
	return nil
}

func (e *Engine) addSchedule(ctx context.Context, s *Schedule) error {
	data, err := frame(&s.Record, s.Body, recordRoom/2)
	if err != nil {
		return err
	}
	header := nats.Header{
		jetstream.ScheduleHeader:       {s.Cron},
		jetstream.ScheduleTargetHeader: {s.target()},
	}
	if s.Zone != "" {
		header[jetstream.ScheduleTimeZoneHeader] = []string{s.Zone}
	}
	if _, err := e.send(ctx, &nats.Msg{Subject: s.subject(), Header: header, Data: data}); err != nil {
		return fmt.Errorf("storing a schedule of the queue %s: %w", s.Queue, err)
	}
	return nil
}

// RememberTick notes when the schedule that made w ticks next. The server knows,
// but it forgets if it is killed, and then leaves out what it missed.
func (w *Queued) RememberTick(ctx context.Context) error {
	next := w.hand.msg.Header.Get(scheduleNextHeader)
	name := strings.TrimPrefix(idOf(w.hand.msg.Subject), tickPrefix)
	if next == "" {
		return nil
	}
	_, err := w.hand.engine.send(ctx, &nats.Msg{
		Subject: tickSubject + w.hand.Record.Queue + "." + name, Data: []byte(next),
	})
	return err
}

// makeUpAfter is how long after it was opened the server has to make up for a
// tick itself.
const makeUpAfter = 2 * time.Second

// watchTick makes up for a tick that was due while the embedded server was not
// running, unless the server does.
func (e *Engine) watchTick(ctx context.Context, s *Schedule) error {
	next, err := e.nextTick(ctx, s)
	if err != nil || e.remote() || next.IsZero() || !next.Before(e.link().opened) {
		return err
	}
	missed := *s
	e.done.Go(func() {
		select {
		case <-e.closing.Done():
			return
		case <-time.After(makeUpAfter - time.Since(e.link().opened)):
		}
		if err := e.makeUp(e.closing, &missed, next); err != nil {
			e.log.Error("missed tick not made up for", zap.String("queue", missed.Queue), zap.Error(err))
		}
	})
	return nil
}

// makeUp puts a tick into the queue if none has come since the one that was due
// at next.
func (e *Engine) makeUp(ctx context.Context, s *Schedule, next time.Time) error {
	if now, err := e.nextTick(ctx, s); err != nil || !now.Equal(next) {
		return err
	}
	msg, err := e.link().live.GetLastMsgForSubject(ctx, s.subject())
	if err != nil {
		return fmt.Errorf("looking up a schedule: %w", err)
	}
	// Refused if a tick waits there already.
	_, err = e.send(ctx, &nats.Msg{
		Subject: s.target(), Data: msg.Data,
		Header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"0"}},
	})
	if errors.Is(err, ErrLost) {
		return nil
	}
	return err
}

// nextTick returns when a schedule was to tick next, as far as it is remembered.
func (e *Engine) nextTick(ctx context.Context, s *Schedule) (time.Time, error) {
	msg, err := e.link().live.GetLastMsgForSubject(ctx, tickSubject+s.Queue+"."+s.Name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil
	} else if err != nil {
		return time.Time{}, fmt.Errorf("looking up the next tick of a schedule: %w", err)
	}
	return time.Parse(time.RFC3339Nano, string(msg.Data))
}
