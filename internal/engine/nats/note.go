package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Notes tell other nodes at once what they would find out later: that a task
// they run was canceled, that one they wait for has ended. They are not stored.

func (e *Engine) announce(note, id string) {
	if err := e.link().nc.Publish(note+id, nil); err != nil {
		e.log.Warn("note not sent", zap.String("task_id", id), zap.Error(err))
	}
}

// heedNotes makes the holder of a canceled task look at its lease.
func (e *Engine) heedNotes(k *link) error {
	_, err := k.nc.Subscribe(canceledNote+"*", func(msg *nats.Msg) {
		if l, ok := e.leases.Load(idOf(msg.Subject)); ok {
			go l.(*Lease).renew() // it is refused, and so the holder learns
		}
	})
	if err != nil {
		return fmt.Errorf("listening for notes: %w", err)
	}
	return nil
}

// Await waits until a task has its verdict, or until ctx ends, and returns it as
// it is then.
func (e *Engine) Await(ctx context.Context, id string) (*Found, error) {
	for {
		k := e.link()
		f, err := e.awaitOn(ctx, k, id)
		if err == nil || k.life.Err() == nil || ctx.Err() != nil {
			return f, err
		}
		// The engine is opened anew.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for task %s: %w", id, err)
		case <-time.After(probeInterval):
		}
	}
}

func (e *Engine) awaitOn(ctx context.Context, k *link, id string) (*Found, error) {
	ctx, cancel := k.within(ctx)
	defer cancel()
	sub, err := k.nc.SubscribeSync(endedNote + id)
	if err != nil {
		return nil, fmt.Errorf("waiting for task %s: %w", id, err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // it fails only if the connection is gone
	for {
		f, err := e.Find(ctx, id)
		if err != nil || f.Record.State == task.Delivering || f.Record.State == task.Done || f.Record.State == task.Dead {
			return f, err
		}
		if _, err := sub.NextMsgWithContext(ctx); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				return f, nil
			}
			return nil, fmt.Errorf("waiting for task %s: %w", id, err)
		}
	}
}
