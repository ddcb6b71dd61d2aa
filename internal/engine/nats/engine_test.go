package engine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// shortLease is how long a test waits for a lease to lapse.
const shortLease = 900 * time.Millisecond

func open(t *testing.T, store string, lease time.Duration) *Engine {
	t.Helper()
	e, err := Open(t.Context(), Config{
		Store: store, Sync: 2 * time.Second, LeaseTime: lease,
		Retention: time.Hour, RetentionCount: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// openOn opens an engine for as long as the test runs.
func openOn(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e := openWith(t, cfg)
	t.Cleanup(e.Close)
	return e
}

// openWith opens an engine whose log is the test's.
func openWith(t *testing.T, cfg Config) *Engine {
	t.Helper()
	cfg.Sync, cfg.Retention, cfg.RetentionCount = 2*time.Second, time.Hour, 1000
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = zaptest.NewLogger(t)
	}
	e, err := Open(t.Context(), cfg)
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

// end ends a delivery, and waits until its task counts as ended: the server takes
// note of an acknowledgement a moment after it.
func end(t *testing.T, e *Engine, d *Delivery) {
	t.Helper()
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		f, err := e.Find(t.Context(), d.Record.ID)
		switch {
		case err != nil:
			t.Fatal(err)
		case f.Record.State == task.Done:
			return
		case time.Now().After(deadline):
			t.Fatalf("a minute after its delivery the task is %s", f.Record.State)
		}
		<-time.After(time.Millisecond)
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

// stored counts the messages of a stream below a subject, without those of no task.
func stored(t *testing.T, e *Engine, stream, subject string) int {
	t.Helper()
	s, err := e.link().js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	delete(info.State.Subjects, anchorSubject) // it is always there
	delete(info.State.Subjects, clockSubject)  // it is there now and then
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
	if err := e.link().live.Purge(t.Context(), jetstream.WithPurgeSubject(l.subject())); err != nil {
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

func TestAStoreThatIsBeingClosedIsWaitedFor(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	begun := make(chan struct{})
	e.done.Go(func() {
		<-e.closing.Done()
		close(begun)
	})
	go e.Close()
	<-begun
	open(t, store, time.Minute).Close()
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

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
