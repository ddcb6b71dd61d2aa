// Package engine defines what the gateway asks of the store that keeps its
// tasks. The gateway knows only this interface; internal/engine/sqlite keeps
// tasks in a folder of this machine, internal/engine/nats in a JetStream
// cluster. enginetest is the suite that every engine passes.
//
// A task is in exactly one state:
//
//	          Enqueue            Jobs              Settle            Done
//	(accepted) ──────▶ queued ────────▶ running ────────▶ delivering ────▶ done
//	     │               ▲  │ Cancel       │  │               ▲     │
//	     │       Requeue │  └──────────────┼──┼───────────────┤     │ Dead, Stop
//	     │               └─────────────────┘  │ no callback   │     ▼
//	     └─ Claim ──▶ running                 └────▶ done     └─── dead
//	                                                       Redeliver
//
// What is promised: what a method has stored survives kill -9 and, with the
// default options, a power failure. Of a task's holders at most one decides its
// verdict. A claimed task whose holder dies is settled as FAILED or runs again.
// All methods may be called from several goroutines at once, return when their
// context ends, and wrap one of the errors of this package if a caller can act
// on it.
//
// Records are copies, with lists of attempts and redeliveries of their own: what
// is passed in may be changed afterwards, and what is returned belongs to the
// caller. What else they point to may be shared, and nobody changes it. The engine
// sets State and Version, and what the methods name; all else is stored as the
// caller has set it. rec.CallbackHost is
// the host and port of the callback. A verdict of the engine's own (a cancel, the
// death of a holder) sets Status, Error and FinishedAt. With the verdict the body
// of the request is removed. A reader that is nil stands for an empty body.
package engine

import (
	"context"
	"io"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Engine keeps tasks.
type Engine interface {
	// Ready returns nil if new tasks are accepted, else an error that wraps
	// ErrFull or ErrUnavailable and says why. It does no I/O.
	Ready() error
	// Close waits until what has begun is stored, at most until ctx ends. Claims
	// and deliveries in flight are left to lease expiry. It may be called twice.
	// After it all other methods return ErrUnavailable.
	Close(ctx context.Context) error
	// Reconfigure applies the settings of a reload. What is over a limit then is
	// removed at once.
	Reconfigure(ctx context.Context, s Settings) error
	// Secret returns 32 random bytes that all gateways of a store share.
	Secret(ctx context.Context) ([]byte, error)

	Acceptor
	Queues
	Deliveries
	Schedules
	Tasks
}

// Settings are the limits that one generation of the configuration sets.
type Settings struct {
	// Retention is how long done tasks are kept, RetentionCount how many. They
	// count from when they were done, dead letters from when they died. Zero is no
	// limit. What is over a limit is removed within seconds.
	Retention      time.Duration
	RetentionCount int64
	// Dead is how long dead letters are kept, DeadCount how many.
	Dead      time.Duration
	DeadCount int64
	// KeepResults keeps the results of done tasks until their retention ends.
	// Without it a result is removed once its callback was delivered; those of a
	// queue's tasks are kept, and empty ones.
	KeepResults bool
	// DeliveryWindow is how long after its verdict, or after it was redelivered by
	// hand, a callback may still be delivered; then it is dead, attempted or not. An
	// attempt in flight ends first. Zero: 30 days.
	DeliveryWindow time.Duration
	// GaveUp is called after the engine has stored that a callback is dead because
	// its window has ended. It must not wait, nor call the engine. Optional.
	GaveUp func(*task.Record)
}

// Acceptor takes new tasks.
type Acceptor interface {
	// Claim stores a waiting client's task as running and returns the lease that
	// decides its verdict. rec has an ID, and its Callback. If the holder dies, the
	// task is settled as FAILED with the error [task.ErrorHolderDied].
	// Returns ErrFull, ErrQuota or ErrUnavailable; then nothing is owed.
	Claim(ctx context.Context, rec *task.Record) (Lease, error)

	// Enqueue stores a task as queued, ready at rec.NextAttemptAt or at once. The
	// body is read to its end, and rec.Request.Size set to its length; nil is an
	// empty one. An error of the reader is returned as it is, and nothing is stored.
	// With a key it is one atomic step: created is false, and id
	// that of the first task, if the key is known. If the key's digest differs from
	// that of the first task's, id is set and the error is ErrKeyReused. A task with
	// rec.Schedule is not stored while an earlier run of that schedule waits
	// unstarted; then id is that run's. rec.Queue names the queue; its depth is
	// limited by maxQueued, if that is positive: ErrQueueFull.
	Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts EnqueueOptions) (id string, created bool, err error)
}

// EnqueueOptions are what an enqueue depends on.
type EnqueueOptions struct {
	Key *Key // nil for none
	// MaxQueued is how many tasks may wait in the queue, over all gateways; zero is
	// no limit. A cluster may exceed it by what is accepted at the same moment. A
	// known key is answered even if the queue is full.
	MaxQueued int
}

// Key is an idempotency key.
type Key struct {
	// Hash identifies the key within the store: a digest of its scope and value.
	Hash string
	// Digest returns the content digest of the request. It is called once the
	// body has been read.
	Digest func() string
}

// KeyLifetime is how long an idempotency key is remembered, from acceptance,
// whatever becomes of its task.
const KeyLifetime = 24 * time.Hour

// Lease is the right to decide a task's verdict. Every method but OnLost and
// Record ends it if it returns nil, and returns ErrLost if somebody else has
// decided: the lease expired, or the task was canceled. ErrUnavailable means
// "perhaps stored": repeating the step tells.
type Lease interface {
	// Settle stores the verdict, the result and the delivery in one atomic step;
	// without rec.Callback the task is done. result is nil if rec.Result is; else
	// rec.Result.Kept is set to what is stored of it.
	// Returns an error of the reader as it is: then nothing is stored and the lease
	// stands. A full store cuts the result, never the verdict.
	Settle(ctx context.Context, rec *task.Record, result io.Reader) error
	// Requeue puts a queue's task back, ready at the given time, or at once and at
	// its old place if that is zero. rec.Starts tells how many attempts it has used;
	// StartedAt is set to zero, NextAttemptAt to at.
	Requeue(ctx context.Context, rec *task.Record, at time.Time) error
	// Enqueue turns a waiting client's task into a queue's, under the same ID, as
	// Acceptor.Enqueue does. If a key or schedule is known already, the claim is
	// released, and the known task's ID returned. The lease stands if there is an
	// error, ErrKeyReused and ErrQueueFull included.
	Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts EnqueueOptions) (id string, created bool, err error)
	// Release removes a waiting client's task as if it had never been claimed. A
	// queue's job goes back to its old place without using an attempt.
	Release(ctx context.Context) error
	// OnLost calls f in a goroutine of its own once the lease is lost, at once if
	// it already is. It is set once.
	OnLost(f func())
}

// Queues hands out the jobs of queues.
type Queues interface {
	// Jobs returns the source of a queue's jobs, in the order of their ready time,
	// then of arrival.
	Jobs(queue string) JobSource
}

// JobSource hands out the jobs of one queue. It needs no closing.
type JobSource interface {
	// Next waits until a job is ready and the queue is not paused, and claims up to
	// max of them. Each has rec.Starts counted up, StartedAt set and NextAttemptAt
	// cleared. A job whose holder dies is queued again at its old place if
	// rec.Starts < maxStarts, else settled as FAILED. If ctx ends meanwhile, what
	// was claimed is returned or put back as by Release.
	// Returns ctx's error, or ErrUnavailable.
	Next(ctx context.Context, max, maxStarts int) ([]Job, error)
}

// Job is a queued task that has been claimed.
type Job struct {
	Record *task.Record
	Lease  Lease
}

// Deliveries are callbacks that are owed. Who is next is the dispatcher's
// decision: the engine says which hosts have deliveries due, and hands out the
// next of a host that it is asked for.
type Deliveries interface {
	// DueHosts waits until hosts have deliveries due that were not reported yet,
	// and returns up to max of them. It has one caller at a time. Every host with
	// due deliveries is reported once at first; again when more become due after
	// a Take returned fewer than it was asked for, or one of its deliveries was
	// released, or it was resumed. A paused host has none due. If ctx ends, the
	// hosts that were not returned stay unreported.
	DueHosts(ctx context.Context, max int) ([]HostDue, error)
	// Take takes up to n due deliveries of a host, first deliveries and retries by
	// due time; fewer, or none, if there are no more or the host is paused. On a
	// cluster it may lose races. Each delivery must be ended.
	Take(ctx context.Context, host string, n int) ([]Delivery, error)
	// SaveHosts stores what the dispatcher has learned of hosts. It may be lost
	// in a crash.
	SaveHosts(ctx context.Context, hosts []HostState) error
}

// HostDue is a host with deliveries due.
type HostDue struct {
	HostState
	// Due is how many deliveries are due, or an estimate; at least 1.
	Due int
	// Trusted is set if one of them goes to the operator's own URL.
	Trusted bool
}

// HostState is what is kept of a host, by host and port.
type HostState struct {
	Host       string        // host:port
	Window     int           // how many attempts at once it has earned
	Average    time.Duration // of its attempts
	AnsweredAt time.Time     // last answer; zero if there was none
	// Failures counts attempts in a row that were not accepted, since
	// FailingSince. LastError and LastStatus are of the latest of them.
	Failures     int
	FailingSince time.Time
	LastError    string
	LastStatus   int
	Paused       bool // set by Pause, not by SaveHosts
}

// Delivery is a callback that has been taken. Every method ends it, is refused
// with ErrLost if the task has moved on (stopped, deleted, taken by another
// gateway after this one was held up), and stores Record as it is then. Release
// stores nothing of it.
type Delivery interface {
	// Record returns the task. The caller adds attempts to it.
	Record() *task.Record
	// Result opens the task's result, rec.Result.Kept bytes. ErrNotFound if it
	// is not kept any more. The delivery is not ended by it.
	Result(ctx context.Context) (io.ReadCloser, error)
	// Done stores that the callback was delivered.
	Done(ctx context.Context) error
	// Retry makes the callback due again at the given time, which NextAttemptAt
	// has while it waits. Done and Dead clear it.
	Retry(ctx context.Context, at time.Time) error
	// Dead gives the callback up; it is kept as a dead letter.
	Dead(ctx context.Context) error
	// Release makes the callback due as before, as if it had not been taken.
	Release(ctx context.Context) error
}

// Schedules keep the next run time of each schedule; run times are computed by
// the gateway. A run is an Enqueue keyed by schedule and run time, so that it is
// stored once however many gateways share the schedule.
type Schedules interface {
	// NextRun returns the stored run times of a schedule, and stores next first if
	// the schedule is new.
	NextRun(ctx context.Context, schedule string, first time.Time) (Run, error)
	// Advance moves a schedule on from the run time due to next. Returns ErrLost if
	// another gateway has, or the schedule is unknown: NextRun tells.
	Advance(ctx context.Context, schedule string, due, next time.Time) error
}

// Run are the run times of a schedule.
type Run struct {
	Last time.Time // the last one; zero if it never ran
	Next time.Time
}
