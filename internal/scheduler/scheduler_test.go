package scheduler_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/schedule"
	"github.com/caddy-callback/caddy-callback/internal/scheduler"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// runStore is an engine that keeps the run times of one schedule, and the wall clock
// time at which each run was stored.
type runStore struct {
	engine.Engine
	next time.Time
	keys map[string]bool
	runs []string
}

func (s *runStore) NextRun(_ context.Context, _ string, first time.Time) (engine.Run, error) {
	if s.next.IsZero() {
		s.next = first
	}
	return engine.Run{Next: s.next}, nil
}

func (s *runStore) Advance(_ context.Context, _ string, due, next time.Time) error {
	if !s.next.Equal(due) {
		return engine.ErrLost
	}
	s.next = next
	return nil
}

func (s *runStore) Enqueue(_ context.Context, rec *task.Record, _ io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	created := !s.keys[opts.Key.Hash]
	s.keys[opts.Key.Hash] = true
	if created {
		s.runs = append(s.runs, rec.CreatedAt.Format("15:04"))
	}
	return rec.ID, created, nil
}

func TestClockStepRunsScheduleOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cron   string
		after  time.Duration // time since midnight when the clock is set
		change time.Duration
		until  time.Duration // duration of the test, by a monotonic clock
		want   []string      // wall clock times at which the runs are stored
	}{
		"not set":                      {"0 * * * *", 0, 0, 2*time.Hour + time.Minute, []string{"01:00", "02:00"}},
		"forward past a run":           {"0 * * * *", 30 * time.Minute, time.Hour, 2 * time.Hour, []string{"01:30", "02:00", "03:00"}},
		"forward past many runs":       {"0 * * * *", 30 * time.Minute, 5 * time.Hour, 2 * time.Hour, []string{"05:30", "06:00", "07:00"}},
		"forward to the run":           {"30 1 * * *", 30 * time.Minute, time.Hour, 2 * time.Hour, []string{"01:30"}},
		"back before a run that was":   {"0 * * * *", 70 * time.Minute, -time.Hour, 3*time.Hour + 5*time.Minute, []string{"01:00", "02:00"}},
		"back before a run that comes": {"0 1 * * *", 59 * time.Minute, -time.Hour, 3 * time.Hour, []string{"01:00"}},
		"back after the day's run":     {"0 1 * * *", 61 * time.Minute, -time.Hour, 3 * time.Hour, []string{"01:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // starts at midnight UTC
				var offset atomic.Int64
				store := &runStore{keys: make(map[string]bool)}
				times, err := schedule.Parse(c.cron, time.UTC)
				if err != nil {
					t.Fatal(err)
				}
				now := func() time.Time { return time.Now().UTC().Add(time.Duration(offset.Load())) }
				s, accepted := scheduler.New(store, now), 0
				p := &scheduler.Plan{ID: "p", Times: times, TaskHeader: "beam-task-id", Record: task.Record{Request: &task.Request{Header: make(http.Header)}}}
				s.Start(scheduler.Config{Plans: []*scheduler.Plan{p}, Accepted: func() { accepted++ }, Log: zap.NewNop()})
				<-time.After(c.after)
				offset.Store(int64(c.change))
				<-time.After(c.until - c.after)
				synctest.Wait()
				s.Stop()
				if !slices.Equal(store.runs, c.want) {
					t.Errorf("the runs are at %q, not %q", store.runs, c.want)
				}
				if accepted != len(c.want) {
					t.Errorf("%d tasks are counted", accepted)
				}
			})
		})
	}
}
