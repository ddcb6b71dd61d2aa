package engine

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Tasks looks tasks up and changes them by hand.
type Tasks interface {
	// Get returns a task with its state, or ErrNotFound.
	Get(ctx context.Context, id string) (*task.Record, error)
	// Open opens a body of a task for reading. ErrNotFound if there is no such task
	// or the body is not kept any more. What is removed meanwhile is read to its end.
	Open(ctx context.Context, id string, part Part) (io.ReadCloser, error)
	// Wait returns the task as soon as its Version differs from since, at once if
	// since is zero. Nothing is polled. Returns ctx's error, or ErrNotFound, also
	// when the task is removed meanwhile.
	Wait(ctx context.Context, id string, since uint64) (*task.Record, error)
	// List returns up to limit tasks that match, newest first by CreatedAt. A
	// task that moves between two pages is in one of them at most twice and never in
	// none. Returns ErrCursor.
	List(ctx context.Context, f Filter, after Cursor, limit int) (*Page, error)
	// Act changes one task. Returns ErrNotFound; ErrEnded if the action does not
	// apply to the task's state; ErrNotKept if a redelivery needs a result that was
	// removed.
	Act(ctx context.Context, id string, a Action) error
	// Pause stops handing out the jobs of a queue or the deliveries of a host, or
	// goes on with it. What is in flight ends. It survives restarts and holds for
	// all gateways of the store.
	Pause(ctx context.Context, t Target, paused bool) error
	// Hosts lists the hosts that have deliveries pending, are failing or are paused:
	// the most pending first, up to limit after the cursor.
	Hosts(ctx context.Context, after Cursor, limit int) ([]HostStats, Cursor, error)
	// Queues lists the queues that are paused or have tasks queued or running.
	Queues(ctx context.Context) ([]QueueStats, error)
	// Stats counts. It takes a millisecond, however many tasks there are.
	Stats(ctx context.Context) (Stats, error)

	// Import stores a task of another engine in the state it has there, with its
	// bodies (nil if it has none); nothing if the ID is known. A running task is
	// stored as one whose holder died and that may start again. It is not refused
	// because a queue is full. Tasks come in any order: lists go by CreatedAt, and a
	// queue by NextAttemptAt, or CreatedAt if that is zero.
	Import(ctx context.Context, rec *task.Record, request, result io.Reader) error
	// Keys lists idempotency keys that have not expired and ImportKey stores one,
	// unless its hash is known, for a migration.
	Keys(ctx context.Context, after Cursor, limit int) ([]StoredKey, Cursor, error)
	ImportKey(ctx context.Context, k StoredKey) error
	// Runs lists the schedules that the store knows.
	Runs(ctx context.Context) (map[string]Run, error)
}

// Part names a body of a task.
type Part int

const (
	// RequestBody is the body that a queue's task runs with. It is removed with
	// the verdict.
	RequestBody Part = iota
	// ResultBody is the endpoint's response as it was captured.
	ResultBody
)

// Filter says which tasks are meant. A zero field asks for nothing. State,
// Queue, Host, Status and the time range use an index; the others look at each
// task and stop after 20 ms, with a cursor.
type Filter struct {
	States   []task.State
	Statuses []task.Verdict
	Queue    string
	// Host is that of the callback, with its port or without.
	Host string
	// Before and After bound when a task was accepted, to the millisecond: it was
	// at After or later, and earlier than Before.
	Before, After time.Time
	// IDPrefix is the beginning of a task's ID.
	IDPrefix string
	// Method and Route are those of the request.
	Method, Route string
	// Path and LastError are substrings of the request's path, without the query,
	// and of the task's or its last attempt's error.
	Path, LastError string
	// LastStatusCode is the receiver's answer to the last attempt.
	LastStatusCode int
}

// NeedsRecord reports whether only a task's record tells if it matches.
func (f *Filter) NeedsRecord() bool {
	return f.Method != "" || f.Route != "" || f.Path != "" || f.LastError != "" || f.LastStatusCode != 0
}

// Match reports whether a task matches in what no index has: method, route, path,
// last error and last status code.
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

// Cursor is where a list goes on; opaque, printable, empty at the start and
// after the end. Clients send cursors back: a list answers one that it did not
// return with ErrCursor, or with some page, and nothing worse.
type Cursor string

// Page is a part of a list.
type Page struct {
	Tasks []*task.Record
	// Next goes on after this page; empty if there is no more. A page may be empty
	// and have a next one.
	Next Cursor
	// Scanned is how many tasks were looked at.
	Scanned int
}

// ActionKind is what is done to a task by hand.
type ActionKind int

const (
	// Cancel ends a queued or running task as FAILED with Action.Reason; its
	// callback is delivered.
	Cancel ActionKind = iota
	// RetryNow makes a delivery that waits for its next attempt due at once. One
	// that is due or in flight stays as it is.
	RetryNow
	// Stop gives a callback up that waits for an attempt or is being attempted:
	// the task is dead.
	Stop
	// Redeliver delivers the callback of a done or dead task once more, as
	// task.Record.Redeliver has it: the attempts start anew. Action.URL, if set,
	// replaces the callback's URL. ErrEnded if the task has no callback.
	Redeliver
	// Delete removes a done or dead task.
	Delete
)

// Action is something done to a task by hand.
type Action struct {
	Kind   ActionKind
	Reason string // of Cancel
	// URL and Host replace those of the callback, for Redeliver.
	URL, Host string
}

// Target is what is paused: a queue by its name, or a host by host and port.
// One field is set.
type Target struct{ Queue, Host string }

// HostStats is a host for operators.
type HostStats struct {
	HostState
	Pending  int64 // deliveries due, in flight or waiting for a retry
	InFlight int64
	Next     time.Time // when its next delivery is due; zero if none waits
}

// QueueStats is a queue for operators.
type QueueStats struct {
	Queue   string
	Queued  int64     // including those that are delayed
	Delayed int64     // ready later; at most Queued
	Running int64     // on all gateways
	Oldest  time.Time // when the oldest queued task was accepted
	Paused  bool
}

// Stats are counts of a store.
type Stats struct {
	Tasks map[task.State]int64
	// Due is how many deliveries could be attempted now. Retries that wait may be
	// among them if there are too many to count.
	Due int64
	// Used and Limit are bytes; zero if the engine does not know.
	Used, Limit int64
}

// StoredKey is an idempotency key as it is kept.
type StoredKey struct {
	Hash, Digest, TaskID string
	Expires              time.Time
}
