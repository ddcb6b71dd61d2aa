// Package migrate copies a store into another one, whatever their engines are.
//
// It copies every task with its bodies, and idempotency keys, run times of
// schedules and pauses. The source is only read. What the target has already is
// left as it is there, so that a copy that was interrupted is repeated from the
// beginning, at the cost of one look-up a task.
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

// Migration copies a store. No gateway may use the source meanwhile; the target
// may be in use.
type Migration struct {
	From, To engine.Engine
	// Progress is called about once a second, and once more at the end. Default:
	// nothing is reported.
	Progress func(Counts)
}

// Counts are what a migration has copied.
type Counts struct {
	// Total is how many tasks the source had at the beginning.
	Total int64
	// Copied counts the tasks that were copied, by the state in which they were.
	Copied map[task.State]int64
	// Known counts the tasks that the target had already, Failed those that could
	// not be copied.
	Known, Failed int64
	// Bytes is the size of the bodies that were copied.
	Bytes int64
	// Keys, Schedules and Pauses count those that were copied or known.
	Keys, Schedules, Pauses int64
}

// Done is how many tasks have been looked at.
func (c *Counts) Done() int64 {
	n := c.Known + c.Failed
	for _, copied := range c.Copied {
		n += copied
	}
	return n
}

const (
	// pageSize bounds the memory for records: one is at most some 100 KiB.
	pageSize = 100
	// parallel is how many copies are in flight, so that the target commits them
	// together: one at a time would wait for a sync each.
	parallel = 32
	// progressInterval is how often progress is reported.
	progressInterval = time.Second
)

// Run copies. It returns what was copied, also beside an error: the error of the
// context, one of an engine, or [ErrIncomplete] if all tasks but some could be
// copied. It can be repeated after each of them.
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
	// Where gateways use the target already, what keeps them from starting a task
	// twice or too early has to be there before the tasks.
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

// ErrIncomplete means that some tasks could not be copied, and all others were.
var ErrIncomplete = errors.New("some tasks were not copied")

// run is a migration that runs.
type run struct {
	Migration

	mu     sync.Mutex
	counts Counts
	failed error // of the first task that could not be copied
}

// count changes the counts.
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

// pauses copies which queues and hosts are paused.
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

// schedule copies the run times of one schedule. One that has run is stored as
// due at its last run time and then moved on, so that the target knows that time
// too. If this is interrupted in between, a repetition goes on there; a gateway
// that sees it due finds the idempotency key of that run.
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
	return nil // a gateway that uses the target has moved it on
}
