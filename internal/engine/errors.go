package engine

import (
	"errors"
	"fmt"
)

// The errors that callers compare. Engines wrap them.
var (
	// ErrLost means that the lease or delivery is over, because another holder has
	// decided.
	ErrLost = errors.New("the lease is no longer held")
	// ErrHeld means that the store is open in another process.
	ErrHeld = errors.New("the store is in use")
	// ErrNotFound means that there is no such task, or that its body is no longer kept.
	ErrNotFound = errors.New("no such task")
	// ErrEnded means that the action does not apply to the state of the task.
	ErrEnded = errors.New("the task has ended")
	// ErrNotKept means that the result that a redelivery needs was removed. It wraps
	// ErrEnded.
	ErrNotKept = fmt.Errorf("%w, and its result is not kept", ErrEnded)
	// ErrPaused means that the host of the callback is paused.
	ErrPaused = errors.New("the host of the callback is paused")
	// ErrFull means that the store has no room for new tasks.
	ErrFull = errors.New("the store is full")
	// ErrQuota means that the store is filling up and the destination of the callback
	// has used its share. It wraps ErrFull.
	ErrQuota = fmt.Errorf("%w for this destination", ErrFull)
	// ErrQueueFull means that the queue has reached its limit of waiting tasks. It does
	// not wrap ErrFull.
	ErrQueueFull = errors.New("the queue is full")
	// ErrKeyReused means that the idempotency key was used with another request.
	ErrKeyReused = errors.New("the idempotency key was used with another request")
	// ErrUnavailable means that the store does not answer. The operation may have been
	// stored nevertheless.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrCursor means that this engine did not return the cursor.
	ErrCursor = errors.New("the cursor is not valid")
	// ErrTooLarge means that the record is too large to be stored. Retrying does not
	// help.
	ErrTooLarge = errors.New("the task is too large to be stored")
)

// IsTemporary reports whether an error may be gone when the call is repeated: the store is
// full, or does not answer.
func IsTemporary(err error) bool { return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrFull) }
