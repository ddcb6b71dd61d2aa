package callback

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// provisioning keeps tests from provisioning at once: Caddy has a variable for
// the configuration provisioned last.
var provisioning sync.Mutex

// startApp starts an app of its own on a store, and returns it and what ends it.
// The test ends once nobody has the store open.
func startApp(t *testing.T, store string, o *Delivery) (*App, func()) {
	t.Helper()
	provisioning.Lock()
	config, err := caddy.ProvisionContext(&caddy.Config{})
	provisioning.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { awaitClosed(t, store) })
	ctx, cancel := caddy.NewContext(config)
	a := &App{Store: store, Delivery: o}
	if err := a.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	return a, sync.OnceFunc(func() {
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
		if err := a.Cleanup(); err != nil {
			t.Error(err)
		}
		cancel()
	})
}

// awaitClosed waits until no generation of the app has a store open: then it can
// be opened.
func awaitClosed(t *testing.T, store string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		e, err := engine.Open(context.Background(), engine.Config{Store: store, Retention: time.Hour, RetentionCount: 10})
		if err == nil {
			e.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Error("a minute after its apps have ended: ", err)
			return
		}
		runtime.Gosched()
	}
}

// owe settles a task whose callback goes to url; held puts it into its host's
// lane.
func owe(t *testing.T, e *engine.Engine, url string, held bool) string {
	t.Helper()
	now := time.Now().UTC()
	rec := task.Record{
		Task: task.Task{
			ID: uuid.NewString(), CreatedAt: now, StartedAt: now, FinishedAt: now,
			CallbackHost: strings.TrimPrefix(url, "http://"), Status: task.Complete,
		},
		Callback: &task.Callback{
			URL: url, Trusted: true, Format: formatForm, TaskHeader: defaultTaskHeader,
			StatusHeader: defaultStatusHeader, MaxResult: defaultMaxBody,
		},
		Result: &task.Result{ContentType: "text/plain"},
	}
	lease, err := e.Claim(t.Context(), rec, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Settle(t.Context(), &rec, []byte("done"), held); err != nil {
		t.Fatal(err)
	}
	return rec.ID
}

// listener takes callbacks and passes on the tasks they are of.
func listener(t *testing.T) (url string, got chan string) {
	t.Helper()
	got = make(chan string, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get(defaultTaskHeader)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, got
}

func awaitTask(t *testing.T, got chan string, want string) {
	t.Helper()
	select {
	case id := <-got:
		if id != want {
			t.Errorf("the callback of %s came, not of %s", id, want)
		}
	case <-time.After(time.Minute):
		t.Fatal("no callback came")
	}
}

func TestALaneThatANodeLeftBehindIsServed(t *testing.T) {
	t.Parallel()
	url, got := listener(t)
	a, stop := startApp(t, t.TempDir(), nil)
	defer stop()
	e := a.engine.Load()
	// Another node opened the lane, put a delivery into it and died.
	if _, err := e.Lane(t.Context(), strings.TrimPrefix(url, "http://")); err != nil {
		t.Fatal(err)
	}
	awaitTask(t, got, owe(t, e, url, true))
}

func TestALaneThatAProcessLeftBehindIsServedAtTheNextStart(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	url, got := listener(t)
	e, err := engine.Open(t.Context(), engine.Config{Store: store, Retention: time.Hour, RetentionCount: 10})
	if err != nil {
		t.Fatal(err)
	}
	id := owe(t, e, url, true)
	e.Close()
	_, stop := startApp(t, store, nil)
	defer stop()
	awaitTask(t, got, id)
}

func TestGenerationsShareADelivererAndItEndsWithTheLast(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	url, got := listener(t)
	first, stopFirst := startApp(t, store, &Delivery{Concurrency: 5, PerHost: 3})
	second, stopSecond := startApp(t, store, &Delivery{Concurrency: 7, PerHost: 2})
	d := first.deliverer
	if d != second.deliverer {
		t.Fatal("each generation has its own")
	}
	limits := func() [2]int {
		d.hosts.mu.Lock()
		defer d.hosts.mu.Unlock()
		return [2]int{d.hosts.concurrency, d.hosts.perHost}
	}
	if limits() != [2]int{7, 2} {
		t.Errorf("the limits are %v, not those of the newest generation", limits())
	}
	awaitTask(t, got, owe(t, second.engine.Load(), url, false))
	// A start that is taken back leaves the generation before.
	stopSecond()
	if limits() != [2]int{5, 3} {
		t.Errorf("the limits are %v, not those of the generation that is left", limits())
	}
	awaitTask(t, got, owe(t, first.engine.Load(), url, false))
	stopFirst()
	if d.claiming.Err() == nil {
		t.Error("deliveries are still taken")
	}
}

func TestNoGoroutineOutlivesTheApp(t *testing.T) {
	// Not parallel: goroutines of other tests would be taken for ours.
	url, got := listener(t)
	a, stop := startApp(t, t.TempDir(), &Delivery{PerHost: 1})
	for range 20 {
		owe(t, a.engine.Load(), url, false)
	}
	for range 20 {
		<-got
	}
	stop()
	var left string
	for range 600 {
		if left = ours(); left == "" {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Errorf("still running:\n%s", left)
}

// ours returns the stacks of goroutines that an app or its engine started.
func ours() string {
	buf := make([]byte, 4<<20)
	var found []string
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "testing.tRunner") {
			continue
		}
		if strings.Contains(stack, "caddy-callback.") || strings.Contains(stack, "internal/engine") ||
			strings.Contains(stack, "nats-server") || strings.Contains(stack, "http.(*persistConn)") {
			found = append(found, stack)
		}
	}
	return strings.Join(found, "\n\n")
}

func TestADamagedMessageDoesNotStopDeliveries(t *testing.T) {
	t.Parallel()
	url, got := listener(t)
	a, stop := startApp(t, t.TempDir(), nil)
	defer stop()
	// A callback that can never be sent is given up at once.
	e := a.engine.Load()
	unusable := owe(t, e, "http://bad host/"+strings.Repeat("x", 10), false)
	awaitTask(t, got, owe(t, e, url, false))
	for range 600 {
		if f, err := e.Find(t.Context(), unusable); err == nil && f.Record.State == task.Dead {
			if !bytes.Contains([]byte(f.Record.Attempts[0].Error), []byte("cannot be sent")) {
				t.Errorf("the attempt is recorded as %+v", f.Record.Attempts[0])
			}
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Error("the callback that cannot be sent is not dead")
}

func TestSoMuchOfALaneIsTakenAtOnceAsStandsInItAndMemoryMayHold(t *testing.T) {
	t.Parallel()
	ls := newLanes(&deliverer{hosts: limitedHosts(256, 32)})
	ls.d.hosts.answersOnce(t, "good")
	for behind, want := range map[int]int{0: 0, 1: 0, 2: 1, 20: 19, 10_000: laneBatch - 1} {
		n := ls.reserve("good", behind)
		if n != want {
			t.Errorf("%d are taken beyond the first where %d stand behind it, not %d", n, behind, want)
		}
		ls.giveBack(n)
	}
	if n := ls.reserve("mute", 10_000); n != 0 {
		t.Errorf("%d are taken beyond the first from a host that has not answered", n)
	}
	all := 0
	for range 1000 {
		all += ls.reserve("good", 10_000)
	}
	if all != allAhead {
		t.Errorf("%d are taken beyond the first from all lanes", all)
	}
	ls.giveBack(all)
	if n := ls.reserve("good", 10_000); n != laneBatch-1 {
		t.Errorf("%d are taken beyond the first when all have begun", n)
	}
}

func TestALaneWithABacklogIsDeliveredWhole(t *testing.T) {
	t.Parallel()
	url, got := listener(t)
	a, stop := startApp(t, t.TempDir(), &Delivery{PerHost: 4})
	defer stop()
	want := make(map[string]bool)
	for range 300 {
		want[owe(t, a.engine.Load(), url, true)] = true
	}
	if _, err := a.engine.Load().Lane(t.Context(), strings.TrimPrefix(url, "http://")); err != nil {
		t.Fatal(err)
	}
	for len(want) > 0 {
		select {
		case id := <-got:
			if !want[id] {
				t.Errorf("the callback of %s comes twice", id)
			}
			delete(want, id)
		case <-time.After(time.Minute):
			t.Fatalf("%d callbacks did not come", len(want))
		}
	}
}
