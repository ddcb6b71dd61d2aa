// Package engine defines the interface between the gateway and the store that keeps its
// tasks. The gateway knows only this interface. internal/engine/sqlite keeps tasks in a
// local folder, internal/engine/nats in a JetStream cluster. Every engine passes the
// test suite enginetest.
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
// Every engine guarantees the following. What a method has stored survives kill -9 and,
// with the default options, a power failure. At most one holder of a task decides its
// verdict. If the holder of a claimed task dies, the task is settled as FAILED or runs
// again. Methods may be called from several goroutines at once and return when their
// context ends. Errors that a caller can act on wrap one of the errors of this package.
//
// Records are copies, with their own lists of attempts and redeliveries: you may change
// a record after passing it in, and you own a record that is returned. Other values
// that they point to may be shared and must not be changed. The engine sets State and
// Version, and the fields that the methods name. It stores all other fields as the
// caller has set them. rec.CallbackHost is the host and port of the callback. If the
// engine itself decides a verdict (a cancel, the death of a holder), it sets Status,
// Error and FinishedAt. The body of the request is removed when the verdict is stored.
// A nil reader means an empty body.
package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Engine keeps tasks.
type Engine interface {
	// Ready returns nil if the store accepts new tasks. Otherwise it returns an error
	// that wraps ErrFull or ErrUnavailable and gives the reason. It does no I/O.
	Ready() error
	// Close waits until operations in progress are stored, at most until ctx ends.
	// Claims and deliveries in flight are left to lease expiry. It may be called twice.
	// All other methods then return ErrUnavailable.
	Close(ctx context.Context) error
	// Reconfigure applies the settings of a reload. Tasks over a new limit are removed
	// at once.
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
	// Retention is how long done tasks are kept, RetentionCount how many. A done task's
	// age counts from when it was done, a dead letter's from when it died. Zero means
	// no limit. Tasks over a limit are removed within seconds.
	Retention      time.Duration
	RetentionCount int64
	// Dead is how long dead letters are kept, DeadCount how many.
	Dead      time.Duration
	DeadCount int64
	// KeepResults keeps the results of done tasks until their retention ends. Without
	// it, a result is removed once its callback has been delivered. The results of
	// queue tasks and empty results are always kept.
	KeepResults bool
	// DeliveryWindow is how long after its verdict, or after a redelivery by hand, a
	// callback may still be delivered. Then it becomes a dead letter, even if it was
	// never attempted. An attempt in flight ends first. Zero means 30 days.
	DeliveryWindow time.Duration
	// GaveUp is called after the engine has stored that a callback is dead because its
	// delivery window has ended. It must not block or call the engine. It is optional.
	GaveUp func(*task.Record)
}

// Acceptor takes new tasks.
type Acceptor interface {
	// Claim stores a waiting client's task as running and returns the lease that
	// decides its verdict. rec has an ID and a Callback. If the holder dies, the task
	// is settled as FAILED with the error [task.ErrorHolderDied]. Claim returns
	// ErrFull, ErrQuota or ErrUnavailable; then no callback is sent.
	Claim(ctx context.Context, rec *task.Record) (Lease, error)

	// Enqueue stores a task as queued, ready at rec.NextAttemptAt, or at once if that
	// is zero. It reads body to its end and sets rec.Request.Size to its length; a nil
	// body is empty. If the reader fails, Enqueue returns its error unchanged and
	// stores nothing. Looking up the idempotency key and storing the task is one atomic
	// step. If the key is known, created is false and id is that of the first task. If
	// the key is known with another digest, id is set too and the error is
	// ErrKeyReused. A task with rec.Schedule is not stored while an earlier run of that
	// schedule is still queued; then id is that of the earlier run. rec.Queue names the
	// queue. A positive opts.MaxQueued limits its depth: ErrQueueFull.
	Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts EnqueueOptions) (id string, created bool, err error)
}

// EnqueueOptions are the options of Acceptor.Enqueue and Lease.Enqueue.
type EnqueueOptions struct {
	Key *Key // nil for none
	// MaxQueued is how many tasks may wait in the queue, over all gateways. Zero means
	// no limit. A cluster may exceed it by the tasks that are accepted at the same
	// moment. A known key is answered even if the queue is full.
	MaxQueued int
}

// Key is an idempotency key.
type Key struct {
	// Hash identifies the key within the store: a digest of its scope and value.
	Hash string
	// Digest returns the content digest of the request. It is called after the body has
	// been read.
	Digest func() string
}

// HashOf returns a digest of words and their boundaries, for the Hash of a [Key].
func HashOf(words ...string) string {
	sum := sha256.New()
	for _, word := range words {
		part := sha256.Sum256([]byte(word))
		sum.Write(part[:])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// KeyLifetime is how long an idempotency key is remembered after its task was accepted,
// whatever the state of the task.
const KeyLifetime = 24 * time.Hour

// Lease is the right to decide a task's verdict. A method other than OnLost and Record
// ends the lease if it returns nil. It returns ErrLost if the lease has expired, the
// task was canceled or another holder has decided. After ErrUnavailable the step may or
// may not be stored: repeat it to find out.
type Lease interface {
	// Settle stores the verdict, the result and the delivery in one atomic step. A task
	// without rec.Callback is done. result is nil if rec.Result is; otherwise
	// rec.Result.Kept is set to the number of bytes stored, and nothing else of rec that
	// a repeated Settle needs is changed. If the reader fails, Settle returns its error
	// unchanged, stores nothing and keeps the lease. A full store cuts the result, never
	// the verdict.
	Settle(ctx context.Context, rec *task.Record, result io.Reader) error
	// Requeue queues a queue's task again, ready at the given time. If that is zero,
	// the task is ready at once and returns to its old place. rec.Starts is how many
	// attempts it has used. Requeue sets StartedAt to zero and NextAttemptAt to at. It
	// stores the rest of rec as it is.
	Requeue(ctx context.Context, rec *task.Record, at time.Time) error
	// Enqueue turns a waiting client's task into a queue's task with the same ID, as
	// Acceptor.Enqueue does. If the key is known or a run of the schedule is queued,
	// the claim is released and the ID of the known task is returned. After an error,
	// ErrKeyReused and ErrQueueFull included, the lease is still held.
	Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts EnqueueOptions) (id string, created bool, err error)
	// Release removes a waiting client's task as if it had never been claimed. A
	// queue's job returns to its old place without using an attempt.
	Release(ctx context.Context) error
	// OnLost calls f in its own goroutine when the lease is lost, or at once if it
	// already is. It is set once.
	OnLost(f func())
}

// Queues hands out the jobs of queues.
type Queues interface {
	// Jobs returns the source of a queue's jobs, in the order of their ready time,
	// then of arrival.
	Jobs(queue string) JobSource
}

// JobSource hands out the jobs of one queue. It need not be closed.
type JobSource interface {
	// Next waits until a job is ready and the queue is not paused, and claims up to max
	// jobs. For each job it increments rec.Starts, sets StartedAt and clears
	// NextAttemptAt. If the holder of a job dies, the job is queued again at its old
	// place if rec.Starts is less than [MaxStarts], and otherwise settled as FAILED. If
	// ctx ends during the claim, the claimed jobs are returned, or released as by
	// Release. Next returns ctx's error, or ErrUnavailable.
	Next(ctx context.Context, max, maxStarts int) ([]Job, error)
}

// MaxStarts returns how often a job may be started whose queue allows limit starts. A
// poll repeats nothing that the endpoint has done, so only the task's timeout limits
// polls.
func MaxStarts(rec *task.Record, limit int) int {
	if rec.Poll != nil {
		return math.MaxInt32
	}
	return max(1, limit)
}

// Job is a queued task that has been claimed.
type Job struct {
	Record *task.Record
	Lease  Lease
	// Request is the body of the request, if it is small and the engine read it with the
	// job. If it is nil, Open returns the body.
	Request []byte
}

// Deliveries are the pending callbacks. The dispatcher decides which host is next: the
// engine reports which hosts have deliveries due, and hands out the next deliveries of
// the host that the dispatcher asks for.
type Deliveries interface {
	// DueHosts waits until hosts have deliveries due that were not reported yet, and
	// returns up to max hosts. It has one caller at a time. Each host with due
	// deliveries is reported once. It is reported again when more deliveries become due
	// after Take returned fewer than asked for, when one of its deliveries is released,
	// and when it is resumed. A paused host has no deliveries due. If ctx ends, the
	// hosts that were not returned stay unreported.
	DueHosts(ctx context.Context, max int) ([]HostDue, error)
	// Take takes up to n due deliveries of a host, in order of their due time. It
	// returns fewer, or none, if there are no more or the host is paused. On a cluster,
	// another gateway may take some of them first. Each delivery must be ended.
	Take(ctx context.Context, host string, n int) ([]Delivery, error)
	// SaveHosts stores the dispatcher's measurements of hosts. A crash may lose them.
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

// HostState is the stored state of a host.
type HostState struct {
	Host       string        // host:port
	Window     int           // how many attempts may run at once
	Average    time.Duration // of its attempts
	AnsweredAt time.Time     // last answer; zero if there was none
	// Failures counts the consecutive failed attempts since FailingSince. LastError and
	// LastStatus are those of the latest one.
	Failures     int
	FailingSince time.Time
	LastError    string
	LastStatus   int
	Paused       bool // set by Pause, not by SaveHosts
}

// Delivery is a callback that has been taken. Each of Done, Retry, Dead and Release
// ends it. They return ErrLost if the task has changed: it was stopped, deleted, or
// taken by another gateway after this one was delayed. Done, Retry and Dead store
// Record as it is when they are called; Release does not.
type Delivery interface {
	// Record returns the task. The caller appends its attempts.
	Record() *task.Record
	// Result opens the task's result, which has rec.Result.Kept bytes. It returns
	// ErrNotFound if the result is no longer kept. It does not end the delivery.
	Result(ctx context.Context) (io.ReadCloser, error)
	// Done stores that the callback was delivered.
	Done(ctx context.Context) error
	// Retry makes the callback due again at the given time. NextAttemptAt has this time
	// while the callback waits. Done and Dead clear it.
	Retry(ctx context.Context, at time.Time) error
	// Dead stores that the callback is given up. It is kept as a dead letter.
	Dead(ctx context.Context) error
	// Release makes the callback due as before, as if it had not been taken.
	Release(ctx context.Context) error
}

// Schedules keep the next run time of each schedule. The gateway computes the run
// times. A run is an Enqueue whose key is made of the schedule and the run time, so
// that it is stored once however many gateways share the schedule.
type Schedules interface {
	// NextRun returns the stored run times of a schedule. If the schedule is new, it
	// stores first as its next run.
	NextRun(ctx context.Context, schedule string, first time.Time) (Run, error)
	// Advance moves a schedule from the run time due to next. It returns ErrLost if
	// another gateway has moved it or the schedule is unknown; NextRun returns the
	// current run times.
	Advance(ctx context.Context, schedule string, due, next time.Time) error
}

// Run has the run times of a schedule.
type Run struct {
	Last time.Time // the last run time; zero if it never ran
	Next time.Time
}
