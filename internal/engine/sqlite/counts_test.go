package sqlite

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// checkCounts compares the counts with the tasks.
func checkCounts(t *testing.T, s *store) {
	t.Helper()
	must(t, s.read(t.Context(), func(c *conn) error {
		for counted, stored := range map[string]string{
			"SELECT state, tasks FROM tally WHERE tasks <> 0": `SELECT CASE state WHEN 0 THEN 'queued' WHEN 1 THEN 'running'
				WHEN 2 THEN 'delivering' WHEN 3 THEN 'done' ELSE 'dead' END, count(*) FROM task GROUP BY state`,
			"SELECT name, queued FROM queue WHERE queued <> 0":   "SELECT queue, count(*) FROM task WHERE state = 0 GROUP BY queue",
			"SELECT name, running FROM queue WHERE running <> 0": "SELECT queue, count(*) FROM task WHERE state = 1 AND queue IS NOT NULL GROUP BY queue",
			"SELECT name, waiting FROM host WHERE waiting <> 0":  "SELECT host, count(*) FROM task WHERE state = 2 AND holder IS NULL GROUP BY host",
			"SELECT name, bytes FROM domain": `SELECT domain, sum(length(doc) + coalesce(request, 0) + coalesce(result, 0))
				FROM task WHERE domain IS NOT NULL GROUP BY domain`,
		} {
			if got, want := numbers(t, c, counted), numbers(t, c, stored); !maps.Equal(got, want) {
				t.Errorf("%s: %v, but stored are %v", counted, got, want)
			}
		}
		held := numbers(t, c, "SELECT host, count(*) FROM task WHERE state = 2 AND holder IS NOT NULL GROUP BY host")
		s.mu.Lock()
		defer s.mu.Unlock()
		inMemory, all := map[string]int64{}, 0
		for name, h := range s.hosts {
			all += len(h.due)
			for _, o := range h.due {
				if o.place.held {
					inMemory[name]++
				}
			}
		}
		for _, d := range s.inFlight {
			if d.place.held {
				inMemory[d.place.host]++
			}
		}
		if !maps.Equal(inMemory, held) || s.inMemory != all {
			t.Errorf("in memory are %v and %d, stored are %v", inMemory, s.inMemory, held)
		}
		return nil
	}))
	must(t, s.update(t.Context(), func(tx *tx) error {
		size := 0
		for seq, q := range s.cache.jobs {
			size += q.size
			if version, _ := tx.number("SELECT version FROM task WHERE seq = ? AND state = 0", seq); version != q.row.version {
				t.Errorf("cached is version %d of a job, but stored is %d", q.row.version, version)
			}
		}
		if size != s.cache.size {
			t.Errorf("%d bytes are counted as cached, not %d", s.cache.size, size)
		}
		return nil
	}))
}

// numbers returns the numbers of a query by their names.
func numbers(t *testing.T, c *conn, query string) map[string]int64 {
	t.Helper()
	m := map[string]int64{}
	c.query(query, nil, func(r *sqlite3.Stmt) bool {
		m[r.ColumnText(0)] = r.ColumnInt64(1)
		return true
	})
	return m
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
			queues, err := s.Queues(t.Context())
			must(t, err)
			if !slices.ContainsFunc(queues, func(q engine.QueueStats) bool { return q.Queue == "q" && q.Queued > 0 }) {
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
