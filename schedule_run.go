package callback

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// scheduler puts the runs of schedules into the queues of a store. The store has
// each schedule's next run time; a run is an enqueue whose key is the schedule and
// the run time, so that gateways that share the store make one task of it.
type scheduler struct {
	store *sharedStore
	owner *App // whose schedules run; nil if none do
	stop  context.CancelFunc
	done  chan struct{}
}

func newScheduler(s *sharedStore) *scheduler { return &scheduler{store: s} }

// follow makes the schedules of a generation the ones that run; nil: none. It is
// not called twice at once.
func (s *scheduler) follow(owner *App) {
	if s.owner == owner {
		return
	}
	if s.owner != nil {
		s.stop()
		<-s.done
	}
	if s.owner = owner; owner == nil {
		return
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	s.done = make(chan struct{})
	go s.run(ctx, owner, s.done)
}

const (
	// maxSleep bounds how late a run is after the system's clock was set forward.
	maxSleep = 10 * time.Second
	// runRetry is the wait after a run could not be stored.
	runRetry = time.Second
)

// run waits for the next run time of each schedule, until ctx ends.
func (s *scheduler) run(ctx context.Context, owner *App, done chan<- struct{}) {
	defer close(done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, p := range owner.plans {
		p.next = time.Time{}
	}
	for ctx.Err() == nil && len(owner.plans) > 0 {
		sleep := maxSleep
		for _, p := range owner.plans {
			if err := s.advance(ctx, owner, p); err != nil {
				sleep = min(sleep, runRetry)
				if ctx.Err() == nil {
					owner.log.Warn("schedule delayed", zap.String("schedule", p.id), zap.Error(err))
				}
				continue
			}
			sleep = min(sleep, max(time.Until(p.next), 0))
		}
		timer.Reset(sleep)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// advance makes a task of the run that is due, if one is, and sets p.next.
func (s *scheduler) advance(ctx context.Context, owner *App, p *plan) error {
	if p.next.IsZero() {
		known, err := s.store.NextRun(ctx, p.id, p.times.Next(time.Now()))
		if err != nil {
			return err
		}
		p.next = known.Next
	}
	now := time.Now()
	if p.next.After(now) {
		return nil
	}
	if err := s.enqueue(ctx, owner, p); err != nil {
		return err
	}
	next := p.times.Following(p.next, now)
	err := s.store.Advance(ctx, p.id, p.next, next)
	switch {
	case err == nil:
		p.next = next
	case errors.Is(err, engine.ErrLost): // another gateway was first; look again
		p.next, err = time.Time{}, nil
	}
	return err
}

// enqueue stores the run that is due, once.
func (s *scheduler) enqueue(ctx context.Context, owner *App, p *plan) error {
	rec, err := p.newRecord()
	if err != nil {
		return err
	}
	key := &engine.Key{
		Hash:   hashOf("schedule", p.id, p.next.UTC().Format(time.RFC3339Nano)),
		Digest: func() string { return "" },
	}
	id, created, err := s.store.Enqueue(ctx, rec, strings.NewReader(p.schedule.Body), engine.EnqueueOptions{Key: key})
	switch {
	case errors.Is(err, engine.ErrTooLarge): // and will be so at every run
		owner.log.Error("schedule skipped", zap.String("schedule", p.id), zap.Time("run_time", p.next), zap.Error(err))
		return nil
	case err != nil:
		return err
	case created:
		owner.metrics.taskAccepted(1)
	default:
		owner.log.Debug("schedule skipped: the run is there, or the one before has not started",
			zap.String("schedule", p.id), zap.Time("run_time", p.next), zap.String("task_id", id))
	}
	return nil
}
