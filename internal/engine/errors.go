package engine

import (
	"errors"
	"fmt"
)

// The errors that callers branch on. Engines wrap them.
var (
	// ErrLost: somebody else has decided; the lease or delivery is over.
	ErrLost = errors.New("the lease is no longer held")
	// ErrHeld: the store is open in another process.
	ErrHeld = errors.New("the store is in use")
	// ErrNotFound: there is no such task, or its body is not kept any more.
	ErrNotFound = errors.New("no such task")
	// ErrEnded: the task is not in a state that the action applies to.
	ErrEnded = errors.New("the task has ended")
	// ErrNotKept: the result that a redelivery needs was removed. It is an ErrEnded.
	ErrNotKept = fmt.Errorf("%w, and its result is not kept", ErrEnded)
	// ErrFull: the store has no room for new tasks.
	ErrFull = errors.New("the store is full")
	// ErrQuota: the store is filling, and the destination of the callback has its
	// share of it. It is an ErrFull.
	ErrQuota = fmt.Errorf("%w for this destination", ErrFull)
	// ErrQueueFull: as many tasks wait in the queue as may. It is no ErrFull.
	ErrQueueFull = errors.New("the queue is full")
	// ErrKeyReused: the idempotency key was used with another request.
	ErrKeyReused = errors.New("the idempotency key was used with another request")
	// ErrUnavailable: the store does not answer. What was asked for may have been
	// stored all the same.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrCursor: the cursor is not one that this engine returned.
	ErrCursor = errors.New("the cursor is not valid")
	// ErrTooLarge: the record does not fit, whatever is tried.
	ErrTooLarge = errors.New("the task is too large to be stored")
)
