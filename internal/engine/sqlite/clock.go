package sqlite

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// clock detects that the system's clock was set or that the machine slept.
type clock struct{ seen time.Time }

// step returns by how much the clock was set since seen, and sets seen to the current
// time.
func (c *clock) step() time.Duration {
	before := c.seen
	c.seen = time.Now()
	return c.seen.Round(0).Sub(before.Round(0)) - c.seen.Sub(before) // the change on the wall clock less the elapsed time
}

// minStep is the smallest step that counts. A smaller step only delays due tasks a
// little.
const minStep = time.Second

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
		q.ready(len(q.waiters))
	}
	s.passed = passed{}
	s.wakeDue()
}

// redate corrects times that were stored before the clock was set back. It makes jobs
// without a start time and first deliveries due.
func (t *tx) redate() error {
	err := t.exec("UPDATE task SET at = ?1 WHERE seq > ?1 AND state = 0 AND at <= since", t.now)
	if err != nil {
		return err
	}
	return t.exec("UPDATE task INDEXED BY task_since SET at = ?1 WHERE state = 2 AND state >= 2 AND holder IS NULL AND since > ?1 AND at <= since", t.now)
}
