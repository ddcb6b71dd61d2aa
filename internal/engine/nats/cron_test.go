package engine

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// hourly is a schedule that does not tick while a test runs.
func hourly() []Schedule {
	return []Schedule{{
		Queue: "q", Name: "n", Cron: "@every 1h",
		Record: task.Record{Task: task.Task{Queue: "q"}, Request: &task.Request{Method: "POST", URI: "/"}},
	}}
}

func set(t *testing.T, e *Engine, schedules []Schedule) {
	t.Helper()
	if err := e.SetSchedules(t.Context(), schedules); err != nil {
		t.Fatal(err)
	}
}

// remember notes when the schedule was to tick next, as a worker does.
func remember(t *testing.T, e *Engine, next time.Time) {
	t.Helper()
	msg := &nats.Msg{Subject: tickSubject + "q.n", Data: []byte(next.Format(time.RFC3339Nano))}
	if _, err := e.send(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}

func TestATickThatWasMissedIsMadeUpFor(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	set(t, e, hourly())
	remember(t, e, time.Now().Add(-30*time.Minute).UTC())
	e.Close()

	e = open(t, store, time.Minute)
	defer e.Close()
	set(t, e, hourly())
	deadline := time.Now().Add(time.Minute)
	for stored(t, e, liveStream, queuedSubject+">") == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no tick was put into the queue")
		}
	}
}

func TestATickThatIsNotDueIsNotMadeUpFor(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	set(t, e, hourly())
	remember(t, e, time.Now().Add(30*time.Minute).UTC())
	e.Close()

	e = open(t, store, time.Minute)
	defer e.Close()
	set(t, e, hourly())
	next, err := e.nextTick(t.Context(), &hourly()[0])
	if err != nil || next.Before(e.link().opened) {
		t.Fatalf("the next tick is at %v: %v", next, err)
	}
	if n := stored(t, e, liveStream, queuedSubject+">"); n != 0 {
		t.Errorf("%d tasks are in the queue", n)
	}
}

func TestAScheduleThatIsTakenOutIsForgotten(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	set(t, e, hourly())
	remember(t, e, time.Now().UTC())
	set(t, e, nil)
	if n := stored(t, e, liveStream, "callback.>"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}
