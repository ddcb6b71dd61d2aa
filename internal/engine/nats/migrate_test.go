package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// startServer starts somebody else's JetStream and returns the configuration that
// uses it.
func startServer(t *testing.T, change func(*server.Options)) Config {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true}
	if change != nil {
		change(opts)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("the server is not ready")
	}
	return Config{URLs: []string{srv.ClientURL()}, Replicas: 1, Retention: time.Hour, RetentionCount: 1000}
}

func openAt(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// nameTick gives a tick an ID that follows from its sequence.
func nameTick(rec *task.Record, sequence uint64) {
	rec.ID = uuid.NewSHA1(uuid.Nil, fmt.Append(nil, sequence)).String()
}

func migrate(t *testing.T, store string, to Config) *Migrated {
	t.Helper()
	done, err := Migration{From: Config{Store: store}, To: to, NameTick: nameTick}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// large is a body that stands apart from its task.
var large = bytes.Repeat([]byte("large "), 1<<18)

// fillStore makes a store with tasks in every place and returns where each stood, by ID.
func fillStore(t *testing.T, store string) map[string]string {
	t.Helper()
	e := open(t, store, time.Hour)
	defer e.Close()
	ctx := t.Context()
	put(t, e, task.Delivering, nil) // held
	put(t, e, task.Done, nil)
	put(t, e, task.Dead, nil)
	waiting, big, again, keyed := queued("c.example:443"), queued("c.example:443"), queued("c.example:443"), queued("c.example:443")
	enqueue(t, e, &again, []byte("again"))
	w := hand(t, e)
	l, err := w.Claim(ctx, again, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Requeue(ctx, &again, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, &waiting, []byte("waiting"))
	enqueue(t, e, &big, large)
	keyed.Key = "hash"
	if _, _, err := e.ClaimKey(ctx, "q", "hash", Key{TaskID: keyed.ID}); err != nil {
		t.Fatal(err)
	}
	enqueue(t, e, &keyed, []byte("keyed"))
	running := record("c.example:443") // its gateway was killed
	claim(t, e, running)
	due := record("c.example:443")
	settle(t, claim(t, e, due), due, []byte("due"))
	retried := record("r.example:443")
	settle(t, claim(t, e, retried), retried, large)
	for {
		d := fetch(t, e)
		if d.Record.ID == retried.ID {
			if err := d.Retry(ctx, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			break
		}
		d.Release()
	}
	set(t, e, hourly())
	remember(t, e, time.Now().Add(-time.Minute).UTC())
	return standings(t, e)
}

// standings returns where each task stands.
func standings(t *testing.T, e *Engine) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, stream := range []string{liveStream, endedStream, deadStream} {
		s, err := e.link().js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		if err != nil {
			t.Fatal(err)
		}
		for subject := range info.State.Subjects {
			if !slices.Contains([]string{probeSubject, anchorSubject, clockSubject}, subject) && !strings.HasPrefix(subject, tickSubject) {
				found[nameOf(subject)] = subject
			}
		}
	}
	return found
}

// asCarried says where tasks stand after they were carried over: what waited for
// its host's turn is due, and the missed tick is a task.
func asCarried(t *testing.T, before map[string]string) map[string]string {
	t.Helper()
	want := maps.Clone(before)
	for id, subject := range want {
		if rest, ok := strings.CutPrefix(subject, heldSubject); ok {
			want[id] = dueSubject + rest
		}
	}
	return want
}

// sameTasks compares where tasks stand, the task of the missed tick aside.
func sameTasks(t *testing.T, got, want map[string]string) {
	t.Helper()
	ticks := 0
	for id, subject := range got {
		switch {
		case want[id] == "" && strings.HasPrefix(subject, queuedSubject+"q."):
			ticks++
		case want[id] != subject:
			t.Errorf("%s stands on %s, not %q", id, subject, want[id])
		}
	}
	for id, subject := range want {
		if got[id] == "" {
			t.Errorf("%s, which stood on %s, is nowhere", id, subject)
		}
	}
	if ticks != 1 {
		t.Errorf("the missed tick became %d tasks", ticks)
	}
}

func TestAMigrationCarriesEveryTaskToWhereItStood(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	before := fillStore(t, store)
	done := migrate(t, store, cfg)
	e := openAt(t, cfg)
	sameTasks(t, standings(t, e), asCarried(t, before))
	want := map[task.State]int{task.Queued: 5, task.Running: 1, task.Delivering: 3, task.Done: 1, task.Dead: 1}
	if !maps.Equal(done.Tasks, want) || done.Keys != 1 || done.Schedules != 1 || done.Bodies != 2 || done.There+done.Damaged+done.Bodyless != 0 {
		t.Errorf("it says %+v", done)
	}
	for _, name := range objects(t, e) {
		body, err := e.blob(t.Context(), name)
		if err != nil || !bytes.Equal(body, large) {
			t.Errorf("the body %s has %d bytes: %v", name, len(body), err)
		}
	}
	if n := len(objects(t, e)); n != 2 {
		t.Errorf("%d bodies were carried, not 2", n)
	}
	if k, isMine, err := e.ClaimKey(t.Context(), "q", "hash", Key{TaskID: "other"}); err != nil || isMine {
		t.Errorf("the key is %+v %v %v", k, isMine, err)
	}
}

// The server writes a description and then its checksum. A migration that is killed
// between the two, as it keeps the store from moving on, leaves one that is damaged.
func TestAMigrationMakesADamagedDescriptionAnew(t *testing.T) {
	t.Parallel()
	for _, name := range allStreams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, cfg := t.TempDir(), startServer(t, nil)
			before := fillStore(t, store)
			if err := os.WriteFile(filepath.Join(streamsIn(store), name, "meta.sum"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			done := migrate(t, store, cfg)
			if done.Damaged+done.Bodyless != 0 || done.Bodies != 2 {
				t.Errorf("it says %+v", done)
			}
			sameTasks(t, standings(t, openAt(t, cfg)), asCarried(t, before))
		})
	}
}

func TestAMigrationThatIsRepeatedChangesNothing(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	fillStore(t, store)
	migrate(t, store, cfg)
	e := openAt(t, cfg)
	before := standings(t, e)
	done := migrate(t, store, cfg)
	if len(done.Tasks) != 0 || done.There != 11 || done.Keys+done.Schedules+done.Bodies != 0 {
		t.Errorf("it says %+v", done)
	}
	if after := standings(t, e); !maps.Equal(after, before) {
		t.Errorf("tasks stand on %v, not %v", after, before)
	}
}

func TestAMigrationThatWasBrokenOffIsFinishedByAnother(t *testing.T) {
	t.Parallel()
	for _, after := range []int{1, 4, 8} {
		t.Run(fmt.Sprint("after ", after), func(t *testing.T) {
			t.Parallel()
			store, cfg := t.TempDir(), startServer(t, nil)
			before := fillStore(t, store)
			ctx, cancel := context.WithCancel(t.Context())
			e := openAt(t, cfg)
			watched := make(chan *nats.Msg, 1000)
			if _, err := e.link().nc.ChanSubscribe("callback.>", watched); err != nil {
				t.Fatal(err)
			}
			if err := e.link().nc.Flush(); err != nil {
				t.Fatal(err)
			}
			go func() {
				for range after {
					<-watched
				}
				cancel()
			}()
			_, err := Migration{From: Config{Store: store}, To: cfg, NameTick: nameTick}.Run(ctx)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			migrate(t, store, cfg)
			sameTasks(t, standings(t, e), asCarried(t, before))
		})
	}
}

func TestATaskThatMovedOnInTheClusterIsNotCarriedAgain(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	fillStore(t, store)
	migrate(t, store, cfg)
	e := openAt(t, cfg)
	var ended []string
	for range 2 {
		d := fetch(t, e)
		if err := d.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended = append(ended, d.Record.ID)
	}
	migrate(t, store, cfg)
	for _, id := range ended {
		if at := standings(t, e)[id]; at != doneSubject+id {
			t.Errorf("task %s stands on %s", id, at)
		}
	}
}

func TestOfATaskInTwoPlacesTheLaterIsCarried(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	e := open(t, store, time.Hour)
	// As kills leave them: the next step was stored, the one before not yet removed.
	claimed := put(t, e, task.Queued, nil)
	put(t, e, task.Running, func(rec *task.Record) { rec.ID, rec.Queue = claimed, "q" })
	delivered := put(t, e, task.Delivering, nil)
	put(t, e, task.Done, func(rec *task.Record) { rec.ID = delivered })
	redelivered := put(t, e, task.Dead, nil)
	put(t, e, task.Delivering, func(rec *task.Record) { rec.ID = redelivered })
	e.Close()
	migrate(t, store, cfg)
	want := map[string]string{
		claimed: leaseSubject + claimed, delivered: doneSubject + delivered,
		redelivered: dueSubject + hostToken("c.example:443") + "." + redelivered,
	}
	if got := standings(t, openAt(t, cfg)); !maps.Equal(got, want) {
		t.Errorf("tasks stand on %v, not %v", got, want)
	}
}

func TestWhatTheClustersMessagesHaveNoRoomForStandsApart(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	cfg := startServer(t, func(o *server.Options) { o.MaxPayload = 300 << 10 })
	e := open(t, store, time.Hour)
	rec := record("c.example:443")
	body := bytes.Repeat([]byte("x"), 400<<10)
	settle(t, claim(t, e, rec), rec, body)
	e.Close()
	migrate(t, store, cfg)
	d := fetch(t, openAt(t, cfg))
	got, err := d.Body(t.Context())
	if err != nil || d.Record.ID != rec.ID || !bytes.Equal(got, body) {
		t.Errorf("the delivery is %+v with %d bytes: %v", d.Record, len(got), err)
	}
}

func TestADamagedMessageIsCarriedToTheDead(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	e := open(t, store, time.Hour)
	if _, err := e.send(t.Context(), &nats.Msg{Subject: dueSubject + "c.broken", Data: []byte("torn")}); err != nil {
		t.Fatal(err)
	}
	e.Close()
	if done := migrate(t, store, cfg); done.Damaged != 1 {
		t.Errorf("it says %+v", done)
	}
	if msg, err := get(t.Context(), openAt(t, cfg), deadStream, deadSubject+"broken"); err != nil || string(msg.Data) != "torn" {
		t.Errorf("among the dead is %v: %v", msg, err)
	}
}

func TestWhatComesDueDuringAMigrationComesDueInTheCluster(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	e := open(t, store, time.Hour)
	tick := task.Record{Task: task.Task{Queue: "q"}}
	if _, err := e.publish(t.Context(), step{subject: queuedSubject + "q." + tickPrefix + "n", rec: &tick}); err != nil {
		t.Fatal(err) // it is carried first
	}
	const tasks = 20
	due := time.Now().Add(2 * time.Second)
	for range tasks {
		rec := record("c.example:443")
		s := step{subject: retrySubject + rec.ID, rec: &rec, at: due, target: dueSubject + "c." + rec.ID}
		if _, err := e.publish(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	e.Close()
	meanwhile := func(rec *task.Record, sequence uint64) {
		<-time.After(time.Until(due.Add(time.Second))) // their time comes
		nameTick(rec, sequence)
	}
	done, err := Migration{From: Config{Store: store}, To: cfg, NameTick: meanwhile}.Run(t.Context())
	if err != nil || done.Tasks[task.Delivering] != tasks || done.There != 0 {
		t.Errorf("it says %+v: %v", done, err)
	}
	cluster := openAt(t, cfg)
	deadline := time.Now().Add(time.Minute)
	for stored(t, cluster, liveStream, dueSubject+">") < tasks {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d tasks are due", stored(t, cluster, liveStream, dueSubject+">"), tasks)
		}
	}
	gone(t, cluster, liveStream, retrySubject+">")
}
