package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Receiver is the URL that gets the alerts. An alert is a task without a request: its
// result is the alert as JSON, and it is delivered like any other callback. So it is
// signed, retried, kept across a restart, and listed.
type Receiver struct {
	URL  string
	Host string // and port
	// The names of the headers with the task's ID and its status.
	TaskHeader, StatusHeader string
	MaxResult                int64 // in bytes
}

// path is the prefix of the path of an alert's task. Only alerts have it without a method.
const path = "alert/"

// Is reports whether a task is an alert.
func Is(rec *task.Record) bool {
	return rec.RequestMethod == "" && strings.HasPrefix(rec.RequestPath, path)
}

const (
	// claimTimeout is how long an alert waits for a store that is full or does not answer.
	claimTimeout = 10 * time.Minute
	// stepTimeout bounds one call of such a store, and retryWait is the wait before the next.
	stepTimeout = 5 * time.Second
	retryWait   = time.Second
)

// Store stores an alert for the receiver. It tries again while the store is full or does
// not answer, for ten minutes at most, or until the process exits, which ends stopping. It
// returns the last error of the engine.
func (r *Receiver) Store(stopping context.Context, e engine.Engine, a Alert) error {
	rec, body, err := r.newTask(a)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(stopping, claimTimeout)
	defer cancel()
	var lease engine.Lease
	if err := repeat(waiting, func(ctx context.Context) (err error) {
		lease, err = e.Claim(ctx, rec)
		return err
	}); err != nil {
		return err
	}
	rec.Status, rec.FinishedAt = task.Complete, time.Now().UTC()
	// Only this process can end the lease, so it tries for longer than claimTimeout.
	err = repeat(stopping, func(ctx context.Context) error {
		rec, result := *rec, task.Result{ContentType: "application/json", Size: int64(len(body))}
		rec.Result = &result
		return lease.Settle(ctx, &rec, bytes.NewReader(body))
	})
	if errors.Is(err, engine.ErrLost) {
		return nil // an earlier call was stored, or the engine has decided the verdict
	}
	return err
}

// repeat repeats a step while the store is full or does not answer. When ctx ends, it makes
// a last try.
func repeat(ctx context.Context, step func(context.Context) error) error {
	for {
		err := try(ctx, step)
		if err == nil || !engine.IsTemporary(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryWait):
		}
	}
}

func try(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	defer cancel()
	return step(ctx)
}

// newTask returns the task of an alert, and its body.
func (r *Receiver) newTask(a Alert) (*task.Record, []byte, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the alert: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, fmt.Errorf("making a task ID: %w", err)
	}
	now := time.Now().UTC()
	return &task.Record{
		Task:  task.Task{ID: id.String(), CreatedAt: now, StartedAt: now, CallbackHost: r.Host},
		Route: "alert", RequestPath: path + a.Type,
		Callback: &task.Callback{
			URL: r.URL, Trusted: true, Format: encode.FormatRaw, MaxResult: r.MaxResult,
			TaskHeader: r.TaskHeader, StatusHeader: r.StatusHeader,
		},
	}, body, nil
}
