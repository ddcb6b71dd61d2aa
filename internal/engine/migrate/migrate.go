// Package migrate copies a store into another one of any engine.
//
// It copies every task with its bodies, and the idempotency keys, run times of
// schedules and pauses. It only reads the source. It does not change what the target
// already has. You can therefore repeat an interrupted copy from the beginning, at the
// cost of one look-up a task.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Migration copies a store. No gateway may use the source during the copy. The target
// may be in use.
type Migration struct {
	From, To engine.Engine
	// Progress is called about once a second, and once more at the end. If it is nil,
	// progress is not reported.
	Progress func(Counts)
}

// Counts are what a migration has copied.
type Counts struct {
	// Total is how many tasks the source had at the start.
	Total int64
	// Copied counts the copied tasks by their state.
	Copied map[task.State]int64
	// Known counts the tasks that the target already had, Failed those that could not
	// be copied.
	Known, Failed int64
	// Bytes is the size of the bodies that were copied.
	Bytes int64
	// Keys, Schedules and Pauses count those that were copied or already known.
	Keys, Schedules, Pauses int64
}

// Done returns how many tasks have been processed.
func (c *Counts) Done() int64 {
	n := c.Known + c.Failed
	for _, copied := range c.Copied {
		n += copied
	}
	return n
}

const (
	// pageSize bounds the memory for records, each of at most about 100 KiB.
	pageSize = 100
	// parallel is how many copies are in flight. The target commits them together; one
	// at a time, each would wait for its own fsync.
	parallel = 32
	// progressInterval is how often progress is reported.
	progressInterval = time.Second
)

// Run copies the store. It returns the counts, also together with an error. The error
// is that of the context, one of an engine, or [ErrIncomplete] if some tasks could not
// be copied. You can repeat Run after any error.
func (m Migration) Run(ctx context.Context) (Counts, error) {
	r := &run{Migration: m, counts: Counts{Copied: make(map[task.State]int64)}}
	stats, err := m.From.Stats(ctx)
	if err != nil {
		return r.read(), fmt.Errorf("counting the tasks of the source: %w", err)
	}
	for _, n := range stats.Tasks {
		r.counts.Total += n
	}
	stop := r.report()
	defer stop()
	// Gateways may already use the target. Pauses, keys and schedules are copied before
	// the tasks, so that no task starts twice or too early.
	for _, step := range []func(context.Context) error{r.pauses, r.keys, r.schedules, r.tasks} {
		if err := step(ctx); err != nil {
			return r.read(), err
		}
	}
	if r.failed != nil {
		return r.read(), fmt.Errorf("%w; the first: %w", ErrIncomplete, r.failed)
	}
	return r.read(), nil
}

// ErrIncomplete means that some tasks could not be copied. All others were copied.
var ErrIncomplete = errors.New("some tasks were not copied")

// run is a migration in progress.
type run struct {
	Migration

	mu     sync.Mutex
	counts Counts
	failed error // of the first task that could not be copied
}

// count changes the counts under the lock.
func (r *run) count(f func(*Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.counts)
}

// read returns a copy of the counts.
func (r *run) read() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts
	c.Copied = make(map[task.State]int64, len(r.counts.Copied))
	for state, n := range r.counts.Copied {
		c.Copied[state] = n
	}
	return c
}

// report reports progress until stop is called.
func (r *run) report() (stop func()) {
	if r.Progress == nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(progressInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				r.Progress(r.read())
			case <-end:
				r.Progress(r.read())
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// pauses copies the pauses of queues and hosts.
func (r *run) pauses(ctx context.Context) error {
	queues, err := r.From.Queues(ctx)
	if err != nil {
		return fmt.Errorf("listing the queues of the source: %w", err)
	}
	for _, q := range queues {
		if q.Paused {
			if err := r.pause(ctx, engine.Target{Queue: q.Queue}); err != nil {
				return err
			}
		}
	}
	for cursor := engine.Cursor(""); ; {
		hosts, next, err := r.From.Hosts(ctx, cursor, pageSize)
		if err != nil {
			return fmt.Errorf("listing the hosts of the source: %w", err)
		}
		for _, h := range hosts {
			if h.Paused {
				if err := r.pause(ctx, engine.Target{Host: h.Host}); err != nil {
					return err
				}
			}
		}
		if next == "" {
			return nil
		}
		cursor = next
	}
}

func (r *run) pause(ctx context.Context, t engine.Target) error {
	if err := r.To.Pause(ctx, t, true); err != nil {
		return fmt.Errorf("pausing %s%s in the target: %w", t.Queue, t.Host, err)
	}
	r.count(func(c *Counts) { c.Pauses++ })
	return nil
}

// keys copies the idempotency keys that have not expired.
func (r *run) keys(ctx context.Context) error {
	for cursor := engine.Cursor(""); ; {
		keys, next, err := r.From.Keys(ctx, cursor, pageSize)
		if err != nil {
			return fmt.Errorf("listing the idempotency keys of the source: %w", err)
		}
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(parallel)
		for _, k := range keys {
			if !k.Expires.After(time.Now()) {
				continue
			}
			group.Go(func() error {
				if err := r.To.ImportKey(groupCtx, k); err != nil {
					return fmt.Errorf("copying the idempotency key of task %s: %w", k.TaskID, err)
				}
				r.count(func(c *Counts) { c.Keys++ })
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		cursor = next
	}
}

// schedules copies the run times of schedules.
func (r *run) schedules(ctx context.Context) error {
	runs, err := r.From.Runs(ctx)
	if err != nil {
		return fmt.Errorf("listing the schedules of the source: %w", err)
	}
	for schedule, times := range runs {
		if err := r.schedule(ctx, schedule, times); err != nil {
			return fmt.Errorf("copying the run times of schedule %s: %w", schedule, err)
		}
		r.count(func(c *Counts) { c.Schedules++ })
	}
	return nil
}

// schedule copies the run times of one schedule. A schedule that has run is stored as
// due at its last run time and then advanced, so that the target knows the last run
// too. If the migration is interrupted in between, repeating it continues from there. A
// gateway that finds the schedule due finds the idempotency key of that run, and does
// not repeat it.
func (r *run) schedule(ctx context.Context, schedule string, times engine.Run) error {
	if times.Last.IsZero() {
		_, err := r.To.NextRun(ctx, schedule, times.Next)
		return err
	}
	known, err := r.To.NextRun(ctx, schedule, times.Last)
	if err != nil || !known.Next.Equal(times.Last) {
		return err // the target has its own run times
	}
	if err := r.To.Advance(ctx, schedule, times.Last, times.Next); !errors.Is(err, engine.ErrLost) {
		return err
	}
	return nil // a gateway that uses the target has advanced it
}
