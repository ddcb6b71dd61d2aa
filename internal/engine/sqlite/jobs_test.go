package sqlite

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// enqueue stores a queue's task with a body of n bytes.
func enqueue(t *testing.T, s *store, rec *task.Record, n int) error {
	t.Helper()
	rec.Queue, rec.Request = "q", &task.Request{Method: "POST", URI: "/", Header: map[string][]string{"A": {"b"}}}
	_, _, err := s.Enqueue(t.Context(), rec, strings.NewReader(strings.Repeat("x", n)), engine.EnqueueOptions{})
	return err
}

// nextJob claims the next job.
func nextJob(t *testing.T, s *store) engine.Job {
	t.Helper()
	jobs, err := s.Jobs("q").Next(t.Context(), 1, 3)
	must(t, err)
	return jobs[0]
}

// cached returns how many jobs are cached.
func cached(t *testing.T, s *store) (n int) {
	t.Helper()
	must(t, s.update(t.Context(), func(*tx) error {
		n = len(s.cache.jobs)
		return nil
	}))
	return n
}

// TestCachedJobsEqualStoredJobs claims a job from the cache and, after its release, from
// the table.
func TestCachedJobsEqualStoredJobs(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"no body": 0, "small body": 200, "body that is read later": maxSmall + 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Config{})
			rec := newTask("a.test:443")
			rec.CallbackDomain = "a.test"
			must(t, enqueue(t, s, rec, size))
			if n := cached(t, s); n != 1 {
				t.Fatalf("%d jobs are cached, not 1", n)
			}
			first := nextJob(t, s)
			must(t, first.Lease.Release(t.Context()))
			if n := cached(t, s); n != 0 {
				t.Fatalf("%d jobs are cached after the claim", n)
			}
			second := nextJob(t, s)
			if first.Record.Version != 2 || second.Record.Version != 4 {
				t.Errorf("the versions are %d and %d, not 2 and 4", first.Record.Version, second.Record.Version)
			}
			first.Record.Version, first.Record.StartedAt = second.Record.Version, second.Record.StartedAt
			a, err := task.Encode(first.Record)
			must(t, err)
			b, err := task.Encode(second.Record)
			must(t, err)
			if string(a) != string(b) {
				t.Errorf("the cached job is\n%s, the stored one\n%s", a, b)
			}
			if string(first.Request) != string(second.Request) || (first.Request == nil) != (second.Request == nil) {
				t.Errorf("the cached body is %.20q, the stored one %.20q", first.Request, second.Request)
			}
		})
	}
}

func TestDelayedJobsAreNotCached(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	rec := newTask("")
	rec.NextAttemptAt = time.Now().Add(time.Hour)
	must(t, enqueue(t, s, rec, 1))
	if n := cached(t, s); n != 0 {
		t.Errorf("%d jobs are cached", n)
	}
}

func TestRefusedJobsAreNotCached(t *testing.T) {
	t.Parallel()
	disk := &faultyDisk{VFS: vfs.Find("os")}
	s := openTest(t, Config{vfs: disk})
	rec := newTask("")
	disk.syncFails.Store(true)
	if err := enqueue(t, s, rec, 1); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a refused job returns %v", err)
	}
	disk.syncFails.Store(false)
	if n := cached(t, s); n != 0 {
		t.Errorf("%d jobs are cached", n)
	}
	must(t, enqueue(t, s, rec, 1))
	if got := nextJob(t, s).Record; got.ID != rec.ID || got.Starts != 1 {
		t.Errorf("the job is %s at start %d", got.ID, got.Starts)
	}
}

func TestJobCacheIsBounded(t *testing.T) {
	t.Parallel()
	var c jobCache
	c.reset()
	const most = 100
	add := func(queue string, from int64) {
		for seq := from; seq < from+most; seq++ {
			c.add(&row{seq: seq}, &task.Record{Task: task.Task{Queue: queue}}, &body{}, 256<<10)
		}
	}
	add("a", 0)
	if size := c.sizes["a"]; size < maxCached/4 || size > maxCached/2 {
		t.Errorf("the first queue takes %d of %d bytes", size, maxCached)
	}
	add("b", most)
	if size := c.sizes["b"]; size < maxCached/8 || c.size > maxCached {
		t.Errorf("the second queue takes %d of %d bytes, both %d", size, maxCached, c.size)
	}
	for seq := range int64(2 * most) {
		c.drop(seq)
	}
	if c.size != 0 || len(c.sizes) != 0 || len(c.jobs) != 0 {
		t.Errorf("the empty cache has %d bytes, %d queues and %d jobs", c.size, len(c.sizes), len(c.jobs))
	}
}
