package engine

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// shortLease is how long a test waits for a lease to lapse.
const shortLease = 900 * time.Millisecond

func open(t *testing.T, store string, lease time.Duration) *Engine {
	t.Helper()
	e, err := Open(t.Context(), Config{
		Store: store, Sync: 10 * time.Millisecond, LeaseTime: lease,
		Retention: time.Hour, RetentionCount: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func openTemp(t *testing.T, lease time.Duration) *Engine {
	t.Helper()
	e := open(t, t.TempDir(), lease)
	t.Cleanup(e.Close)
	return e
}

// record is that of a task whose holder died.
func record(host string) task.Record {
	now := time.Now().UTC()
	return task.Record{
		Task: task.Task{
			ID: uuid.NewString(), CreatedAt: now, StartedAt: now, CallbackHost: host,
			Status: task.Failed, Error: "died",
		},
		Callback: &task.Callback{URL: "http://" + host + "/"},
	}
}

func claim(t *testing.T, e *Engine, rec task.Record) *Lease {
	t.Helper()
	l, err := e.Claim(t.Context(), rec, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func settle(t *testing.T, l *Lease, rec task.Record, body []byte) {
	t.Helper()
	rec.Status, rec.Error, rec.Result = task.Complete, "", &task.Result{Size: int64(len(body))}
	if err := l.Settle(t.Context(), &rec, body, false); err != nil {
		t.Fatal(err)
	}
}

// fetch takes the next delivery that is due.
func fetch(t *testing.T, e *Engine) *Delivery {
	t.Helper()
	due, err := e.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return fetchFrom(t, due)
}

func fetchFrom(t *testing.T, s *Source) *Delivery {
	t.Helper()
	for range 6 { // a minute
		for d, err := range s.Fetch(t.Context(), 1) {
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatal("nothing is due")
	return nil
}

// stored counts the messages of a stream below a subject, the probe left out.
func stored(t *testing.T, e *Engine, stream, subject string) int {
	t.Helper()
	s, err := e.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	return len(info.State.Subjects)
}

// gone waits until nothing stands below a subject: acknowledgements are not
// waited for.
func gone(t *testing.T, e *Engine, stream, subject string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for stored(t, e, stream, subject) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("something is left below %s", subject)
		}
	}
}

func TestATaskHasOneHolder(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	claim(t, e, rec)
	if _, err := e.Claim(t.Context(), rec, func() {}); !errors.Is(err, ErrHeld) {
		t.Errorf("a second claim returned %v, not ErrHeld", err)
	}
}

func TestSettlingRemovesTheLeaseAndMakesTheCallbackDue(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	l := claim(t, e, rec)
	settle(t, l, rec, []byte("the result"))
	if n := stored(t, e, liveStream, leaseSubject+">"); n != 0 {
		t.Errorf("%d leases are left", n)
	}
	d := fetch(t, e)
	body, err := d.Body(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.Record.ID != rec.ID || d.Record.Status != task.Complete || string(body) != "the result" {
		t.Errorf("due is %+v with %q", d.Record, body)
	}
	if err := l.Settle(t.Context(), &rec, nil, false); !errors.Is(err, ErrLost) {
		t.Errorf("settling again returned %v, not ErrLost", err)
	}
}

func TestALeaseThatNobodyRenewsBecomesItsDelivery(t *testing.T) {
	t.Parallel()
	e := openTemp(t, shortLease)
	rec := record("c.example:443")
	l := claim(t, e, rec)
	l.timer.Stop() // the holder is paused

	d := fetch(t, e)
	if d.Record.ID != rec.ID || d.Record.Status != task.Failed || d.Record.Error != "died" {
		t.Fatalf("due is %+v", d.Record)
	}
	late := rec
	late.Status = task.Complete
	if err := l.Settle(t.Context(), &late, []byte("late"), false); !errors.Is(err, ErrLost) {
		t.Errorf("the paused holder settled: %v", err)
	}
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, "callback.>")
}

func TestALeaseIsRenewedForAsLongAsItsHolderLives(t *testing.T) {
	t.Parallel()
	e := openTemp(t, shortLease)
	rec := record("c.example:443")
	lost := make(chan struct{})
	l, err := e.Claim(t.Context(), rec, func() { close(lost) })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
		t.Fatal("a living holder lost its lease")
	case <-time.After(3 * shortLease):
	}
	settle(t, l, rec, nil)
}

func TestAHolderLearnsThatItsLeaseIsGone(t *testing.T) {
	t.Parallel()
	e := openTemp(t, shortLease)
	lost := make(chan struct{})
	l, err := e.Claim(t.Context(), record("c.example:443"), func() { close(lost) })
	if err != nil {
		t.Fatal(err)
	}
	if err := e.live.Purge(t.Context(), jetstream.WithPurgeSubject(l.subject())); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
	case <-time.After(time.Minute):
		t.Fatal("the holder was not told")
	}
}

func TestASettlementThatIsRepeatedChangesNothing(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	l := claim(t, e, rec)
	settle(t, l, rec, nil)
	l.over = false // as if the acknowledgement had been lost
	again := rec
	again.Status = task.TimedOut
	if err := l.Settle(t.Context(), &again, nil, false); !errors.Is(err, ErrLost) {
		t.Errorf("the repeat returned %v, not ErrLost", err)
	}
	if n := stored(t, e, liveStream, dueSubject+">"); n != 1 {
		t.Errorf("%d deliveries are due, not 1", n)
	}
	if d := fetch(t, e); d.Record.Status != task.Complete {
		t.Errorf("due is %+v", d.Record)
	}
}

func TestASettlementFollowsARenewalWhoseAcknowledgementWasLost(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	l := claim(t, e, rec)
	if _, err := e.publish(t.Context(), l.step(l.seq)); err != nil {
		t.Fatal(err)
	}
	settle(t, l, rec, nil) // with the sequence from before that renewal
	if d := fetch(t, e); d.Record.Status != task.Complete {
		t.Errorf("due is %+v", d.Record)
	}
}

func TestWhatIsStoredSurvivesTheProcess(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, []byte("x"))
	fetch(t, e) // in the hands of a process that ends
	e.Close()

	e = open(t, store, time.Minute)
	defer e.Close()
	if d := fetch(t, e); d.Record.ID != rec.ID {
		t.Errorf("due is %+v", d.Record)
	}
}

func TestAStoreIsOpenInOneProcessOnly(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	_, err := Open(t.Context(), Config{Store: store})
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second engine opened: %v", err)
	}
	e.Close()
	open(t, store, time.Minute).Close()
}

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
	if err := e.live.DeleteConsumer(t.Context(), lane.name); err != nil {
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
	s, err := e.js.Stream(ctx, stream)
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
	store := t.TempDir()
	e := open(t, store, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	// A process that dies between storing the retry and acknowledging.
	if _, err := e.publish(t.Context(), step{
		subject: retrySubject + rec.ID, rec: &rec, at: time.Now().Add(time.Hour), target: dueSubject + "x." + rec.ID,
	}); err != nil {
		t.Fatal(err)
	}
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()
	if err := fetch(t, e).Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, retrySubject+">")
}

func TestHostsHaveTokensOfTheirOwn(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, host := range []string{
		"", "-", "a.b:80", "a_b:80", "a-b:80", "a%5Fb:80", "[2001:db8::1]:443", "a b", "a*b", "a>b", "A.b:80",
		strings.Repeat("a", 300), strings.Repeat("a", 301),
	} {
		token := hostToken(host)
		if other, ok := seen[token]; ok && host != "-" {
			t.Errorf("%q and %q share the token %s", host, other, token)
		}
		seen[token] = host
		if strings.ContainsAny(token, ".*> \t") || token == "" || len(token) > maxToken {
			t.Errorf("%q has the token %q", host, token)
		}
	}
}
