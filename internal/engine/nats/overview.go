package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

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
	if _, err := e.store(ctx, newMessage(subject, pauseMeta{t, paused}, 0)); err != nil {
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
	b.state.Paused = paused
	if !paused {
		b.state.Failures, b.state.FailingSince = 0, time.Time{}
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
		at, err := parsePlace(after)
		if err != nil {
			return nil, "", err
		}
		last := engine.HostStats{HostState: engine.HostState{Host: at.id}, Pending: at.n}
		skip = func(s engine.HostStats) bool { return compareHosts(s, last) <= 0 }
	}
	all := slices.DeleteFunc(e.index.hostStats(), skip)
	slices.SortFunc(all, compareHosts)
	if len(all) <= limit {
		return all, "", nil
	}
	last := all[limit-1]
	return all[:limit], place{last.Pending, last.Host}.cursor(), nil
}

func compareHosts(a, b engine.HostStats) int {
	return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.Host, b.Host))
}

func (x *index) hostStats() (all []engine.HostStats) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range x.hosts {
		if b.pending == 0 && b.state.Failures == 0 && !b.state.Paused {
			continue
		}
		s := engine.HostStats{HostState: b.state, Pending: b.pending, InFlight: b.pending - int64(len(b.entries))}
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
		if b.pending == 0 && b.running == 0 && !b.state.Paused {
			continue
		}
		s := engine.QueueStats{Queue: b.name, Queued: b.pending, Running: b.running, Paused: b.state.Paused}
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

// NextRun implements engine.Schedules.
func (e *Engine) NextRun(ctx context.Context, schedule string, first time.Time) (engine.Run, error) {
	s := scheduleMeta{schedule, engine.Run{Next: first.UTC()}}
	if err := e.lookUpOrStore(ctx, scheduleSubject+token(schedule), &s); err != nil {
		return engine.Run{}, fmt.Errorf("looking up the schedule %s: %w", schedule, err)
	}
	return s.Run, nil
}

// Advance implements engine.Schedules.
func (e *Engine) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	var s scheduleMeta
	subject := scheduleSubject + token(schedule)
	seq, err := e.lookUp(ctx, subject, &s)
	if err == nil && !s.Next.Equal(due) || errors.Is(err, engine.ErrNotFound) {
		err = engine.ErrLost
	}
	if err == nil {
		s.Run = engine.Run{Last: due.UTC(), Next: next.UTC()}
		_, err = e.store(ctx, expect(newMessage(subject, s, 0), seq))
	}
	if err != nil {
		return fmt.Errorf("advancing the schedule %s: %w", schedule, err)
	}
	return nil
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
