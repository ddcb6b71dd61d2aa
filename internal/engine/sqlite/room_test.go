package sqlite

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestRoom(t *testing.T) {
	t.Parallel()
	const most = 8 << 20
	result := strings.Repeat("x", 200<<10)
	ctx := context.Background()
	t.Run("results of done tasks are evicted", func(t *testing.T) {
		t.Parallel()
		s := openTest(t, Config{MaxSize: most, Settings: engine.Settings{KeepResults: true}})
		for range 100 {
			settled(t, s, newTask("a.test:443"), result)
			must(t, takeOne(t, s, "a.test:443").Done(ctx))
		}
		if stats, err := s.Stats(ctx); err != nil || stats.Tasks[task.Done] != 100 {
			t.Errorf("%v are stored, %v", stats.Tasks, err)
		}
	})
	t.Run("old results are evicted before a new one is cut", func(t *testing.T) {
		t.Parallel()
		s := openTest(t, Config{MaxSize: 2 * most})
		leases, recs := claimed(t, s, 120, "")
		for i, l := range leases {
			rec := recs[i]
			rec.Status, rec.Result = task.Complete, &task.Result{Size: int64(len(result))}
			must(t, l.Settle(ctx, rec, strings.NewReader(result)))
			if rec.Result.Kept != int64(len(result)) {
				t.Fatalf("of result %d, %d of %d bytes are kept", i, rec.Result.Kept, len(result))
			}
		}
	})
	t.Run("dead letters are evicted", func(t *testing.T) {
		t.Parallel()
		s := openTest(t, Config{MaxSize: most})
		for range 100 {
			settled(t, s, newTask("a.test:443"), result)
			must(t, takeOne(t, s, "a.test:443").Dead(ctx))
		}
	})
	t.Run("what is owed is not, and its verdict finds room", func(t *testing.T) {
		t.Parallel()
		s := openTest(t, Config{MaxSize: most})
		leases, recs := claimed(t, s, 60, "a.test:443")
		for i, l := range leases {
			recs[i].Status, recs[i].Result = task.Complete, &task.Result{Size: int64(len(result))}
			must(t, l.Settle(ctx, recs[i], strings.NewReader(result)))
			s.measureDisk()
		}
		last := recs[len(recs)-1]
		if last.Result.Kept != cutResult || last.Result.Size != int64(len(result)) {
			t.Errorf("of the last result %d of %d bytes are kept", last.Result.Kept, last.Result.Size)
		}
		if _, err := s.Claim(ctx, newTask("a.test:443")); !errors.Is(err, engine.ErrFull) || errors.Is(err, engine.ErrQuota) {
			t.Errorf("a claim returns %v", err)
		}
	})
	t.Run("one destination has a quarter", func(t *testing.T) {
		t.Parallel()
		s := openTest(t, Config{MaxSize: most})
		refused := 0
		for range 60 {
			rec := newTask("a.greedy.test:443")
			rec.CallbackDomain = "greedy.test"
			l, err := s.Claim(ctx, rec)
			if errors.Is(err, engine.ErrQuota) {
				refused++
				s.measureDisk()
				continue
			}
			must(t, err)
			rec.Status, rec.Result = task.Complete, &task.Result{Size: int64(len(result))}
			must(t, l.Settle(ctx, rec, strings.NewReader(result)))
		}
		if refused == 0 {
			t.Error("all were accepted")
		}
		other := newTask("b.test:443")
		other.CallbackDomain = "b.test"
		_, err := s.Claim(ctx, other)
		must(t, err)
	})
	t.Run("a disk below its reserve takes nothing new", func(t *testing.T) {
		t.Parallel()
		free := int64(1 << 40)
		s := openTest(t, Config{free: func(string) (int64, error) { return free, nil }})
		must(t, s.Ready())
		free = minReserve - 1
		s.measureDisk()
		if err := s.Ready(); !errors.Is(err, engine.ErrFull) {
			t.Errorf("Ready returns %v", err)
		}
	})
}

// claimed claims n tasks for a host.
func claimed(t *testing.T, s *store, n int, host string) (leases []engine.Lease, recs []*task.Record) {
	t.Helper()
	for range n {
		rec := newTask(host)
		l, err := s.Claim(t.Context(), rec)
		must(t, err)
		leases, recs = append(leases, l), append(recs, rec)
	}
	return leases, recs
}

// TestFullStoreIsIdle opens a store on a full disk that has nothing to evict.
func TestFullStoreIsIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var measured atomic.Int64
		s := openTest(t, Config{free: func(string) (int64, error) { measured.Add(1); return 0, nil }})
		<-time.After(time.Minute)
		if n := measured.Load(); n > 1000 {
			t.Errorf("the disk was measured %d times in a minute", n)
		}
		closeTest(t, s)
	})
}

// TestCrowdedStoreEvictsAtOnce fills a store between two measurements. Maintenance must
// not wait for the next check of the disk.
func TestCrowdedStoreEvictsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const most = 16 << 20
		s := openTest(t, Config{MaxSize: most})
		synctest.Wait()
		for range 70 {
			settled(t, s, newTask(""), strings.Repeat("x", 200<<10)) // in no time
		}
		<-time.After(measureInterval)
		settled(t, s, newTask(""), "result")
		synctest.Wait()
		if used := s.room.used(); used < most/2 || s.room.crowded() {
			t.Errorf("%d of %d bytes are used", used, most)
		}
		closeTest(t, s)
	})
}
