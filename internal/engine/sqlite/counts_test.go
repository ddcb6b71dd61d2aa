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

// checkCounts compares the counts in memory with the database.
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
		queuedIn := rows(c, "SELECT queue, count(*) FROM task WHERE state = 0 GROUP BY queue")
		busy := rows(c, "SELECT queue, count(*) FROM task WHERE state = 1 GROUP BY queue")
		held := rows(c, "SELECT host, count(*) FROM task WHERE state = 2 AND holder IS NOT NULL GROUP BY host")
		waiting := rows(c, "SELECT host, count(*) FROM task WHERE state = 2 AND holder IS NULL GROUP BY host")
		sizes := rows(c, `SELECT domain, sum(length(doc) + coalesce(request, 0) + coalesce(result, 0))
			FROM task WHERE domain IS NOT NULL GROUP BY domain`)
		s.mu.Lock()
		defer s.mu.Unlock()
		for state, n := range s.counts {
			same("tasks in state", int64(state), n, tasks[int64(state)])
		}
		for id, q := range s.queues {
			same("queued", id, q.queued, queuedIn[id])
			same("running", id, q.running, busy[id])
		}
		fresh, ahead := 0, 0
		for id, h := range s.hosts {
			same("held", id, h.held, held[id])
			fresh += len(h.fresh)
			ahead += len(h.ahead)
			if h.users != 0 {
				t.Errorf("host %d has %d users", id, h.users)
			}
		}
		same("fresh", 0, int64(s.freshN), int64(fresh))
		same("ahead", 0, int64(s.aheadN), int64(ahead))
		for id, n := range rows(c, "SELECT id, waiting FROM host") {
			same("waiting", id, n, waiting[id])
		}
		for id, n := range rows(c, "SELECT id, queued FROM queue") {
			same("queued in the table", id, n, queuedIn[id])
		}
		for id, n := range rows(c, "SELECT id, running FROM queue") {
			same("running in the table", id, n, busy[id])
		}
		for state, name := range []string{"queued", "running", "delivering", "done", "dead"} {
			n, _, err := c.number("SELECT " + name + " FROM tally")
			must(t, err)
			same("tally of state", int64(state), n, tasks[int64(state)])
		}
		for id, n := range rows(c, "SELECT id, bytes FROM domain") {
			same("bytes of domain", id, n, sizes[id])
		}
		return nil
	}))
}

// TestCountsAreWhatIsStored checks the counts after random steps.
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
