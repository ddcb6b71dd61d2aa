package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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

func (s *Schedule) subject() string { return cronSubject + s.Queue + "." + s.Name }

// SetSchedules makes the given schedules the ones there are: others are taken
// out, unchanged ones keep their place. A tick that was missed while no server
// ran comes once when one does.
func (e *Engine) SetSchedules(ctx context.Context, schedules []Schedule) error {
	info, err := e.live.Info(ctx, jetstream.WithSubjectFilter(cronSubject+">"))
	if err != nil {
		return fmt.Errorf("listing schedules: %w", err)
	}
	old := info.State.Subjects
	for i := range schedules {
		s := &schedules[i]
		if _, ok := old[s.subject()]; ok {
			delete(old, s.subject())
			continue
		}
		if err := e.addSchedule(ctx, s); err != nil {
			return err
		}
	}
	for subject := range old {
		if err := e.live.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("taking out the schedule %s: %w", strings.TrimPrefix(subject, cronSubject), err)
		}
	}
	return nil
}

func (e *Engine) addSchedule(ctx context.Context, s *Schedule) error {
	data, err := frame(&s.Record, s.Body)
	if err != nil {
		return err
	}
	header := nats.Header{
		jetstream.ScheduleHeader:       {s.Cron},
		jetstream.ScheduleTargetHeader: {queuedSubject + s.Queue + ".cron-" + s.Name},
	}
	if s.Zone != "" {
		header[jetstream.ScheduleTimeZoneHeader] = []string{s.Zone}
	}
	if _, err := e.send(ctx, &nats.Msg{Subject: s.subject(), Header: header, Data: data}); err != nil {
		return fmt.Errorf("storing a schedule of the queue %s: %w", s.Queue, err)
	}
	return nil
}
