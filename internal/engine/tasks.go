package engine

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Tasks looks up tasks and changes them by hand.
type Tasks interface {
	// Get returns a task with its state. It returns ErrNotFound if there is no such
	// task.
	Get(ctx context.Context, id string) (*task.Record, error)
	// Open opens a body of a task for reading. It returns ErrNotFound if there is no
	// such task or the body is no longer kept. A body that is removed while it is read
	// can be read to its end. Seek does no I/O, and reads after it cost no more than
	// what they return.
	Open(ctx context.Context, id string, part Part) (io.ReadSeekCloser, error)
	// Wait returns the task as soon as its Version differs from since, at once if since
	// is zero. It does not poll. It returns ctx's error, or ErrNotFound, also if the
	// task is removed while Wait waits.
	Wait(ctx context.Context, id string, since uint64) (*task.Record, error)
	// List returns up to limit tasks that match, newest first by CreatedAt. A task that
	// changes between two pages may be in both of them, and is in at least one. List
	// returns ErrCursor for an invalid cursor.
	List(ctx context.Context, f Filter, after Cursor, limit int) (*Page, error)
	// Act changes one task. It returns ErrNotFound if there is no such task, ErrEnded
	// if the action does not apply to the task's state, and ErrNotKept if the result
	// that a redelivery needs was removed.
	Act(ctx context.Context, id string, a Action) error
	// Pause stops handing out the jobs of a queue or the deliveries of a host, or
	// resumes it. Work in flight ends as usual. A pause survives restarts and holds for
	// all gateways of the store. Resuming a host clears its Failures and FailingSince:
	// they count again from its next attempt.
	Pause(ctx context.Context, t Target, paused bool) error
	// Hosts lists the hosts that have deliveries pending, are failing or are paused, up
	// to limit after the cursor. Hosts with the most pending deliveries come first.
	Hosts(ctx context.Context, after Cursor, limit int) ([]HostStats, Cursor, error)
	// Queues lists the queues that are paused or have tasks queued or running.
	Queues(ctx context.Context) ([]QueueStats, error)
	// Stats returns counts of the store. It takes a millisecond, however many tasks
	// there are.
	Stats(ctx context.Context) (Stats, error)

	// Import stores a task of another engine with its state and its bodies; a body is
	// nil if the task has none. It stores nothing if the ID is known. A running task is
	// stored as one whose holder died and that may start again. A full queue does not
	// refuse it. Tasks may come in any order: lists are ordered by CreatedAt, and a
	// queue by NextAttemptAt, or by CreatedAt if that is zero.
	Import(ctx context.Context, rec *task.Record, request, result io.Reader) error
	// Keys lists the idempotency keys that have not expired. ImportKey stores a key
	// unless its hash is known. Migrations use both.
	Keys(ctx context.Context, after Cursor, limit int) ([]StoredKey, Cursor, error)
	ImportKey(ctx context.Context, k StoredKey) error
	// Runs lists the schedules of the store with their run times.
	Runs(ctx context.Context) (map[string]Run, error)
}

// Part names a body of a task.
type Part int

const (
	// RequestBody is the request body of a queue's task. It is removed when the verdict
	// is stored.
	RequestBody Part = iota
	// ResultBody is the endpoint's response as it was captured.
	ResultBody
)

// Filter selects tasks. A zero field matches all. State, Queue, Host, Status and the
// time range use an index. The other fields are compared task by task; such a list
// stops after 20 ms and returns a cursor.
type Filter struct {
	States   []task.State
	Statuses []task.Verdict
	Queue    string
	// Host is the host of the callback, with or without its port.
	Host string
	// Before and After bound the time when a task was accepted, to the millisecond: at
	// After or later, and earlier than Before.
	Before, After time.Time
	// IDPrefix is a prefix of the task's ID.
	IDPrefix string
	// Method and Route are those of the request.
	Method, Route string
	// Path is a substring of the request's path without the query, and LastError one of
	// the error of the task or of its last attempt.
	Path, LastError string
	// LastStatusCode is the receiver's status code of the last attempt.
	LastStatusCode int
}

// NeedsRecord reports whether matching needs the task's record, because no index has
// the field.
func (f *Filter) NeedsRecord() bool {
	return f.Method != "" || f.Route != "" || f.Path != "" || f.LastError != "" || f.LastStatusCode != 0
}

// Match compares the fields that no index has: method, route, path, last error and last
// status code.
func (f *Filter) Match(rec *task.Record) bool {
	if !f.NeedsRecord() {
		return true
	}
	method, path, _ := rec.Line()
	last := rec.LastAttempt()
	return (f.Method == "" || f.Method == method) && (f.Route == "" || f.Route == rec.Route) &&
		(f.LastStatusCode == 0 || f.LastStatusCode == last.StatusCode) && strings.Contains(path, f.Path) &&
		(strings.Contains(rec.Error, f.LastError) || strings.Contains(last.Error, f.LastError))
}

// Page is a part of a list.
type Page struct {
	Tasks []*task.Record
	// Next is the cursor of the next page; it is empty if this page is the last. A page
	// without tasks may have a next page.
	Next Cursor
	// Scanned is how many tasks were examined.
	Scanned int
}

// ActionKind is a change that an operator makes to a task.
type ActionKind int

const (
	// Cancel ends a queued or running task as FAILED with Action.Reason. Its callback
	// is delivered.
	Cancel ActionKind = iota
	// RetryNow makes a delivery that waits for its next attempt due at once. A delivery
	// that is already due or in flight is not changed. RetryNow returns ErrPaused if
	// the host is paused, unless the delivery is in flight: nothing would happen until
	// the host is resumed.
	RetryNow
	// Stop gives up a callback that waits for an attempt or is being attempted. The
	// task is then dead.
	Stop
	// Redeliver delivers the callback of a done or dead task again, as
	// task.Record.Redeliver does: attempts count from the start. Action.URL, if set,
	// replaces the callback's URL. Redeliver returns ErrEnded if the task has no
	// callback.
	Redeliver
	// Delete removes a done or dead task.
	Delete
)

// Action is an operator's change to a task.
type Action struct {
	Kind   ActionKind
	Reason string // of Cancel
	// URL and Host replace those of the callback. Only Redeliver uses them.
	URL, Host string
}

// ReasonCanceled is the [Action] Reason of a cancel by a client or an operator.
const ReasonCanceled = "canceled"

// Target is the queue or the host to pause: a queue by its name, a host by host and
// port. Set exactly one field.
type Target struct{ Queue, Host string }

// HostStats describes a host for operators.
type HostStats struct {
	HostState
	Pending  int64 // deliveries due, in flight or waiting for a retry
	InFlight int64
	Next     time.Time // when its next delivery is due; zero if none is waiting
}

// QueueStats describes a queue for operators.
type QueueStats struct {
	Queue   string
	Queued  int64     // including those that are delayed
	Delayed int64     // ready later; at most Queued
	Running int64     // on all gateways
	Oldest  time.Time // when the job that is ready for the longest time was accepted; zero if none is ready
	Paused  bool
}

// Stats are the counts of a store.
type Stats struct {
	Tasks map[task.State]int64
	// Due is how many deliveries are due now. If there are too many to count, it may
	// include retries that are waiting.
	Due int64
	// Used is how many bytes the store uses, and Limit at how many it is full, because
	// of its own limit or of its disk. Zero means unknown.
	Used, Limit int64
}

// StoredKey is an idempotency key in the store.
type StoredKey struct {
	Hash, Digest, TaskID string
	Expires              time.Time
}
