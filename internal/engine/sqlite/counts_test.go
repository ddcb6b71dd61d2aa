package sqlite

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// checkCounts compares what is counted in memory with what is stored.
func checkCounts(t *testing.T, s *store) {
	t.Helper()
	rows := func(c *conn, query string) map[int64]int64 {
		m := map[int64]int64{}
		must(t, c.query(query, nil, func(r *sqlite3.Stmt) bool {
			m[r.ColumnInt64(0)] = r.ColumnInt64(1)
			return true
		}))
		return m
	}
	same := func(name string, id, got, want int64) {
		t.Helper()
		if got != want {
			t.Errorf("%s of %d: %d are counted, %d stored", name, id, got, want)
		}
	}
	must(t, s.read(t.Context(), func(c *conn) error {
		tasks := rows(c, "SELECT state, count(*) FROM task GROUP BY state")
		waiting := rows(c, "SELECT queue, count(*) FROM task WHERE state = 0 GROUP BY queue")
		busy := rows(c, "SELECT queue, count(*) FROM task WHERE state = 1 GROUP BY queue")
		pending := rows(c, "SELECT host, count(*) FROM task WHERE state = 2 GROUP BY host")
		trusted := rows(c, "SELECT host, sum(trusted) FROM task WHERE state = 2 GROUP BY host")
		sizes := rows(c, "SELECT domain, sum(size) FROM task WHERE domain IS NOT NULL GROUP BY domain")
		s.mu.Lock()
		defer s.mu.Unlock()
		for state, n := range s.counts {
			same("tasks in state", int64(state), n, tasks[int64(state)])
		}
		for id, q := range s.queues {
			same("queued", id, q.queued, waiting[id])
			same("running", id, q.running, busy[id])
		}
		for id, h := range s.hosts {
			same("pending", id, h.pending, pending[id])
			same("trusted", id, h.trusted, trusted[id])
		}
		for id, n := range rows(c, "SELECT id, bytes FROM domain") {
			same("bytes of domain", id, n, sizes[id])
		}
		wrong, _, err := c.number(`SELECT count(*) FROM task t JOIN record r ON r.seq = t.seq
			WHERE t.size <> length(r.doc) + coalesce(length(t.progress), 0) + coalesce(t.request, 0) + coalesce(t.result, 0)`)
		same("sizes that are wrong", 0, wrong, 0)
		return err
	}))
}

// TestCountsAreWhatIsStored takes random steps.
func TestCountsAreWhatIsStored(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	var ids []string
	hosts := []string{"a.test:443", "b.test:443", "c.test:443"}
	for range 400 {
		host := hosts[rand.IntN(len(hosts))]
		rec := newTask(host)
		rec.CallbackDomain = strings.TrimSuffix(host, ":443")
		rec.Callback.Trusted = rand.IntN(2) == 0
		switch rand.IntN(6) {
		case 0:
			settled(t, s, rec, "result")
			ids = append(ids, rec.ID)
		case 1:
			rec.Queue = []string{"q", "r"}[rand.IntN(2)]
			rec.Request = &task.Request{}
			_, _, err := s.Enqueue(t.Context(), rec, strings.NewReader("body"), engine.EnqueueOptions{})
			must(t, err)
			ids = append(ids, rec.ID)
		case 2:
			q := s.queueNames["q"]
			if q == nil || q.queued == 0 {
				continue
			}
			jobs, err := s.Jobs("q").Next(t.Context(), 1, 3)
			must(t, err)
			j := jobs[0]
			j.Record.Status = task.Failed
			must(t, []func() error{
				func() error { return j.Lease.Release(t.Context()) },
				func() error { return j.Lease.Requeue(t.Context(), j.Record, time.Time{}) },
				func() error { return j.Lease.Settle(t.Context(), j.Record, nil) },
			}[rand.IntN(3)]())
		case 3:
			taken, err := s.Take(t.Context(), host, 2)
			must(t, err)
			for _, d := range taken {
				d.Record().AddAttempt(task.Attempt{Error: "refused"})
				must(t, []func() error{
					func() error { return d.Done(t.Context()) },
					func() error { return d.Dead(t.Context()) },
					func() error { return d.Release(t.Context()) },
					func() error { return d.Retry(t.Context(), time.Now()) },
				}[rand.IntN(4)]())
			}
		default:
			if len(ids) == 0 {
				continue
			}
			kind := engine.ActionKind(rand.IntN(5))
			err := s.Act(t.Context(), ids[rand.IntN(len(ids))], engine.Action{Kind: kind, Reason: "canceled"})
			if err != nil && !errors.Is(err, engine.ErrEnded) && !errors.Is(err, engine.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	checkCounts(t, s)
	closeTest(t, s)
	checkCounts(t, openTest(t, Config{Folder: s.cfg.Folder, holder: 1}))
}
