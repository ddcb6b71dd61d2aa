// Package scheduler enqueues the runs of schedules. The store has the next run time of each
// schedule. The idempotency key of a run is the schedule and the run time, so that gateways
// that share the store create one task.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/schedule"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Plan is a configured schedule, prepared for its runs.
type Plan struct {
	ID         string // identifies the schedule in the store
	Cron, Zone string // as configured, with the default zone
	Times      *schedule.Schedule
	Record     task.Record // of a run, without an ID and times
	Body       string      // of the request
	TaskHeader string      // the header of the request that carries the task's ID

	next time.Time // as stored; zero if unknown
}

// Enqueue stores a task for one run. created is false if a task has the key already.
func (p *Plan) Enqueue(ctx context.Context, e engine.Engine, now time.Time, key *engine.Key) (id string, created bool, err error) {
	uid, err := uuid.NewV7()
	if err != nil {
		return "", false, fmt.Errorf("making a task ID: %w", err)
	}
	rec := p.Record
	rec.ID, rec.CreatedAt = uid.String(), now.UTC()
	request := *rec.Request
	request.Header = request.Header.Clone()
	request.Header.Set(p.TaskHeader, rec.ID)
	rec.Request = &request
	return e.Enqueue(ctx, &rec, strings.NewReader(p.Body), engine.EnqueueOptions{Key: key})
}

// Config is what one generation of the configuration runs.
type Config struct {
	Plans    []*Plan
	Accepted func() // called for each task that was created
	Log      *zap.Logger
}

// Scheduler enqueues the runs of schedules in a store.
type Scheduler struct {
	store  engine.Engine
	now    func() time.Time
	cancel context.CancelFunc // nil while no schedules run
	loop   sync.WaitGroup
}

// New returns a Scheduler that runs nothing yet. now is the wall clock, which may be set.
func New(e engine.Engine, now func() time.Time) *Scheduler { return &Scheduler{store: e, now: now} }

// Start runs schedules. It is called before the first Stop, or after one.
func (s *Scheduler) Start(c Config) {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.loop.Go(func() { s.run(ctx, c) })
}

// Stop returns when no more runs are enqueued. It may be called twice, and before Start.
func (s *Scheduler) Stop() {
	if s.cancel != nil {
		s.cancel()
		s.loop.Wait()
		s.cancel = nil
	}
}

const (
	// maxSleep bounds the delay of a run after the wall clock was set forward.
	maxSleep = 10 * time.Second
	// runRetry is the wait after a run could not be stored.
	runRetry = time.Second
)

// run waits for the next run time of each schedule, until ctx ends.
func (s *Scheduler) run(ctx context.Context, c Config) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, p := range c.Plans {
		p.next = time.Time{}
	}
	for ctx.Err() == nil && len(c.Plans) > 0 {
		sleep := maxSleep
		for _, p := range c.Plans {
			if err := s.advance(ctx, c, p); err != nil {
				sleep = min(sleep, runRetry)
				if ctx.Err() == nil {
					c.Log.Warn("schedule delayed", zap.String("schedule", p.ID), zap.Error(err))
				}
				continue
			}
			sleep = min(sleep, max(p.next.Sub(s.now()), 0))
		}
		timer.Reset(sleep)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// advance enqueues the run that is due, if any, and sets p.next.
func (s *Scheduler) advance(ctx context.Context, c Config, p *Plan) error {
	if p.next.IsZero() {
		known, err := s.store.NextRun(ctx, p.ID, p.Times.Next(s.now()))
		if err != nil {
			return err
		}
		p.next = known.Next
	}
	now := s.now()
	if p.next.After(now) {
		return nil
	}
	if err := s.enqueue(ctx, c, p); err != nil {
		return err
	}
	next := p.Times.Following(p.next, now)
	err := s.store.Advance(ctx, p.ID, p.next, next)
	switch {
	case err == nil:
		p.next = next
	case errors.Is(err, engine.ErrLost): // another gateway was first
		p.next, err = time.Time{}, nil
	}
	return err
}

// enqueue enqueues the run that is due, once.
func (s *Scheduler) enqueue(ctx context.Context, c Config, p *Plan) error {
	id, created, err := p.Enqueue(ctx, s.store, s.now(), &engine.Key{
		Hash:   engine.HashOf("schedule", p.ID, p.next.UTC().Format(time.RFC3339Nano)),
		Digest: func() string { return "" },
	})
	switch {
	case errors.Is(err, engine.ErrTooLarge): // every run will fail
		c.Log.Error("schedule skipped", zap.String("schedule", p.ID), zap.Time("run_time", p.next), zap.Error(err))
		return nil
	case err != nil:
		return err
	case created:
		c.Accepted()
	default:
		c.Log.Debug("schedule skipped: already enqueued, or the previous run has not started",
			zap.String("schedule", p.ID), zap.Time("run_time", p.next), zap.String("task_id", id))
	}
	return nil
}
