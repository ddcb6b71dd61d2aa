package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A Lease is the right to decide a task's verdict. It is renewed on its own
// until it is settled, released or lost. Its stream sequence is the fencing
// token: whoever knows the last one holds the task.
type Lease struct {
	engine *Engine
	rec    task.Record
	body   []byte // stored with rec
	// request is the body of a queue's task, for when it runs again.
	request []byte
	lapse   string // the subject that the lease turns into if it lapses
	copy    uint64 // the sequence of the waiting task that it was claimed on; 0 if none waited
	lost    func()

	mu      sync.Mutex
	seq     uint64
	renewed time.Time // when what the server has of it was sent
	timer   *time.Timer
	over    bool
}

// Claim takes the task that rec names. rec is what is delivered if the holder
// dies: it must carry the verdict of that case. lost is called, once and from
// any goroutine, if the lease turns out to be somebody else's: the work should
// stop, its result counts for nothing. Claim returns ErrHeld if somebody holds
// the task already.
func (e *Engine) Claim(ctx context.Context, rec task.Record, lost func()) (*Lease, error) {
	l := &Lease{
		engine: e,
		rec:    rec,
		lapse:  dueSubject + hostToken(rec.CallbackHost) + "." + rec.ID,
		lost:   lost,
	}
	if err := l.claim(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// claim takes the lease, if nobody has it.
func (l *Lease) claim(ctx context.Context) error {
	l.mu.Lock() // the timer may fire before it is assigned
	defer l.mu.Unlock()
	switch err := l.store(ctx); {
	case errors.Is(err, ErrLost):
		return ErrHeld
	case err != nil:
		return err
	}
	l.engine.leases.Store(l.rec.ID, l)
	l.timer = time.AfterFunc(l.engine.cfg.LeaseTime/3, l.renew)
	return nil
}

func (l *Lease) subject() string { return leaseSubject + l.rec.ID }

func (l *Lease) step(seq uint64) step {
	return step{
		subject: l.subject(), rec: &l.rec, body: l.body,
		at: time.Now().Add(l.engine.cfg.LeaseTime), target: l.lapse,
		fence: l.subject(), seq: seq, copy: l.copy,
	}
}

// store writes the lease, which lapses a lease time from now. Caller holds l.mu.
func (l *Lease) store(ctx context.Context) error {
	sent := time.Now()
	seq, err := l.engine.publish(ctx, l.step(l.seq))
	if err == nil {
		l.seq, l.renewed = seq, sent
	}
	return err
}

// renew puts the lapse off by another lease time. A failure is tried again
// soon: the engine may be away for a moment.
func (l *Lease) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.engine
	if l.over || e.closing.Err() != nil {
		return // settled, or left to lapse
	}
	err := l.store(context.Background())
	next := e.cfg.LeaseTime / 3
	switch {
	case err == nil:
	case errors.Is(err, ErrLost):
		// Either it lapsed, or an earlier renewal was stored and its
		// acknowledgement was lost.
		own, err := l.reread(context.Background())
		if err != nil || own {
			next = 0
			break
		}
		l.end()
		l.sayLost()
		go l.lost() // it may want to settle, which waits for us
		return
	default:
		// That the engine cannot store is said once, not by every lease.
		e.log.Debug("lease not renewed", zap.String("task_id", l.rec.ID), zap.Error(err))
		next = e.cfg.LeaseTime / 10
	}
	l.timer.Reset(next)
}

// reread looks up who holds the lease. If the message on the lease's subject
// is a renewal of our own, it takes over its sequence and reports true. Caller
// holds l.mu.
func (l *Lease) reread(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	msg, err := l.engine.link().live.GetLastMsgForSubject(ctx, l.subject())
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("looking up the lease of task %s: %w", l.rec.ID, err)
	}
	rec, _, err := unframe(msg.Data)
	if err != nil {
		return false, err
	}
	own := rec.StartedAt.Equal(l.rec.StartedAt)
	if own {
		l.seq = msg.Sequence
	}
	return own, nil
}

// Settle records the task's verdict and its result and gives up the lease, in
// one step: from then on the callback is owed. held says that the host's turn
// is waited for in its lane. It returns ErrLost if another verdict stands.
//
// Any other error means that the step was not acknowledged; Settle may then be
// called again with the same record. If the step was stored all the same, that
// call returns ErrLost: the verdict which stands is this one.
func (l *Lease) Settle(ctx context.Context, rec *task.Record, body []byte, held bool) error {
	subject := dueSubject
	if held {
		subject = heldSubject
	}
	err := l.leave(ctx, step{subject: subject + hostToken(rec.CallbackHost) + "." + rec.ID, rec: rec, body: body})
	if err == nil && l.rec.Blob != "" {
		l.engine.dropBlob(ctx, l.rec.Blob) // the request's; the result has its own
	}
	if err == nil && rec.Queue != "" {
		l.engine.announce(endedNote, rec.ID)
	}
	return err
}

// Drop gives up the lease without a verdict, as if the task had never been
// claimed.
func (l *Lease) Drop(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return ErrLost
	}
	l.end()
	if err := l.engine.link().live.DeleteMsg(ctx, l.seq); err != nil {
		return fmt.Errorf("dropping the lease of task %s: %w", l.rec.ID, err)
	}
	return nil
}

// abandon leaves the lease to lapse.
func (l *Lease) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
}

// leave carries out s and gives up the lease in one step.
func (l *Lease) leave(ctx context.Context, s step) error {
	if l.isOver() {
		return ErrLost
	}
	// The lease is renewed meanwhile: a large result may be long in being stored.
	s, err := l.engine.putApart(ctx, s)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return ErrLost
	}
	for {
		err := l.makeSure(ctx)
		if err == nil {
			s.fence, s.seq, s.purge = l.subject(), l.seq, true
			_, err = l.engine.publish(ctx, s)
		}
		if errors.Is(err, ErrLost) {
			// As in renew: our own renewal may have been stored unacknowledged.
			if own, ownErr := l.reread(ctx); ownErr != nil {
				return ownErr
			} else if own {
				continue
			}
			l.end()
			l.sayLost()
			return ErrLost
		}
		if err == nil {
			l.end()
		}
		return err
	}
}

// makeSure renews a lease that may have lapsed, as after a pause of this process or
// a step of the clock, and waits a moment. The server looks which leases have lapsed
// and stores what they lapse into after that, without looking again: in place of
// what was settled in between. It ends the lease in the same step, also one that was
// renewed meanwhile, and then the fence tells. Caller holds l.mu.
func (l *Lease) makeSure(ctx context.Context) error {
	now := time.Now()
	// By either clock: one stands still while the machine sleeps, the other is set.
	age := max(now.Sub(l.renewed), now.Round(0).Sub(l.renewed.Round(0)))
	if age < l.engine.cfg.LeaseTime*3/4 {
		return nil
	}
	if err := l.store(ctx); err != nil {
		return err
	}
	select {
	case <-time.After(l.engine.cfg.LeaseTime / lapseParts):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lapseParts is the part of the lease time that the server is given between looking
// which leases have lapsed and storing that: a second of thirty. It takes a
// millisecond, or as long as a cluster takes to agree.
const lapseParts = 30

func (l *Lease) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func (l *Lease) sayLost() { l.engine.log.Warn("lease lost", zap.String("task_id", l.rec.ID)) }

// end stops the renewals. Caller holds l.mu.
func (l *Lease) end() {
	l.over = true
	l.timer.Stop()
	l.engine.leases.CompareAndDelete(l.rec.ID, l)
}
