package sqlite

import (
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// TestClockSetBack opens a store whose tasks were stored while the clock was ten
// minutes ahead.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	settled(t, s, newTask("a.test:443"), "result")
	var delayed string
	for _, at := range []time.Time{{}, time.Now().Add(time.Hour)} {
		rec := newTask("")
		rec.Queue, rec.Request, rec.NextAttemptAt = "q", new(task.Request), at
		id, _, err := s.Enqueue(t.Context(), rec, nil, engine.EnqueueOptions{})
		must(t, err)
		delayed = id
	}
	const ahead = int64(10 * time.Minute)
	must(t, s.update(t.Context(), func(t *tx) error {
		t.exec("UPDATE task SET seq = seq + ?1, since = since + ?1", ahead)
		t.exec("UPDATE task SET at = at + ?", ahead)
		return nil
	}))
	closeTest(t, s)
	s = openTest(t, Config{Folder: s.cfg.Folder})
	takeOne(t, s, "a.test:443")
	jobs, err := s.Jobs("q").Next(t.Context(), 10, 1)
	must(t, err)
	if len(jobs) != 1 || jobs[0].Record.ID == delayed {
		t.Errorf("ready are %d jobs", len(jobs))
	}
}
