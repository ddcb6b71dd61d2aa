package callback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// keyOf returns the request's idempotency key, hashed with what it is scoped to, or
// "" if there is none. Clients choose keys, "1" for example: without a scope one
// would get another's task ID, and with it the result.
func (q *TaskQueue) keyOf(r *http.Request) string {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return ""
	}
	scope := q.opts.IdempotencyScope
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		scope = repl.ReplaceAll(scope, "")
	}
	// Only the scope can have a NUL, and it is the last.
	hashed := sha256.Sum256([]byte(key + "\x00" + r.Method + "\x00" + r.RequestURI + "\x00" + scope))
	return hex.EncodeToString(hashed[:])
}

// claimKey returns the ID of the task that an idempotency key stands for: rec's,
// which is then to be stored, or that of the first request with the key. sum is a
// hash of the body; key is that of keyOf.
func (q *TaskQueue) claimKey(ctx context.Context, e *engine.Engine, t *ticket, rec *task.Record, sum []byte, key string) (string, error) {
	if t.exchange != nil {
		// The claim for the callback ends here: if the gateway died now, it would
		// become a verdict on a task that the next request with the key is to start.
		if err := t.exchange.lease.Drop(ctx); err != nil {
			return "", err
		}
		t.refuse(ctx)
	}
	rec.Key = key
	mine := engine.Key{TaskID: rec.ID, Body: hex.EncodeToString(sum)}
	first, isMine, err := e.ClaimKey(ctx, q.Name, rec.Key, mine)
	switch {
	case err != nil:
		return "", err
	case first.Body != mine.Body:
		return "", &problem{http.StatusUnprocessableEntity, "Idempotency-Key: it was used with another body"}
	case isMine:
		return rec.ID, nil
	}
	stored, err := awaitStored(ctx, e, first.TaskID)
	if err == nil && !stored {
		err = q.takeOver(ctx, e, t, rec, first)
	}
	return first.TaskID, err
}

// knowsKey says whether an idempotency key stands for a task already.
func (q *TaskQueue) knowsKey(ctx context.Context, e *engine.Engine, key string) (bool, error) {
	if key == "" {
		return false, nil
	}
	return e.HasKey(ctx, q.Name, key)
}

// takeOver makes rec the task that a key stands for and that nobody stored: the
// gateway that was about to is gone, or the task is so long past that it was
// forgotten. If that gateway was only slow, one of the two copies is dropped
// when it is to run.
func (q *TaskQueue) takeOver(ctx context.Context, e *engine.Engine, t *ticket, rec *task.Record, first engine.Key) error {
	if err := e.RenameBody(ctx, rec, first.TaskID); err != nil {
		return err
	}
	rec.ID = first.TaskID
	rec.Request.Header.Set(t.header, rec.ID)
	return e.ReviveKey(ctx, q.Name, rec.Key, first)
}

const (
	// storeWait is how long a task may take from its key to its place in the
	// queue. It is one publish.
	storeWait = 2 * time.Second
	// storePoll is how often it is looked for meanwhile.
	storePoll = 50 * time.Millisecond
)

// awaitStored says whether the engine has a task, or has it soon.
func awaitStored(ctx context.Context, e *engine.Engine, id string) (bool, error) {
	over := time.NewTimer(storeWait)
	defer over.Stop()
	tick := time.NewTicker(storePoll)
	defer tick.Stop()
	for {
		_, err := e.Find(ctx, id)
		if !errors.Is(err, engine.ErrNotFound) {
			return err == nil, err
		}
		select {
		case <-tick.C:
		case <-over.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
