package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Pause implements engine.Tasks.
func (e *Engine) Pause(ctx context.Context, t engine.Target, paused bool) error {
	subject := pauseSubject + "host." + token(t.Host)
	if t.Queue != "" {
		subject = pauseSubject + "queue." + token(t.Queue)
	}
	if _, err := e.storeMeta(ctx, subject, pauseMeta{t, paused}, 0); err != nil {
		return fmt.Errorf("pausing: %w", err)
	}
	e.index.pause(t, paused)
	return nil
}

func (x *index) pause(t engine.Target, paused bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.host(t.Host)
	if t.Queue != "" {
		b = x.queue(t.Queue)
	}
	b.paused = paused
	if !paused {
		b.learned.Failures, b.learned.FailingSince = 0, time.Time{}
	}
	b.isReported = b.isReported && paused
	x.report(b)
	signal(b.wake)
}

// Hosts implements engine.Tasks.
func (e *Engine) Hosts(_ context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error) {
	if err := e.closed(); err != nil {
		return nil, "", err
	}
	skip := func(engine.HostStats) bool { return false }
	if after != "" {
		pending, host, ok := strings.Cut(string(after), ".")
		n, err := strconv.ParseInt(pending, 10, 64)
		if !ok || err != nil {
			return nil, "", fmt.Errorf("%w: %q", engine.ErrCursor, after)
		}
		last := engine.HostStats{HostState: engine.HostState{Host: host}, Pending: n}
		skip = func(s engine.HostStats) bool { return compareHosts(s, last) <= 0 }
	}
	all := slices.DeleteFunc(e.index.hostStats(), skip)
	slices.SortFunc(all, compareHosts)
	if len(all) <= limit {
		return all, "", nil
	}
	last := all[limit-1]
	return all[:limit], engine.Cursor(strconv.FormatInt(last.Pending, 10) + "." + last.Host), nil
}

func compareHosts(a, b engine.HostStats) int {
	return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.Host, b.Host))
}

func (x *index) hostStats() (all []engine.HostStats) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range x.hosts {
		if b.pending == 0 && b.learned.Failures == 0 && !b.paused {
			continue
		}
		s := engine.HostStats{HostState: b.hostState(), Pending: b.pending, InFlight: b.pending - int64(len(b.entries))}
		if len(b.entries) > 0 {
			s.Next = toTime(b.entries[0].ready)
		}
		all = append(all, s)
	}
	return all
}

// Queues implements engine.Tasks.
func (e *Engine) Queues(context.Context) ([]engine.QueueStats, error) {
	if err := e.closed(); err != nil {
		return nil, err
	}
	x := e.index
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []engine.QueueStats
	for _, b := range x.queues {
		if b.pending == 0 && b.running == 0 && !b.paused {
			continue
		}
		s := engine.QueueStats{Queue: b.name, Queued: b.pending, Running: b.running, Paused: b.paused}
		var oldest *entry
		now := time.Now().UnixNano()
		for _, e := range b.entries {
			if e.ready > now {
				s.Delayed++
			} else if oldest == nil || e.ready < oldest.ready {
				oldest = e
			}
		}
		if oldest != nil {
			s.Oldest = toTime(oldest.created)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b engine.QueueStats) int { return cmp.Compare(a.Queue, b.Queue) })
	return all, nil
}

// Stats implements engine.Tasks. Used is some seconds old. Limit is zero unless an
// operator has limited a stream; in that case both values are of that stream.
func (e *Engine) Stats(context.Context) (engine.Stats, error) {
	if err := e.closed(); err != nil {
		return engine.Stats{}, err
	}
	x := e.index
	x.mu.Lock()
	defer x.mu.Unlock()
	s := engine.Stats{Tasks: make(map[task.State]int64, len(x.counts)), Used: e.used.Load(), Limit: e.limit.Load()}
	for state, n := range x.counts {
		if n > 0 {
			s.Tasks[state] = n
		}
	}
	now := time.Now().UnixNano()
	for _, b := range x.hosts {
		s.Due += int64(b.ready(now))
	}
	return s, nil
}

// schedule returns the run times of a schedule, and the sequence of their message.
func (e *Engine) schedule(ctx context.Context, schedule string) (s scheduleMeta, seq uint64, err error) {
	msg, err := e.get(ctx, e.tasks, scheduleSubject+token(schedule))
	if err != nil {
		return s, 0, err
	}
	return s, msg.Sequence, getMeta(msg.Header, &s)
}

// NextRun implements engine.Schedules.
func (e *Engine) NextRun(ctx context.Context, schedule string, first time.Time) (engine.Run, error) {
	s, _, err := e.schedule(ctx, schedule)
	if errors.Is(err, engine.ErrNotFound) {
		err = e.setSchedule(ctx, scheduleMeta{schedule, engine.Run{Next: first.UTC()}}, 0)
		if err == nil || errors.Is(err, engine.ErrLost) { // another gateway may have stored it
			s, _, err = e.schedule(ctx, schedule)
		}
	}
	if err != nil {
		return engine.Run{}, fmt.Errorf("looking up the schedule %s: %w", schedule, err)
	}
	return s.Run, nil
}

// Advance implements engine.Schedules.
func (e *Engine) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	s, seq, err := e.schedule(ctx, schedule)
	if err == nil && !s.Next.Equal(due) || errors.Is(err, engine.ErrNotFound) {
		err = engine.ErrLost
	}
	if err == nil {
		err = e.setSchedule(ctx, scheduleMeta{schedule, engine.Run{Last: due.UTC(), Next: next.UTC()}}, seq)
	}
	if err != nil {
		return fmt.Errorf("advancing the schedule %s: %w", schedule, err)
	}
	return nil
}

func (e *Engine) setSchedule(ctx context.Context, s scheduleMeta, last uint64) error {
	msg := nats.NewMsg(scheduleSubject + token(s.Schedule))
	expect(msg, last)
	if err := setMeta(msg, s); err != nil {
		return err
	}
	_, err := e.store(ctx, msg)
	return err
}

// Runs implements engine.Tasks.
func (e *Engine) Runs(ctx context.Context) (map[string]engine.Run, error) {
	runs := make(map[string]engine.Run)
	_, _, err := e.scan(ctx, 0, scheduleSubject, math.MaxInt, func(msg *jetstream.RawStreamMsg) (bool, error) {
		var s scheduleMeta
		err := getMeta(msg.Header, &s)
		runs[s.Schedule] = s.Run
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing schedules: %w", err)
	}
	return runs, nil
}

// scheduleMeta are the run times of a schedule.
type scheduleMeta struct {
	Schedule string
	engine.Run
}
