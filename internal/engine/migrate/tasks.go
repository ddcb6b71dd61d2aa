package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// tasks copies all tasks, newest first.
func (r *run) tasks(ctx context.Context) error {
	for cursor := engine.Cursor(""); ; {
		page, err := r.From.List(ctx, engine.Filter{}, cursor, pageSize)
		if err != nil {
			return fmt.Errorf("listing the tasks of the source: %w", err)
		}
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(parallel)
		for _, rec := range page.Tasks {
			group.Go(func() error { return r.task(groupCtx, rec) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if page.Next == "" {
			return nil
		}
		cursor = page.Next
	}
}

// task copies one task unless the target has it. An error ends the migration. If only
// this task cannot be copied, it is counted and task returns nil.
func (r *run) task(ctx context.Context, rec *task.Record) error {
	// Looking up the task costs less than opening its bodies for nothing.
	switch _, err := r.To.Get(ctx, rec.ID); {
	case err == nil:
		r.count(func(c *Counts) { c.Known++ })
		return nil
	case !errors.Is(err, engine.ErrNotFound):
		return fmt.Errorf("looking task %s up in the target: %w", rec.ID, err)
	}
	request, result := body{part: engine.RequestBody}, body{part: engine.ResultBody}
	err := r.copy(ctx, rec, &request, &result)
	switch {
	case err == nil:
		r.count(func(c *Counts) {
			c.Copied[rec.State]++
			c.Bytes += request.n + result.n
		})
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	err = fmt.Errorf("copying task %s: %w", rec.ID, err)
	unreadable := (request.err != nil || result.err != nil) && !errors.Is(err, engine.ErrUnavailable)
	if !unreadable && !errors.Is(err, engine.ErrTooLarge) {
		return err
	}
	r.count(func(c *Counts) {
		c.Failed++
		if r.failed == nil {
			r.failed = err
		}
	})
	return nil
}

// copy copies one task with its bodies.
func (r *run) copy(ctx context.Context, rec *task.Record, request, result *body) error {
	defer request.close()
	defer result.close()
	// The request's body is removed when the verdict is stored.
	if rec.Request != nil && !rec.Ended() {
		if err := request.open(ctx, r.From, rec.ID); err != nil {
			return err
		}
	}
	if rec.Result != nil {
		if err := result.open(ctx, r.From, rec.ID); err != nil {
			return err
		}
	}
	return r.To.Import(ctx, rec, request.reader(), result.reader())
}

// body is a body of a task that is copied.
type body struct {
	part engine.Part
	from io.ReadCloser // nil if there is no body, or it is no longer kept
	n    int64         // bytes read
	err  error         // of opening or reading it
}

func (b *body) open(ctx context.Context, e engine.Engine, id string) (err error) {
	b.from, err = e.Open(ctx, id, b.part)
	if errors.Is(err, engine.ErrNotFound) {
		b.from = nil
		return nil
	}
	b.err = err
	return err
}

// reader returns nil if there is no body.
func (b *body) reader() io.Reader {
	if b.from == nil {
		return nil
	}
	return b
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

func (b *body) close() {
	if b.from != nil {
		_ = b.from.Close() // it was only read
	}
}
