package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	apply   func(*tx) error
	patient bool     // nobody waits for it; see patience
	lease   *lease   // that it ends, or nil
	files   []string // of bodies that it refers to
	err     error
}

// batch is a group of operations that are committed together.
type batch struct {
	ops    []op
	urgent bool          // it has an operation that is not patient
	done   chan struct{} // closed once all operations have their err
}

// patience is how long a patient operation waits for an urgent one to be committed with:
// a commit of its own would delay later operations by its fsync.
const patience = 10 * time.Millisecond

// update applies a change and returns once it is stored. If apply returns an error, it has
// changed nothing. If ctx ends before the commit has begun, update withdraws the change.
// Once the commit has begun, update waits for it, so that the outcome is known. If the
// change is not stored, the files of bodies are removed.
func (s *store) update(ctx context.Context, apply func(*tx) error, files ...string) error {
	return s.commitOp(ctx, op{apply: apply, files: files})
}

// commitOp is like update, for an operation.
func (s *store) commitOp(ctx context.Context, o op) error {
	s.batchMu.Lock()
	if err := s.usable(ctx); err != nil {
		s.batchMu.Unlock()
		s.bodies.drop(o.files...)
		return err
	}
	if s.batch == nil {
		s.batch = &batch{done: make(chan struct{})}
	}
	b, i := s.batch, len(s.batch.ops)
	b.ops = append(b.ops, o)
	switch {
	case !o.patient && !b.urgent:
		b.urgent = true
		wake(s.wake)
	case i == 0:
		s.patience.Reset(patience)
	}
	s.batchMu.Unlock()
	select {
	case <-b.done:
		return b.ops[i].err
	case <-ctx.Done():
	}
	s.batchMu.Lock()
	withdrawn := s.batch == b
	if withdrawn {
		b.ops[i] = op{apply: func(*tx) error { return nil }}
	}
	s.batchMu.Unlock()
	if withdrawn {
		s.bodies.drop(o.files...)
		return fmt.Errorf("%w: waiting for the commit: %w", engine.ErrUnavailable, ctx.Err())
	}
	<-b.done
	return b.ops[i].err
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
		case <-s.patience.C:
		case <-again:
			_ = s.overwrite() // retried later
			continue
		case <-s.life.Done():
		}
		// This lets callers that are about to append run first. Two calls suffice;
		// sleeping longer is slower.
		runtime.Gosched()
		runtime.Gosched()
		s.batchMu.Lock()
		b, closing := s.batch, s.isClosing()
		s.batch = nil
		s.batchMu.Unlock()
		if b != nil {
			s.commit(b.ops)
			close(b.done)
			s.checkpoint()
			s.measure()
		} else if closing {
			return
		}
	}
}

// commit applies operations in one transaction and sets their errors.
func (s *store) commit(ops []op) {
	t, err := s.transact(ops)
	if err != nil {
		err = s.explain(err)
	}
	for i := range ops {
		o := &ops[i]
		if o.err = cmp.Or(err, o.err); o.err != nil {
			s.bodies.drop(o.files...)
		}
	}
	if err != nil {
		return
	}
	s.mu.Lock()
	t.publish()
	s.mu.Unlock()
	s.bodies.drop(t.unneeded...)
	if s.cfg.Sync == 0 || s.cfg.skips == skipRetire {
		s.bodies.collect(s.bodies.garbage())
	}
}

// apply commits one operation. Only the goroutine that owns the writer may call it.
func (s *store) apply(f func(*tx) error) error {
	ops := []op{{apply: f}}
	s.commit(ops)
	return ops[0].err
}

// transact applies operations in one transaction. After an error, nothing is stored.
func (s *store) transact(ops []op) (_ *tx, err error) {
	t := &tx{conn: s.writer, s: s, now: time.Now().UnixNano(), counts: map[counter]int64{}}
	if s.stale {
		if err := s.overwrite(); err != nil {
			return t, err
		}
	}
	t.exec("BEGIN IMMEDIATE")
	for i := range ops {
		o := &ops[i]
		if o.err = o.apply(t); o.err == nil && o.lease != nil {
			t.ended = append(t.ended, o.lease)
		}
	}
	t.flush()
	// Files that are moved later take this commit with them, like those before it.
	if err = cmp.Or(t.failed(), s.present()); err == nil {
		t.exec("COMMIT")
		err = t.failed()
		s.stale = err != nil
	}
	if err != nil {
		s.rollback()
		if s.stale {
			_ = s.overwrite() // retried later
		}
		return t, fmt.Errorf("committing: %w", err)
	}
	s.broken.Store(nil)
	return t, nil
}

func (s *store) rollback() {
	s.cache.reset() // it has changes that are rolled back
	if !s.writer.GetAutocommit() {
		if err := s.writer.Exec("ROLLBACK"); err != nil {
			s.log.Error("rolling back failed", zap.Error(err))
		}
	}
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
	err := s.writer.Exec(`BEGIN IMMEDIATE; INSERT INTO meta(name, value) VALUES ('overwritten', x'01')
		ON CONFLICT(name) DO UPDATE SET value = CASE value WHEN x'01' THEN x'02' ELSE x'01' END; COMMIT`)
	if err != nil {
		s.rollback()
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

// explain converts an error of SQLite or of the file system to one that callers can
// compare.
func (s *store) explain(err error) error {
	var code sqlite3.ExtendedErrorCode
	ok := errors.As(err, &code)
	switch {
	case !ok && !errors.As(err, new(*fs.PathError)):
		return err
	case errors.Is(err, sqlite3.FULL):
		return fmt.Errorf("%w: %w", engine.ErrFull, err)
	case errors.Is(err, sqlite3.TOOBIG):
		return fmt.Errorf("%w: %w", engine.ErrTooLarge, err)
	case ok && isDamage(code):
		return s.reportDamage(err)
	}
	return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
}

func isDamage(code sqlite3.ExtendedErrorCode) bool {
	primary := sqlite3.ErrorCode(code)
	return primary == sqlite3.CORRUPT || primary == sqlite3.NOTADB ||
		code == sqlite3.IOERR_DATA || code == sqlite3.IOERR_CORRUPTFS
}

// reportDamage logs once that the database is damaged. From then on, new tasks are
// refused.
func (s *store) reportDamage(err error) error {
	err = fmt.Errorf("%w: %s is damaged; stop Caddy and run `caddy callback repair` to salvage what can be read: %w",
		engine.ErrUnavailable, s.file, err)
	if s.trouble.CompareAndSwap(nil, &err) {
		s.log.Error("store is damaged", zap.String("file", s.file), zap.String("salvage", "caddy callback repair"), zap.Error(err))
	}
	return err
}

const (
	// checkpointPages is the number of log pages that triggers a checkpoint. A longer
	// log causes longer pauses.
	checkpointPages = 1000
	// maxLogPages is the log size at which the writer waits for readers so that the log
	// can restart: 64 MiB.
	maxLogPages = 64 << 20 / pageSize
)

// checkpoint copies the log to the database if the log is long enough.
func (s *store) checkpoint() {
	if s.logPages < s.cfg.checkpointPages || s.stale {
		return
	}
	mode := sqlite3.CHECKPOINT_PASSIVE
	if s.logPages > maxLogPages {
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
