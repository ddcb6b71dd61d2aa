package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

const (
	// minReserve is the free disk space below which new tasks are refused. With no free
	// space, nearly all updates and deletes fail too.
	minReserve = 32 << 20
	// measureInterval is the maximum age of the measurements that admission uses.
	measureInterval = 20 * time.Millisecond
	// minGrowth is how much a crowded store grows, in bytes, before maintenance looks
	// again for what can be evicted. Its own commits must not wake it.
	minGrowth = 256 << 10
)

// room is the used and the available space, in bytes. The writer measures the database,
// and any goroutine the rest.
type room struct {
	max      int64
	database atomic.Int64 // live pages
	spare    atomic.Int64 // free pages of the database; it does not shrink
	log      atomic.Int64
	bodies   atomic.Int64  // files of bodies
	free     atomic.Int64  // of the disk
	seen     atomic.Int64  // the least used space since maintenance last began
	wake     chan struct{} // wakes maintenance
	evicting sync.Mutex
}

func (r *room) used() int64 { return r.database.Load() + r.log.Load() + r.bodies.Load() }

// check returns an error that wraps ErrFull if there is no room for n more bytes.
func (r *room) check(n int64) error {
	if used := r.used(); used+n > r.max {
		return fmt.Errorf("%w: it uses %d of %d bytes", engine.ErrFull, used, r.max)
	}
	if left, reserve := r.left(); left-n < reserve {
		return fmt.Errorf("%w: its disk has %d bytes left, of which %d are kept in reserve", engine.ErrFull, left, reserve)
	}
	return nil
}

// left returns how many bytes can still be written, and how many of them are the
// reserve. Free pages within the database count: otherwise a disk that tasks have
// filled would stay full forever. Half of the reserve must be on the disk itself, for
// the log.
func (r *room) left() (left, reserve int64) {
	reserve = max(minReserve, 2*r.log.Load())
	return r.free.Load() + min(r.spare.Load(), reserve/2), reserve
}

// crowded reports whether results should be evicted. This is the case a little before
// there is no room.
func (r *room) crowded() bool {
	left, reserve := r.left()
	return r.used() > r.max/20*19 || left < reserve*5/4
}

// pagesHelp reports whether freeing pages makes room. On a disk that others fill, only
// removing files does.
func (r *room) pagesHelp() bool {
	_, reserve := r.left()
	return r.used() > r.max/20*19 || r.free.Load() >= reserve/2 && r.spare.Load() < reserve/2
}

// measure measures the used space. It wakes maintenance if the store is crowded and has
// grown. Only the writer calls it.
func (s *store) measure() {
	now := time.Now()
	if now.Sub(s.measured) < measureInterval {
		return
	}
	s.measured = now
	pages, _ := s.writer.number("PRAGMA page_count")
	free, _ := s.writer.number("PRAGMA freelist_count")
	if s.writer.failed() != nil {
		return // the next commit reports it
	}
	s.room.database.Store((pages - free) * pageSize)
	s.room.spare.Store(free * pageSize)
	s.measureDisk()
	used, seen := s.room.used(), s.room.seen.Load()
	if s.room.crowded() && used >= seen+minGrowth {
		wake(s.room.wake)
	}
	s.room.seen.Store(min(used, seen))
}

// measureDisk measures the space that can change without a commit.
func (s *store) measureDisk() {
	if info, err := os.Stat(s.file + "-wal"); err == nil {
		s.room.log.Store(info.Size())
	}
	free, err := s.cfg.free(s.cfg.Folder)
	if err != nil {
		free = 1 << 62 // if the disk is full, a write fails
	}
	s.room.free.Store(free)
}

// admit returns an error if there is no room for a new task of n bytes. It first evicts
// what need not be kept.
func (s *store) admit(ctx context.Context, n int64) error {
	if err := s.usableForNew(); err != nil {
		return err
	}
	return s.makeRoom(ctx, n)
}

// makeRoom evicts until there is room for n more bytes. It returns an error that wraps
// ErrFull if there is none.
func (s *store) makeRoom(ctx context.Context, n int64) error {
	if s.room.check(n) == nil {
		return nil
	}
	s.measureDisk()
	err := s.room.check(n)
	if err != nil && s.evict(ctx, func() bool { return s.room.check(n) == nil }) == nil {
		err = s.room.check(n)
	}
	return err
}

// checkQuota returns an error if the store is filling up and the task's destination has
// used its share.
func (t *tx) checkQuota(domain string) error {
	if domain == "" {
		return nil
	}
	limit := t.s.room.max
	if t.s.room.used() <= limit/2 {
		return nil
	}
	if bytes, _ := t.number("SELECT bytes FROM domain WHERE name = ?", domain); bytes > limit/4 {
		return fmt.Errorf("%w: callbacks to %s use %d of %d bytes", engine.ErrQuota, domain, bytes, limit)
	}
	return nil
}

// identify records which files are open.
func (s *store) identify() error {
	// The first read or write creates the log. The umask determines its mode.
	for i, name := range []string{s.file, s.file + "-wal"} {
		if err := os.Chmod(name, 0o600); err != nil {
			return fmt.Errorf("protecting the database's files: %w", err)
		}
		info, err := os.Stat(name)
		if err != nil {
			return fmt.Errorf("finding the database's files: %w", err)
		}
		s.files[i] = info
	}
	if err := os.Chmod(s.file+"-shm", 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("protecting the database's files: %w", err)
	}
	return nil
}

// present returns an error that wraps ErrUnavailable if the open files are not those
// that the next process would open: writes to them would be lost.
func (s *store) present() error {
	for i, name := range []string{s.file, s.file + "-wal"} {
		if s.files[i] == nil {
			continue // it is being opened
		}
		info, err := os.Stat(name)
		if err == nil && os.SameFile(info, s.files[i]) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // if the disk is failing, the next write reports it
		}
		gone := fmt.Errorf("%w: %s was moved or deleted while it was open", engine.ErrUnavailable, name)
		if s.away.Swap(&gone) == nil {
			s.log.Error("store was moved or deleted", zap.String("file", name))
		}
		return gone
	}
	if s.away.Swap(nil) != nil {
		s.log.Info("store is back", zap.String("file", s.file))
	}
	return nil
}

// watch checks the files and the clock every second, and syncs the log at the
// configured interval.
func (s *store) watch() {
	check := time.NewTicker(time.Second)
	defer check.Stop()
	var syncs <-chan time.Time
	failing := false // a repeated failure is logged once
	if s.cfg.Sync > 0 {
		ticker := time.NewTicker(s.cfg.Sync)
		defer ticker.Stop()
		syncs = ticker.C
	}
	for last := s.opened; ; {
		select {
		case <-s.life.Done():
			return
		case <-check.C:
			_ = s.present() // logs its error
			now := time.Now()
			// The change on the wall clock, less the elapsed time. A smaller step only
			// delays due tasks a little.
			if step := now.Round(0).Sub(last.Round(0)) - now.Sub(last); step.Abs() >= time.Second {
				s.clockSet(step)
			}
			last = now
			s.measureDisk()
			if s.room.crowded() {
				wake(s.room.wake)
			}
		case <-syncs:
			err := s.syncLog()
			if err != nil && !failing {
				s.log.Error("syncing the store failed; tasks that were accepted may be lost if the power fails", zap.Error(err))
			}
			failing = err != nil
		}
	}
}

// clockSet looks again for due tasks after the clock was set.
func (s *store) clockSet(step time.Duration) {
	s.log.Warn("clock was set", zap.Duration("by", step))
	if step < 0 {
		if err := s.update(context.Background(), (*tx).redate); err != nil && !s.isClosing() {
			s.log.Warn("looking for what is due after the clock was set failed", zap.Error(err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		wake(q)
	}
	s.passed, s.nextDue = passed{}, 0
	wake(s.dueWake)
}

// redate corrects times that were stored before the clock was set back. It makes jobs
// without a start time and first deliveries due.
func (t *tx) redate() error {
	t.exec("UPDATE task SET at = ?1 WHERE seq > ?1 AND state = 0 AND at <= since", t.now)
	t.exec("UPDATE task INDEXED BY task_since SET at = ?1 WHERE state = 2 AND state >= 2 AND holder IS NULL AND since > ?1 AND at <= since", t.now)
	return nil
}
