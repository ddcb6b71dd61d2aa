package migrate_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/migrate"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// interrupted is a target whose migration is interrupted after some steps. Without
// cancel, the target becomes unavailable instead.
type interrupted struct {
	engine.Engine
	left   atomic.Int64
	cancel context.CancelFunc // nil: the target becomes unavailable
}

func (e *interrupted) step() error {
	if e.left.Add(-1) >= 0 {
		return nil
	}
	if e.cancel != nil {
		e.cancel()
		return context.Canceled
	}
	return engine.ErrUnavailable
}

func (e *interrupted) Import(ctx context.Context, rec *task.Record, request, result io.Reader) error {
	before, after := e.step(), error(nil)
	if before == nil {
		if err := e.Engine.Import(ctx, rec, request, result); err != nil {
			return err
		}
		after = e.step() // stored, but the caller gets an error
	}
	return errors.Join(before, after)
}

func (e *interrupted) ImportKey(ctx context.Context, k engine.StoredKey) error {
	if err := e.step(); err != nil {
		return err
	}
	return e.Engine.ImportKey(ctx, k)
}

func (e *interrupted) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	if err := e.step(); err != nil {
		return err
	}
	return e.Engine.Advance(ctx, schedule, due, next)
}

func TestRepeatedMigrationCompletes(t *testing.T) {
	t.Parallel()
	from, to := openStore(t), openStore(t)
	random := rand.New(rand.NewPCG(1, 2))
	(&filler{t, from, random}).fill(300)
	want := read(t, from)
	interruptions := 0
	for {
		ctx, cancel := context.WithCancel(t.Context())
		target := &interrupted{Engine: to}
		if interruptions%2 == 0 {
			target.cancel = cancel
		}
		target.left.Store(int64(random.IntN(100) + interruptions))
		_, err := migrate.Migration{From: from, To: target}.Run(ctx)
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) && !errors.Is(err, engine.ErrUnavailable) {
			t.Fatal(err)
		}
		interruptions++
	}
	if interruptions < 3 {
		t.Errorf("it was interrupted %d times", interruptions)
	}
	compare(t, want, read(t, to))
	again, err := migrate.Migration{From: from, To: to}.Run(t.Context())
	if err != nil || again.Known != again.Total || again.Done() != again.Total || again.Bytes != 0 {
		t.Errorf("repeated once more, it copies %+v: %v", again, err)
	}
}

func TestMigrationKeepsTasksOfTarget(t *testing.T) {
	t.Parallel()
	from, to := openStore(t), openStore(t)
	f := &filler{t, from, rand.New(rand.NewPCG(3, 4))}
	f.fill(20)
	if _, err := (migrate.Migration{From: from, To: to}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, err := to.List(t.Context(), engine.Filter{States: []task.State{task.Queued}}, "", 1)
	if err != nil || len(page.Tasks) != 1 {
		t.Fatal(err)
	}
	id := page.Tasks[0].ID
	if err := to.Act(t.Context(), id, engine.Action{Kind: engine.Cancel, Reason: "canceled"}); err != nil {
		t.Fatal(err)
	}
	if err := to.Advance(t.Context(), "schedule-1", f.next("schedule-1"), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	want := read(t, to)
	if _, err := (migrate.Migration{From: from, To: to}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	compare(t, want, read(t, to))
}

// next returns the next run time of a schedule.
func (f *filler) next(schedule string) time.Time {
	f.t.Helper()
	run, err := f.e.NextRun(f.t.Context(), schedule, time.Time{})
	f.must(err)
	return run.Next
}

func TestRunningTasksAreCopiedWithExpiredLease(t *testing.T) {
	t.Parallel()
	from, to := openStore(t), openStore(t)
	f := &filler{t, from, rand.New(rand.NewPCG(5, 6))}
	waiting := f.record()
	if _, err := from.Claim(t.Context(), waiting); err != nil {
		t.Fatal(err)
	}
	job := f.record()
	job.Queue, job.Request = "q", &task.Request{Method: "POST", URI: "/run"}
	if _, _, err := from.Enqueue(t.Context(), job, bytes.NewReader([]byte("body")), engine.EnqueueOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Jobs("q").Next(t.Context(), 1, 3); err != nil {
		t.Fatal(err)
	}
	done, err := migrate.Migration{From: from, To: to}.Run(t.Context())
	if err != nil || done.Copied[task.Running] != 2 {
		t.Fatalf("copied are %+v: %v", done, err)
	}
	rec, err := to.Get(t.Context(), waiting.ID)
	if err != nil || rec.State != task.Delivering || rec.Status != task.Failed || rec.Error != task.ErrorHolderDied {
		t.Errorf("the waiting client's task is %+v: %v", rec, err)
	}
	rec, err = to.Get(t.Context(), job.ID)
	if err != nil || rec.State != task.Queued || readBody(t, to, job.ID, engine.RequestBody) != "body" {
		t.Errorf("the queue's task is %+v: %v", rec, err)
	}
}

func TestMigrationKeepsQueueOrder(t *testing.T) {
	t.Parallel()
	from, to := openStore(t), openStore(t)
	f := &filler{t, from, rand.New(rand.NewPCG(9, 10))}
	var want, got []string
	for range 200 {
		rec := f.record()
		rec.Queue, rec.Request = "q", &task.Request{Method: "POST", URI: "/run"}
		id, _, err := from.Enqueue(t.Context(), rec, nil, engine.EnqueueOptions{})
		f.must(err)
		want = append(want, id)
	}
	_, err := migrate.Migration{From: from, To: to}.Run(t.Context())
	f.must(err)
	for len(got) < len(want) {
		jobs, err := to.Jobs("q").Next(t.Context(), len(want), 1)
		f.must(err)
		for _, j := range jobs {
			got = append(got, j.Record.ID)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the jobs come as %v, want %v", got, want)
	}
}

// unreadable is a source that cannot read one of its bodies.
type unreadable struct {
	engine.Engine
	id string
}

func (e unreadable) Open(ctx context.Context, id string, part engine.Part) (io.ReadSeekCloser, error) {
	if id == e.id {
		return nil, errors.New("checksum does not match")
	}
	return e.Engine.Open(ctx, id, part)
}

func TestMigrationSkipsUnreadableTask(t *testing.T) {
	t.Parallel()
	from, to := openStore(t), openStore(t)
	f := &filler{t, from, rand.New(rand.NewPCG(7, 8))}
	for range 10 {
		f.queued()
	}
	page, err := from.List(t.Context(), engine.Filter{}, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	var reports atomic.Int64
	m := migrate.Migration{From: unreadable{from, page.Tasks[0].ID}, To: to, Progress: func(migrate.Counts) { reports.Add(1) }}
	done, err := m.Run(t.Context())
	if !errors.Is(err, migrate.ErrIncomplete) || done.Failed != 1 || done.Copied[task.Queued] != 9 || done.Done() != done.Total {
		t.Errorf("copied are %+v: %v", done, err)
	}
	if reports.Load() == 0 {
		t.Error("no progress was reported")
	}
}
