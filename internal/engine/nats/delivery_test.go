package engine

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestALargeBodyStandsInTheObjectStoreAndGoesWithItsTask(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	large := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
	settle(t, claim(t, e, rec), rec, large)

	d := fetch(t, e)
	body, err := d.Body(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body, large) {
		t.Errorf("the body came back with %d bytes", len(body))
	}
	if err := d.Retry(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	d = fetch(t, e)
	if body, err = d.Body(t.Context()); err != nil || !bytes.Equal(body, large) {
		t.Fatalf("after a retry the body has %d bytes: %v", len(body), err)
	}
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, "OBJ_"+blobBucket, ">")
}

func TestALargeBodyIsNotWrittenAnewWithEachAttempt(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	for size, want := range map[int]int{maxRewritten: 0, maxRewritten + 1: 1} {
		rec := record("c.example:443")
		body := bytes.Repeat([]byte("x"), size)
		settle(t, claim(t, e, rec), rec, body)
		if n := len(objects(t, e)); n != 0 {
			t.Errorf("before the first attempt %d bodies of %d bytes stand apart", n, size)
		}
		for range 3 {
			d := fetch(t, e)
			if got, err := d.Body(t.Context()); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("of a body of %d bytes %d came back: %v", size, len(got), err)
			}
			if err := d.Retry(t.Context(), time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			if n := len(objects(t, e)); n != want {
				t.Errorf("between attempts %d bodies of %d bytes stand apart", n, size)
			}
			msg, err := get(t.Context(), e, liveStream, retrySubject+rec.ID)
			if err != nil {
				t.Fatal(err)
			}
			if isWhole := len(msg.Data) > size; isWhole != (want == 0) {
				t.Errorf("a retry of a body of %d bytes is a message of %d", size, len(msg.Data))
			}
		}
		if err := fetch(t, e).Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		gone(t, e, "OBJ_"+blobBucket, ">")
	}
}

func TestABodyOfWhichAPartIsMissingIsGone(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, bytes.Repeat([]byte("x"), 1<<20)) // eight parts
	d := fetch(t, e)
	if _, err := d.Body(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream, err := e.link().js.Stream(t.Context(), "OBJ_"+blobBucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 3); err != nil { // as a damaged file
		t.Fatal(err)
	}
	if _, err := d.Body(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("of the body comes %v", err)
	}
}

func TestARetryComesBackWithItsAttempts(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, []byte("x"))
	d := fetch(t, e)
	d.Record.AddAttempt(task.Attempt{StatusCode: 500})
	if err := d.Retry(t.Context(), time.Now().Add(10*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	d = fetch(t, e)
	if d.Record.Tries != 1 || len(d.Record.Attempts) != 1 || d.Record.Attempts[0].StatusCode != 500 {
		t.Errorf("the record is %+v", d.Record)
	}
}

func TestALaneHoldsADeliveryUntilItIsServed(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("slow.example:443")
	settle(t, claim(t, e, rec), rec, []byte("x"))
	lane, err := e.Lane(t.Context(), "slow.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch(t, e).Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if closed, err := lane.Close(t.Context()); err != nil || closed {
		t.Fatalf("a lane with a delivery in it closed: %v %v", closed, err)
	}
	lanes, err := e.OpenLanes(t.Context())
	if err != nil || len(lanes) != 1 || lanes[HostToken("slow.example:443")] == nil {
		t.Fatalf("open lanes are %v: %v", lanes, err)
	}
	d := fetchFrom(t, lane)
	if d.Record.ID != rec.ID {
		t.Errorf("held is %+v", d.Record)
	}
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, heldSubject+">")
	if closed, err := lane.Close(t.Context()); err != nil || !closed {
		t.Errorf("an empty lane stayed open: %v", err)
	}
}

func TestALaneThatAnotherNodeClosedOpensAgain(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	lane, err := e.Lane(t.Context(), "slow.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.link().live.DeleteConsumer(t.Context(), lane.name); err != nil {
		t.Fatal(err)
	}
	rec := record("slow.example:443")
	l := claim(t, e, rec)
	if err := l.Settle(t.Context(), &rec, nil, true); err != nil {
		t.Fatal(err)
	}
	if d := fetchFrom(t, lane); d.Record.ID != rec.ID {
		t.Errorf("held is %+v", d.Record)
	}
}

func TestADeadCallbackIsKeptWithItsBody(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, []byte("the result"))
	if err := fetch(t, e).Dead(t.Context()); err != nil {
		t.Fatal(err)
	}
	msg, err := get(t.Context(), e, deadStream, deadSubject+rec.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, body, err := unframe(msg.Data); err != nil || string(body) != "the result" {
		t.Errorf("dead is %q: %v", body, err)
	}
}

func get(ctx context.Context, e *Engine, stream, subject string) (*jetstream.RawStreamMsg, error) {
	s, err := e.link().js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	return s.GetLastMsgForSubject(ctx, subject)
}

func TestADamagedMessageIsKeptAmongTheDeadAndStopsNobody(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	if _, err := e.send(t.Context(), &nats.Msg{Subject: dueSubject + "c.broken", Data: []byte("torn")}); err != nil {
		t.Fatal(err)
	}
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	if d := fetch(t, e); d.Record.ID != rec.ID {
		t.Errorf("due is %+v", d.Record)
	}
	msg, err := get(t.Context(), e, deadStream, deadSubject+"broken")
	if err != nil || string(msg.Data) != "torn" {
		t.Errorf("the damaged message was not kept: %v", err)
	}
}

func TestADeliveryThatHasATwinIsDoneOnce(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	// A node that dies between storing the retry and acknowledging: somebody else
	// gets the delivery again.
	d := fetch(t, e)
	retryInAnHour(t, e, rec)
	d.Release()
	if err := fetch(t, e).Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, retrySubject+">")
}

func retryInAnHour(t *testing.T, e *Engine, rec task.Record) {
	t.Helper()
	if _, err := e.publish(t.Context(), step{
		subject: retrySubject + rec.ID, rec: &rec, at: time.Now().Add(time.Hour), target: dueSubject + "x." + rec.ID,
	}); err != nil {
		t.Fatal(err)
	}
}

func hold(t *testing.T, e *Engine, rec task.Record) {
	t.Helper()
	subject := heldSubject + hostToken(rec.CallbackHost) + "." + rec.ID
	if _, err := e.publish(t.Context(), step{subject: subject, rec: &rec}); err != nil {
		t.Fatal(err)
	}
}

func giveUp(t *testing.T, e *Engine, rec task.Record) {
	t.Helper()
	if _, err := e.publish(t.Context(), step{subject: deadSubject + rec.ID, rec: &rec}); err != nil {
		t.Fatal(err)
	}
}

func TestWhatAProcessMovedOnBeforeItDiedIsNotAttemptedWhereItStood(t *testing.T) {
	t.Parallel()
	const host = "c.example:443"
	for name, test := range map[string]struct {
		held   bool // where both deliveries stand
		moveOn func(*testing.T, *Engine, task.Record)
		stream string
		to     string
	}{
		"due, then to be retried":  {false, retryInAnHour, liveStream, retrySubject},
		"due, then held":           {false, hold, liveStream, heldSubject},
		"due, then given up":       {false, giveUp, deadStream, deadSubject},
		"held, then to be retried": {true, retryInAnHour, liveStream, retrySubject},
		"held, then given up":      {true, giveUp, deadStream, deadSubject},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			e := open(t, store, time.Minute)
			movedOn, stays := record(host), record(host)
			for _, rec := range []*task.Record{&movedOn, &stays} {
				if err := claim(t, e, *rec).Settle(t.Context(), rec, nil, test.held); err != nil {
					t.Fatal(err)
				}
			}
			test.moveOn(t, e, movedOn)
			e.Close()
			e = open(t, store, time.Minute)
			defer e.Close()
			source, from := e.Due, dueSubject
			if test.held {
				source, from = func(ctx context.Context) (*Source, error) { return e.Lane(ctx, host) }, heldSubject
			}
			s, err := source(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			d := fetchFrom(t, s)
			if d.Record.ID != stays.ID {
				t.Error("what was moved on is handed out where it stood")
			}
			gone(t, e, liveStream, from+hostToken(host)+"."+movedOn.ID)
			if stored(t, e, test.stream, test.to+">") != 1 {
				t.Error("what was moved on stands nowhere")
			}
			d.Release()
		})
	}
}

func TestADeliveryThatComesBackFromItsRetryIsNotTakenForOneThatWasMovedOn(t *testing.T) {
	t.Parallel()
	const host = "c.example:443"
	store := t.TempDir()
	e := open(t, store, time.Minute)
	old := record(host)
	if err := claim(t, e, old).Settle(t.Context(), &old, nil, true); err != nil {
		t.Fatal(err)
	}
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()
	rec := record(host)
	settle(t, claim(t, e, rec), rec, nil)
	if err := fetch(t, e).Retry(t.Context(), time.Now().Add(3*time.Second)); err != nil {
		t.Fatal(err)
	}
	lane, err := e.Lane(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	// With the first old delivery it is looked what has been moved on.
	fetchFrom(t, lane).Release()
	e.link().opened = time.Now().Add(time.Hour) // a clock that was set back since
	if d := fetch(t, e); d.Record.ID != rec.ID {
		t.Errorf("due is %+v", d.Record)
	}
}

func TestADeliveryKnowsHowManyStandBehindIt(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	for range 3 {
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, nil)
	}
	for want := range 3 {
		if d := fetch(t, e); d.Behind() != 2-want {
			t.Errorf("%d stand behind delivery %d", d.Behind(), want)
		}
	}
}

// A cluster may forget what it has handed out, see [Delivery.isNowhere].
func TestADeliveryWhoseMessageIsGoneIsStoredAnewByItsHolder(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(*Delivery) error{
		"retried": func(d *Delivery) error { return d.Retry(t.Context(), time.Now()) },
		"held":    func(d *Delivery) error { return d.Hold(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := openOn(t, startServer(t, nil))
			rec := record("c.example:443")
			settle(t, claim(t, e, rec), rec, []byte("result"))
			d := fetch(t, e)
			if err := e.link().live.DeleteMsg(t.Context(), d.seq); err != nil {
				t.Fatal(err)
			}
			if err := move(d); err != nil {
				t.Fatal(err)
			}
			again := fetch
			if name == "held" {
				lane, err := e.Lane(t.Context(), "c.example:443")
				if err != nil {
					t.Fatal(err)
				}
				again = func(t *testing.T, _ *Engine) *Delivery { return fetchFrom(t, lane) }
			}
			d = again(t, e)
			if body, err := d.Body(t.Context()); err != nil || d.Record.ID != rec.ID || string(body) != "result" {
				t.Errorf("what came is %+v with %q: %v", d.Record, body, err)
			}
			end(t, e, d)
		})
	}
}

// Of a task that has ended nothing is stored anew.
func TestADeliveryThatSomebodyElseHasDoneIsNotStoredAnew(t *testing.T) {
	t.Parallel()
	e := openOn(t, startServer(t, nil))
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, []byte("result"))
	d := fetch(t, e)
	end(t, e, &Delivery{Record: d.Record, body: d.body, engine: e, link: d.link, msg: d.msg, seq: d.seq})
	if err := d.Retry(t.Context(), time.Now()); !errors.Is(err, ErrLost) {
		t.Errorf("it was retried: %v", err)
	}
}
