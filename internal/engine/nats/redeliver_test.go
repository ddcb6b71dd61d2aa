package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func purgeOf(rest string) jetstream.StreamPurgeOpt {
	return jetstream.WithPurgeSubject("callback." + rest)
}

// deadTask is one that was given up after an attempt.
func deadTask(t *testing.T, e *Engine, body []byte, change func(*task.Record)) string {
	t.Helper()
	rec := record("c.example:443")
	if change != nil {
		change(&rec)
	}
	settle(t, claim(t, e, rec), rec, body)
	d := fetch(t, e)
	d.Record.AddAttempt(task.Attempt{At: time.Now().UTC(), StatusCode: 500})
	if err := d.Dead(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, dueSubject+"*."+rec.ID)
	return rec.ID
}

func TestADeadTaskIsRedeliveredWithItsBodyAndItsAttemptsBeginAnew(t *testing.T) {
	t.Parallel()
	for name, body := range map[string][]byte{"small": []byte("result"), "large": bytes.Repeat([]byte("x"), 3<<20)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			id := deadTask(t, e, body, nil)
			if err := e.Redeliver(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if n := stored(t, e, deadStream, ">"); n != 0 {
				t.Errorf("%d are still dead", n)
			}
			d := fetch(t, e)
			got, err := d.Body(t.Context())
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("the body is not the same: %d bytes, %v", len(got), err)
			}
			if d.Record.Tries != 0 || len(d.Record.Attempts) != 1 || len(d.Record.Redelivered) != 1 {
				t.Errorf("its record says %+v", d.Record)
			}
			if err := d.Done(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOfManyRedeliveriesAtOnceOneHappens(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	id := deadTask(t, e, nil, nil)
	var mu sync.Mutex
	done, refusals := 0, 0
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			err := e.Redeliver(t.Context(), id)
			mu.Lock()
			defer mu.Unlock()
			var refused *RefusedError
			switch {
			case err == nil:
				done++
			case errors.As(err, &refused):
				refusals++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if done != 1 || refusals != 15 {
		t.Errorf("%d happened, %d were refused", done, refusals)
	}
	if n := stored(t, e, liveStream, dueSubject+">"); n != 1 {
		t.Errorf("%d are due", n)
	}
}

func TestADoneTaskIsRedeliveredOnlyIfItsResultIsThere(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	finish := func(body []byte, change func(*task.Record)) string {
		rec := record("c.example:443")
		change(&rec)
		settle(t, claim(t, e, rec), rec, body)
		if err := fetch(t, e).Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		return rec.ID
	}
	for name, c := range map[string]struct {
		body   []byte
		change func(*task.Record)
		ok     bool
	}{
		"of a queue":                          {[]byte("result"), func(r *task.Record) { r.Queue = "q" }, true},
		"of a waiting client":                 {[]byte("result"), func(*task.Record) {}, false},
		"of a waiting client, without a body": {nil, func(*task.Record) {}, true},
		"without a callback":                  {nil, func(r *task.Record) { r.Callback = nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			id := finish(c.body, c.change)
			err := e.Redeliver(t.Context(), id)
			var refused *RefusedError
			if c.ok && err != nil || !c.ok && !errors.As(err, &refused) {
				t.Fatalf("it says %v", err)
			}
			if !c.ok {
				return
			}
			d := fetch(t, e)
			if got, err := d.Body(t.Context()); d.Record.ID != id || err != nil || !bytes.Equal(got, c.body) {
				t.Errorf("due is %+v with %q: %v", d.Record.Task, got, err)
			}
			if err := d.Done(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatADeathInTheMiddleOfARedeliveryLeavesIsCleared(t *testing.T) {
	t.Parallel()
	for _, last := range []task.State{task.Done, task.Dead} {
		t.Run(string(last), func(t *testing.T) {
			t.Parallel()
			e := openTemp(t, time.Minute)
			id := deadTask(t, e, nil, nil)
			left, err := e.link().dead.GetLastMsgForSubject(t.Context(), deadSubject+id)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Redeliver(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			// As if it had not been taken out.
			if _, err := e.link().js.Publish(t.Context(), left.Subject, left.Data); err != nil {
				t.Fatal(err)
			}
			d := fetch(t, e)
			if last == task.Done {
				err = d.Done(t.Context())
			} else {
				err = d.Dead(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			gone(t, e, liveStream, dueSubject+">")
			f, err := e.Find(t.Context(), id)
			if err != nil || f.Record.State != last {
				t.Errorf("it is found as %+v: %v", f, err)
			}
			if got := listAll(t, e, Filter{}, 10, nil); len(got) != 1 {
				t.Errorf("it is listed as %v", got)
			}
		})
	}
}

// halfGivenUp is a task whose process died after it had stored it among the dead,
// and before it took out the delivery.
func halfGivenUp(t *testing.T, store string) (e *Engine, id string) {
	t.Helper()
	e = open(t, store, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	giveUp(t, e, *fetch(t, e).Record)
	e.Close()
	return open(t, store, time.Minute), rec.ID
}

func TestWhatADeathInTheMiddleOfGivingUpLeavesIsInNobodysWay(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		do  func(*Engine, context.Context, string) error
		due int
	}{
		"of a redelivery": {(*Engine).Redeliver, 1}, "of a purge": {(*Engine).Purge, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, id := halfGivenUp(t, t.TempDir())
			defer e.Close()
			if err := test.do(e, t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if due, dead := stored(t, e, liveStream, dueSubject+">"), stored(t, e, deadStream, ">"); due != test.due || dead != 0 {
				t.Errorf("%d are due and %d dead", due, dead)
			}
			if test.due == 0 {
				return
			}
			d := fetch(t, e)
			if d.Record.ID != id || len(d.Record.Redelivered) != 1 {
				t.Errorf("due is %+v", d.Record)
			}
			end(t, e, d)
			if got := listAll(t, e, Filter{}, 10, nil); len(got) != 1 {
				t.Errorf("it is listed as %v", got)
			}
		})
	}
}

func TestADeliveryIsNotTakenForWhatWasGivenUp(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		leave       func(*testing.T, *Engine, string)
		redelivered int
	}{
		"if it is the redelivery": {func(t *testing.T, e *Engine, id string) {
			t.Helper()
			f, err := e.Find(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Redeliver(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			giveUp(t, e, *f.Record) // as if it had not been taken from there
		}, 1},
		"if what was given up is damaged": {func(t *testing.T, e *Engine, id string) {
			t.Helper()
			f, err := e.Find(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			due := dueSubject + hostToken(f.Record.CallbackHost) + "." + id
			if _, err := e.publish(t.Context(), step{subject: due, rec: f.Record}); err != nil {
				t.Fatal(err)
			}
			if _, err := e.link().js.Publish(t.Context(), deadSubject+id, []byte("damaged")); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			e := open(t, store, time.Minute)
			id := deadTask(t, e, nil, nil)
			test.leave(t, e, id)
			e.Close()
			e = open(t, store, time.Minute)
			defer e.Close()
			var refused *RefusedError
			if err := e.Redeliver(t.Context(), id); !errors.As(err, &refused) {
				t.Errorf("another redelivery says %v", err)
			}
			d := fetch(t, e)
			if d.Record.ID != id || len(d.Record.Redelivered) != test.redelivered {
				t.Errorf("due is %+v", d.Record)
			}
			d.Release()
		})
	}
}

// Another node of a cluster takes what one that died had given up.
func TestATaskThatWasGivenUpAndIsDeliveredAllTheSameIsNotDead(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	fetch(t, e).Release()
	d := fetch(t, e) // it was handed out before
	giveUp(t, e, *d.Record)
	end(t, e, d)
	if got := listAll(t, e, Filter{States: []task.State{task.Dead}}, 10, nil); len(got) != 0 {
		t.Errorf("%v is dead", got)
	}
}

func TestOnlyWhatHasEndedIsPurgedAndItsBodyWithIt(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	var refused *RefusedError
	running := record("c.example:443")
	l := claim(t, e, running)
	if err := e.Purge(t.Context(), running.ID); !errors.As(err, &refused) {
		t.Errorf("the purge of a running task says %v", err)
	}
	if err := e.Redeliver(t.Context(), running.ID); !errors.As(err, &refused) {
		t.Errorf("the redelivery of a running task says %v", err)
	}
	if err := l.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := deadTask(t, e, bytes.Repeat([]byte("x"), 3<<20), nil)
	if err := e.Purge(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if n := stored(t, e, "OBJ_"+blobBucket, ">"); n != 0 {
		t.Errorf("%d parts of its body are left", n)
	}
	for _, f := range []func(context.Context, string) error{e.Purge, e.Redeliver} {
		if err := f(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("of a task that is gone it says %v", err)
		}
	}
}

func TestAPurgedTaskGivesItsKeyFree(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	rec.Queue, rec.Key = "q", "hash"
	if _, mine, err := e.ClaimKey(t.Context(), "q", "hash", Key{TaskID: rec.ID}); err != nil || !mine {
		t.Fatal(mine, err)
	}
	settle(t, claim(t, e, rec), rec, []byte("result"))
	end(t, e, fetch(t, e))
	f, err := e.Find(t.Context(), rec.ID)
	if err != nil {
		t.Fatal(err)
	}
	body, err := f.OpenBody(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if text, err := io.ReadAll(body); err != nil || string(text) != "result" {
		t.Fatal(string(text), err)
	}
	if err := e.Purge(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if known, err := e.HasKey(t.Context(), "q", "hash"); err != nil || known {
		t.Errorf("the key is known: %v %v", known, err)
	}
}
