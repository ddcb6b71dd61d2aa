package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// This file implements group commit. Callers append operations to the current batch.
// One goroutine applies the batch in one transaction, and answers all callers after the
// commit.

// op is one operation.
type op struct {
	apply func(*tx) error
	// read is set for an operation that only reads, on a system where the writer's
	// connection is the only one. It runs outside of a transaction.
	read func(*conn) error

	// done is closed once err and stored are set. It is nil if the operation was not
	// started.
	done   <-chan struct{}
	err    error
	stored bool // may be set even if err is not nil
}

// batch is a group of operations that are committed together.
type batch struct {
	ops  []*op
	done chan struct{} // closed once all operations have their err
}

// update applies a change and returns once it is stored. It may call apply again if the
// batch failed because of another operation. apply therefore makes changes outside of
// the database only in tx.after. update returns the error of apply, unless the error is
// SQLite's.
func (s *store) update(ctx context.Context, apply func(*tx) error) error {
	return s.submit(ctx, &op{apply: apply})
}

// updateOrUndo is update for a change whose outcome the caller must know. If the change
// was stored but update returns an error, it calls undo.
func (s *store) updateOrUndo(ctx context.Context, apply func(*tx) error, undo func()) error {
	o := &op{apply: func(t *tx) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return apply(t)
	}}
	err := s.submit(ctx, o)
	if err != nil && o.done != nil {
		go func() {
			if <-o.done; o.stored {
				undo()
			}
		}()
	}
	return err
}

// submit passes an operation to the writer and waits for its outcome.
func (s *store) submit(ctx context.Context, o *op) error {
	if err := s.begin(ctx, o); err != nil {
		return err
	}
	if err := o.wait(ctx); err != nil {
		return err
	}
	return o.err
}

// wait waits for the outcome of the operation.
func (o *op) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: waiting for the commit: %w", engine.ErrUnavailable, ctx.Err())
	}
}

func (s *store) begin(ctx context.Context, o *op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.batchMu.Lock()
	if s.closing {
		s.batchMu.Unlock()
		return errClosed
	}
	if s.batch == nil {
		s.batch = &batch{done: make(chan struct{})}
	}
	b := s.batch
	b.ops = append(b.ops, o)
	o.done = b.done
	first := len(b.ops) == 1
	s.batchMu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// write is the goroutine that owns the writing connection.
func (s *store) write() {
	defer close(s.written)
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		var again <-chan time.Time
		if s.stale {
			retry.Reset(overwriteInterval)
			again = retry.C
		}
		select {
		case <-s.wake:
		case <-again:
			_ = s.overwrite() // retried later
			continue
		case <-s.stop:
		}
		// This lets callers that are about to append run first. Two calls suffice;
		// sleeping longer is slower.
		runtime.Gosched()
		runtime.Gosched()
		s.batchMu.Lock()
		b, closing := s.batch, s.closing
		s.batch = nil
		s.batchMu.Unlock()
		if b != nil {
			s.commit(b)
			s.checkpoint()
			s.measure()
		} else if closing {
			return
		}
	}
}

// commit commits a batch and answers its callers.
func (s *store) commit(b *batch) {
	defer close(b.done)
	var changing []*op
	for _, o := range b.ops {
		if o.read != nil {
			o.err = o.read(s.writer)
		} else {
			changing = append(changing, o)
		}
	}
	if len(changing) == 0 {
		return
	}
	t, err := s.transact(changing)
	if err != nil && len(changing) > 1 && !isEnvironment(err) {
		// SQLite refuses one of the operations. Each is committed alone, so that the
		// others succeed.
		for _, o := range changing {
			t, err := s.transact([]*op{o})
			s.finish(t, []*op{o}, err)
		}
		return
	}
	s.finish(t, changing, err)
}

// finish applies the effects of a committed transaction in memory.
func (s *store) finish(t *tx, ops []*op, err error) {
	if err != nil {
		err = s.explain(err)
	}
	for _, o := range ops {
		o.stored = t.committed && o.err == nil
		o.err = cmp.Or(err, o.err)
	}
	if !t.committed {
		s.bodies.discard(t.stored)
		return
	}
	s.mu.Lock()
	t.publish()
	s.mu.Unlock()
	s.removeSynced(t.unneeded)
}

// transact applies operations in one transaction. After an error nothing is stored.
func (s *store) transact(ops []*op) (_ *tx, err error) {
	t := &tx{conn: s.writer, s: s, now: time.Now().UnixNano()}
	if err := s.present(); err != nil {
		return t, err
	}
	if s.stale {
		if err := s.overwrite(); err != nil {
			return t, err
		}
	}
	if err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return t, fmt.Errorf("beginning a transaction: %w", err)
	}
	for _, o := range ops {
		o.err = o.apply(t)
		if _, refused := codeOf(o.err); refused {
			s.rollback(t)
			return t, o.err
		}
	}
	if err = t.flush(); err == nil {
		err = t.exec("COMMIT")
		if err != nil {
			s.stale = true
		}
	}
	if err != nil {
		s.rollback(t)
		if s.stale {
			_ = s.overwrite() // retried later
		}
		return t, fmt.Errorf("committing: %w", err)
	}
	s.stale, t.committed = false, true
	s.broken.Store(nil)
	// A commit is lost if it went into a file that the next process does not open.
	return t, s.present()
}

func (s *store) rollback(t *tx) {
	if !s.writer.GetAutocommit() {
		if err := t.exec("ROLLBACK"); err != nil {
			s.log.Error("rolling back failed", zap.Error(err))
		}
	}
	t.undo()
}

// overwriteInterval is how often a failed overwrite is retried.
const overwriteInterval = 200 * time.Millisecond

// overwrite commits a transaction of its own over a failed commit. If an fsync fails, the
// frames of its commit are complete in the log. The recovery after a crash would find
// them, and a refused task would exist. The next commit writes to the same place in the
// log.
func (s *store) overwrite() error {
	if s.cfg.skips == skipOverwrite {
		s.stale = false
		return nil
	}
	err := s.writer.exec("BEGIN IMMEDIATE")
	if err == nil {
		err = s.writer.exec(`INSERT INTO meta(name, value) VALUES ('overwritten', x'01')
			ON CONFLICT(name) DO UPDATE SET value = CASE value WHEN x'01' THEN x'02' ELSE x'01' END`)
		if err == nil {
			err = s.writer.exec("COMMIT")
		}
		if err != nil && !s.writer.GetAutocommit() {
			_ = s.writer.exec("ROLLBACK") // the error of the commit is reported
		}
	}
	s.stale = err != nil
	if err == nil {
		s.broken.Store(nil)
		return nil
	}
	err = fmt.Errorf("overwriting a commit that failed: %w", err)
	explained := s.explain(err)
	s.broken.Store(&explained)
	return err
}

// isEnvironment reports whether the disk caused an error, rather than a statement.
func isEnvironment(err error) bool {
	code, ok := codeOf(err)
	if !ok {
		return true
	}
	switch sqlite3.ErrorCode(code) {
	case sqlite3.CONSTRAINT, sqlite3.TOOBIG, sqlite3.MISMATCH, sqlite3.ERROR, sqlite3.RANGE:
		return false
	}
	return true
}

// explain converts an error of SQLite to one that callers can compare.
func (s *store) explain(err error) error {
	code, ok := codeOf(err)
	if !ok {
		return err
	}
	switch {
	case sqlite3.ErrorCode(code) == sqlite3.FULL:
		return fmt.Errorf("%w: %w", engine.ErrFull, err)
	case sqlite3.ErrorCode(code) == sqlite3.TOOBIG:
		return fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
	case isDamage(code):
		return s.reportDamage(err)
	}
	return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
}

// codeOf returns the SQLite code of an error. ok is false if the error is not SQLite's.
func codeOf(err error) (code sqlite3.ExtendedErrorCode, ok bool) {
	ok = errors.As(err, &code)
	return code, ok
}

func isDamage(code sqlite3.ExtendedErrorCode) bool {
	primary := sqlite3.ErrorCode(code)
	return primary == sqlite3.CORRUPT || primary == sqlite3.NOTADB ||
		code == sqlite3.IOERR_DATA || code == sqlite3.IOERR_CORRUPTFS
}

// damaged returns the error of a database that cannot be read.
func damaged(file string, err error) error {
	return fmt.Errorf("%w: %s is damaged; stop Caddy and run `caddy callback repair` to salvage what can be read: %w",
		engine.ErrUnavailable, file, err)
}

// reportDamage logs once that the database is damaged. From then on, new tasks are
// refused.
func (s *store) reportDamage(err error) error {
	err = damaged(s.file, err)
	if s.trouble.CompareAndSwap(nil, &err) {
		s.log.Error("store is damaged", zap.String("file", s.file), zap.String("salvage", "caddy callback repair"), zap.Error(err))
	}
	return err
}

const (
	// checkpointPages is the number of log pages that triggers a checkpoint. A longer
	// log causes longer pauses.
	checkpointPages = 1000
	// maxLogPages is the log size at which readers are interrupted so that the log can
	// restart: 64 MiB.
	maxLogPages = 64 << 20 / pageSize
)

// checkpoint copies the log to the database if the log is long enough.
func (s *store) checkpoint() {
	if s.logPages < s.cfg.checkpointPages || s.stale {
		return
	}
	mode := sqlite3.CHECKPOINT_PASSIVE
	if s.logPages > maxLogPages {
		s.interruptReaders()
		mode = sqlite3.CHECKPOINT_RESTART
	}
	pages, moved, err := s.writer.WALCheckpoint("main", mode)
	if err != nil && !errors.Is(err, sqlite3.BUSY) {
		s.log.Warn("checkpoint failed", zap.Error(err))
		return
	}
	if pages == moved {
		s.logPages = 0 // the next commit starts at the beginning of the log
	}
}
