package integration

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// moving has an app and a receiver that are the same before and after a migration.
type moving struct {
	site string
	rcv  *gatewaytest.Receiver // gets the callbacks
	shut *gatewaytest.Receiver // fails until isOpen
	l    *gatewaytest.Ledger

	isOpen atomic.Bool
	begun  chan string

	mu     sync.Mutex
	bodies map[string]int // bytes of requests that ran, by task
}

func newMoving(t *testing.T) *moving {
	m := &moving{begun: make(chan string, 1000), bodies: make(map[string]int)}
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		id := r.Header.Get("beam-task-id")
		m.begun <- id
		if r.Header.Get("Hold") != "" && !m.isOpen.Load() {
			<-r.Context().Done() // until the gateway is killed
			return
		}
		m.mu.Lock()
		m.bodies[id] = len(body)
		m.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"response":"example response"}`))
	})
	m.site = "callback\ntask_queue /q* q {\nreverse_proxy " + app + "\n}\nreverse_proxy " + app
	m.rcv = gatewaytest.NewReceiver(t, nil)
	m.l = gatewaytest.NewLedger(m.rcv, t.Context().Done())
	m.shut = gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if !m.isOpen.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _, _ = gatewaytest.Send(http.MethodPost, m.rcv.URL, http.NoBody,
			"beam-task-id", r.Header.Get("beam-task-id"), "x-beam-task-status", r.Header.Get("x-beam-task-status"))
	})
	return m
}

func (m *moving) body(url string) string { return fmt.Sprintf(`{"callback_url":%q}`, url) }

// fill creates tasks in many states and kills the gateway.
func (m *moving) fill(t *testing.T, g *gatewaytest.Gateway) (done, big string) {
	t.Helper()
	done = accepted(t, g, "/q", m.body(m.rcv.URL), "Idempotency-Key", "known")
	m.l.Accept(done)
	<-m.begun
	reaches(t, g, "/q", done, task.Done)
	for range 20 { // these are retried
		m.l.Accept(g.Task(m.shut.URL))
		<-m.begun
	}
	held := accepted(t, g, "/q", m.body(m.rcv.URL), "Hold", "1") // runs: the queue's only worker
	m.l.Accept(held)
	<-m.begun
	for range 20 { // wait
		m.l.Accept(accepted(t, g, "/q", m.body(m.rcv.URL)))
	}
	big = accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":%q,"data":%q}`, m.rcv.URL, strings.Repeat("x", 2<<20)))
	m.l.Accept(big)
	waiting := make(chan struct{})
	go func() { // the gateway is killed while this client waits
		defer close(waiting)
		_, _, _ = gatewaytest.Send(http.MethodPost, g.URL("/"), strings.NewReader(m.body(m.rcv.URL)),
			"Content-Type", "application/json", "Hold", "1")
	}()
	m.l.Accept(<-m.begun)
	g.Kill()
	<-waiting
	return done, big
}

// retrying is options with one worker and many attempts.
const retrying = "queue q {\nworkers 1\n}\n"

func (m *moving) options(c *gatewaytest.Cluster) string {
	return retrying + strings.Replace(c.Options(), "ports any", "ports any\n"+gatewaytest.ManyTimes, 1)
}

// migrated runs `caddy callback migrate` into the store of the gateway's configuration,
// and returns the output.
func migrated(t *testing.T, g *gatewaytest.Gateway, from string) command {
	t.Helper()
	return runCaddy(t, t.TempDir(), "callback", "migrate", "--from", from, "--config", g.File, "--adapter", "caddyfile")
}

func TestMigrateToClusterAndBack(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	local := retrying + gatewaytest.Delivering(gatewaytest.ManyTimes)
	g := gatewaytest.Start(t, local, m.site)
	done, big := m.fill(t, g)
	there := migratedBetween(t, "sqlite:"+g.Folder(), c.URLs())
	there.wantCode(t, 0)
	for _, want := range []string{"1 tasks done", "0 tasks that were there already", "1 idempotency keys"} {
		if !strings.Contains(there.stdout, " "+want+"\n") {
			t.Errorf("the output lacks %q:\n%s", want, there.stdout)
		}
	}
	again := migratedBetween(t, "sqlite:"+g.Folder(), c.URLs())
	again.wantCode(t, 0)
	if !strings.Contains(again.stdout, " 0 tasks queued\n") || !strings.Contains(again.stderr, "0 copied (0 B)") {
		t.Errorf("the second migration prints\n%s%s", again.stdout, again.stderr)
	}
	folder := filepath.Join(t.TempDir(), "back")
	migratedBetween(t, c.URLs(), "sqlite:"+folder).wantCode(t, 0)
	m.isOpen.Store(true)
	b := gatewaytest.Start(t, "engine sqlite "+folder+"\n"+local, m.site)
	m.l.Drain(t)
	if doc := reaches(t, b, "/q", done, task.Done); doc.Status != task.Complete {
		t.Errorf("the finished task is %+v", doc)
	}
	if id := accepted(t, b, "/q", m.body(m.rcv.URL), "Idempotency-Key", "known"); id != done {
		t.Errorf("the key returns %s, want %s", id, done)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bodies[big] < 2<<20 {
		t.Errorf("the large request has %d bytes", m.bodies[big])
	}
	t.Logf("%+v", m.l.Tally())
}

// migratedBetween runs `caddy callback migrate` with --from and --to.
func migratedBetween(t *testing.T, from, to string) command {
	t.Helper()
	return runCaddy(t, t.TempDir(), "callback", "migrate", "--from", from, "--to", to, "--to-replicas", "1")
}

func TestMigrateResumesAfterKill(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	g := gatewaytest.Start(t, retrying+gatewaytest.Delivering(gatewaytest.ManyTimes), m.site)
	m.fill(t, g)
	from := "sqlite:" + g.Folder()
	g.Configure(m.options(c), m.site)
	// A gateway already uses the cluster.
	gatewaytest.Start(t, m.options(c), m.site)
	m.isOpen.Store(true)
	for i := range 5 {
		g.Run("callback", "migrate", "--from", from, "--config", g.File, "--adapter", "caddyfile")
		gatewaytest.Pause(time.Duration(100*i) * time.Millisecond)
		g.Kill()
	}
	finished := migrated(t, g, from)
	finished.wantCode(t, 0)
	t.Logf("%s", finished.stdout)
	m.l.Drain(t)
	t.Logf("%+v", m.l.Tally())
}

func TestMigrateAfterEngineChange(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering(gatewaytest.ManyTimes), m.site)
	for range 20 {
		m.l.Accept(g.Task(m.shut.URL))
		<-m.begun
	}
	from := "sqlite:" + g.Folder()
	if c := migrated(t, g, from); c.code != 2 || !strings.Contains(c.stderr, "--from and --to are the same store") {
		t.Errorf("from a folder to itself: %d %s", c.code, c.stderr)
	}
	g.Configure(m.options(c), m.site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	m.isOpen.Store(true)
	g.Eventually("the folder is free", func() error {
		switch c := migrated(t, g, from); {
		case c.code == 0:
			return nil
		case strings.Contains(c.stderr, "stop the gateway that uses it"):
			return fmt.Errorf("%s", c.stderr)
		default:
			return gatewaytest.Fatal(fmt.Errorf("%d %s", c.code, c.stderr))
		}
	})
	m.l.Drain(t)
}

func TestMigrateUsageErrors(t *testing.T) {
	t.Parallel()
	here := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a spare word", []string{"now"}, 2, `unexpected argument "now"`},
		{"an unknown flag", []string{"--into", "x"}, 2, "unknown flag: --into"},
		{"no store", nil, 2, "--from and --to are missing"},
		{"no engine", []string{"--from", here, "--to", "nats://127.0.0.1:1"}, 2, "--from: expected "},
		{"no configuration", []string{"--from", "sqlite:" + here, "--config", "/nowhere/Caddyfile"}, 2, "--config: "},
		{"no folder", []string{"--from", "sqlite:/nowhere/store", "--to", "nats://127.0.0.1:1"}, 2, "--from: "},
		{"the same folder", []string{"--from", "sqlite:" + here, "--to", "sqlite:" + here + "/"}, 2, "the same store"},
		{"credentials of a folder", []string{"--from", "sqlite:" + here, "--from-credentials", "x", "--to", "sqlite:x"}, 2, "no credentials"},
		{"a URL of another scheme", []string{"--from", "sqlite:" + here, "--to", "http://u:planted@127.0.0.1:1"}, 2, "--to: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := runCaddy(t, t.TempDir(), append([]string{"callback", "migrate"}, c.args...)...)
			if got.code != c.code || !strings.Contains(got.stderr, c.want) || strings.Contains(got.stderr+got.stdout, "planted") {
				t.Errorf("%d %s", got.code, got.stderr)
			}
		})
	}
}

func TestRepairUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"two folders", []string{"a", "b"}, "expected one folder, got 2"},
		{"no folder", []string{"/nowhere/store"}, "/nowhere/store"},
		{"an unknown flag", []string{"--force"}, "unknown flag: --force"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := runCaddy(t, t.TempDir(), append([]string{"callback", "repair"}, c.args...)...)
			if got.code != 2 || !strings.Contains(got.stderr, c.want) {
				t.Errorf("%d %s", got.code, got.stderr)
			}
		})
	}
}

func TestRepairKeepsSoundStore(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}\n"+gatewaytest.ToLocal, "task_queue /q* q {\nrespond done\n}")
	id := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", id, task.Done)
	held := runCaddy(t, g.Dir, "callback", "repair", g.Folder())
	if held.code != 1 || !strings.Contains(held.stderr, "stop the gateway that uses it") {
		t.Errorf("while the gateway runs: %d %s", held.code, held.stderr)
	}
	g.Stop()
	runCaddy(t, g.Dir, "callback", "repair", g.Folder()).wantCode(t, 0)
	g.Start()
	reaches(t, g, "/q", id, task.Done)
}
