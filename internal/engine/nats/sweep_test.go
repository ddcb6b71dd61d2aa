package engine

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// queued is the record of a task that waits in the queue q.
func queued(host string) task.Record {
	return task.Record{
		Task:     task.Task{ID: uuid.NewString(), Queue: "q", CreatedAt: time.Now().UTC(), CallbackHost: host},
		Callback: &task.Callback{URL: "http://" + host + "/"},
		Request:  &task.Request{Method: "POST", URI: "/q"},
	}
}

// hand takes the next task of the queue q into this node's hands.
func hand(t *testing.T, e *Engine) *Queued {
	t.Helper()
	q, err := e.Queue(t.Context(), "q")
	if err != nil {
		t.Fatal(err)
	}
	for w, err := range q.Fetch(1) {
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	t.Fatal("nothing waits in the queue")
	return nil
}

func enqueue(t *testing.T, e *Engine, rec *task.Record, body []byte) {
	t.Helper()
	if err := e.Enqueue(t.Context(), rec, body); err != nil {
		t.Fatal(err)
	}
}

func objects(t *testing.T, e *Engine) (names []string) {
	t.Helper()
	list, err := e.link().blobs.List(t.Context(), jetstream.ListObjectsShowDeleted())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		t.Fatal(err)
	}
	for _, object := range list {
		names = append(names, object.Name)
	}
	return names
}

func TestOnlyWhatNoTaskNeedsIsSwept(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	body := bytes.Repeat([]byte("x"), 300<<10)
	waiting := queued("a.example")
	if err := e.StoreBody(t.Context(), &waiting, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, &waiting, nil)
	refused := queued("a.example") // whose gateway died before it was stored
	if err := e.StoreBody(t.Context(), &refused, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	ended := queued("a.example")
	large := make([]byte, e.link().publishLimit)
	settle(t, claim(t, e, ended), ended, large)
	for _, name := range []string{ended.ID + requestBlob, ended.ID + resultBlob + "other"} {
		if _, err := e.link().blobs.PutBytes(t.Context(), name, body); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.link().js.Publish(t.Context(), partSubject+"broken", body); err != nil {
		t.Fatal(err)
	}

	sweep := func(before time.Time) {
		t.Helper()
		if err := e.sweep(t.Context(), before, before); err != nil {
			t.Fatal(err)
		}
	}
	sweep(time.Now().Add(-time.Minute))
	if got := objects(t, e); len(got) != 5 {
		t.Errorf("what is young was swept; left is %v", got)
	}
	sweep(time.Now())
	if got := objects(t, e); len(got) != 2 {
		t.Errorf("left is %v", got)
	}
	for _, id := range []string{waiting.ID, ended.ID} {
		found, err := e.Find(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := found.OpenBody(t.Context())
		if err != nil {
			t.Fatalf("a body that is needed: %v", err)
		}
		kept.Close()
	}
	// When retention has forgotten the task, its result goes too.
	d := fetch(t, e)
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	sweep(time.Now())
	if got := objects(t, e); len(got) != 2 {
		t.Errorf("left while the task is retained is %v", got)
	}
	if err := e.link().ended.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Cancel(t.Context(), waiting.ID, "canceled"); err != nil {
		t.Fatal(err)
	}
	sweep(time.Now())
	if got := objects(t, e); len(got) != 0 {
		t.Errorf("left is %v", got)
	}
	stream, err := e.link().js.Stream(t.Context(), "OBJ_"+blobBucket)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d messages are left of what was swept", n)
	}
}

func TestACopyOfATaskThatIsPastWaitingIsNotRun(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, e *Engine, w *Queued) {
		t.Helper()
		if _, err := w.Claim(t.Context(), *w.Record(), func() {}); !errors.Is(err, ErrHeld) {
			t.Errorf("the claim gave %v", err)
		}
		if _, err := e.findLive(t.Context(), w.Record().ID); err == nil {
			if f, err := e.Find(t.Context(), w.Record().ID); err != nil || f.Record.State == task.Running {
				t.Errorf("the claim was not given up: %+v %v", f, err)
			}
		}
	}
	t.Run("canceled while it was in hand", func(t *testing.T) {
		t.Parallel()
		e := openTemp(t, time.Minute)
		rec := queued("a.example")
		enqueue(t, e, &rec, nil)
		w := hand(t, e)
		if err := e.Cancel(t.Context(), rec.ID, "canceled"); err != nil {
			t.Fatal(err)
		}
		refused(t, e, w)
	})
	t.Run("stored a second time for its key after it has ended", func(t *testing.T) {
		t.Parallel()
		e := openTemp(t, time.Minute)
		rec := queued("a.example")
		rec.Key = "k"
		enqueue(t, e, &rec, nil)
		l, err := hand(t, e).Claim(t.Context(), rec, func() {})
		if err != nil {
			t.Fatal(err)
		}
		settle(t, l, rec, nil)
		enqueue(t, e, &rec, nil)
		refused(t, e, hand(t, e))
	})
	t.Run("stored a second time for its key while it waits to run again", func(t *testing.T) {
		t.Parallel()
		e := openTemp(t, time.Minute)
		rec := queued("a.example")
		rec.Key = "k"
		enqueue(t, e, &rec, nil)
		begun := rec
		begun.Starts++
		l, err := hand(t, e).Claim(t.Context(), begun, func() {})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Requeue(t.Context(), &begun, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		enqueue(t, e, &rec, nil)
		refused(t, e, hand(t, e))
	})
}

func TestALateHolderDoesNotTakeTheStandingResultAway(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("a.example")
	late := queued("a.example")
	late.ID, late.StartedAt = rec.ID, time.Now().Add(-time.Hour)
	rec.StartedAt = time.Now()
	large := bytes.Repeat([]byte("result"), e.link().publishLimit/6)
	settle(t, claim(t, e, rec), rec, large)
	late.Status = task.Complete
	_, err := e.publish(t.Context(), step{
		subject: dueSubject + hostToken("a.example") + "." + rec.ID, rec: &late, body: make([]byte, len(large)),
		fence: leaseSubject + rec.ID, seq: 1, purge: true,
	})
	if !errors.Is(err, ErrLost) {
		t.Errorf("the late holder's verdict gave %v", err)
	}
	if body, err := fetch(t, e).Body(t.Context()); err != nil || !bytes.Equal(body, large) {
		t.Errorf("the standing result is %d bytes: %v", len(body), err)
	}
}
