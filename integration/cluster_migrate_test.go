package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// moving is an app and a receiver that are used before and after a move.
type moving struct {
	site string
	rcv  *gatewaytest.Receiver // of what is delivered
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

// fill makes tasks in many states and kills the gateway.
func (m *moving) fill(t *testing.T, g *gatewaytest.Gateway) (done, big string) {
	t.Helper()
	done = accepted(t, g, "/q", m.body(m.rcv.URL), "Idempotency-Key", "known")
	m.l.Accept(done)
	<-m.begun
	reaches(t, g, "/q", done, task.Done)
	for range 20 { // to be retried
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
	go func() { // a client's task, whose gateway dies
		defer close(waiting)
		_, _, _ = gatewaytest.Send(http.MethodPost, g.URL("/"), strings.NewReader(m.body(m.rcv.URL)),
			"Content-Type", "application/json", "Hold", "1")
	}()
	m.l.Accept(<-m.begun)
	g.Kill()
	<-waiting
	return done, big
}

// retrying are options with one worker and many attempts.
const retrying = "queue q {\nworkers 1\n}\n"

func (m *moving) options(c *gatewaytest.Cluster) string {
	return retrying + strings.Replace(c.Options(), "ports any", "ports any\n"+gatewaytest.ManyTimes, 1)
}

// moved runs `caddy callback migrate` and returns what it said.
func moved(t *testing.T, g *gatewaytest.Gateway) command {
	t.Helper()
	return runCaddy(t, t.TempDir(), "callback", "migrate", "--config", g.File, "--adapter", "caddyfile")
}

func TestAMoveToAClusterCarriesEveryTaskOver(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	local := retrying + gatewaytest.Delivering(gatewaytest.ManyTimes)
	g := gatewaytest.Start(t, local, m.site)
	done, big := m.fill(t, g)
	g.Configure(m.options(c), m.site)
	first := moved(t, g)
	first.wantCode(t, 0)
	for _, want := range []string{"2 tasks running", "1 tasks done", "1 idempotency keys", "1 large bodies"} {
		if !strings.Contains(first.stdout, " "+want+"\n") {
			t.Errorf("it does not say %q:\n%s", want, first.stdout)
		}
	}
	again := moved(t, g)
	again.wantCode(t, 0)
	if !strings.Contains(again.stdout, " 0 tasks queued\n") || !strings.Contains(again.stdout, " 0 large bodies\n") {
		t.Errorf("repeated, it says\n%s", again.stdout)
	}
	m.isOpen.Store(true)
	g.Start()
	b := gatewaytest.Start(t, m.options(c), m.site)
	gatewaytest.Eventually(t, "every accepted task has its callback", m.l.Settled)
	if doc := reaches(t, b, "/q", done, task.Done); doc.Status != task.Complete {
		t.Errorf("the task that had ended is %+v", doc)
	}
	if id := accepted(t, b, "/q", m.body(m.rcv.URL), "Idempotency-Key", "known"); id != done {
		t.Errorf("the key stands for %s, not %s", id, done)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bodies[big] < 2<<20 {
		t.Errorf("the large request has %d bytes", m.bodies[big])
	}
	t.Logf("%+v", m.l.Tally())
}

func TestAMoveThatIsKilledIsFinishedByRepeatingIt(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	g := gatewaytest.Start(t, retrying+gatewaytest.Delivering(gatewaytest.ManyTimes), m.site)
	m.fill(t, g)
	local := g.File + ".local"
	copyFile(t, g.File, local)
	g.Configure(m.options(c), m.site)
	// The gateways of the cluster run already, and a third does not begin on the folder.
	other := gatewaytest.Start(t, m.options(c), m.site)
	m.isOpen.Store(true)
	for i := range 5 {
		g.Run("callback", "migrate", "--config", g.File, "--adapter", "caddyfile")
		gatewaytest.Pause(time.Duration(100*i) * time.Millisecond)
		g.Kill()
	}
	finished := moved(t, g)
	finished.wantCode(t, 0)
	t.Logf("%s", finished.stdout)
	g.Run("run", "--config", local, "--adapter", "caddyfile")
	<-g.Done
	if g.Cmd.ProcessState.ExitCode() == 0 || !strings.Contains(g.Log.String(), "The tasks of this store were moved to nats://127.0.0.1") {
		t.Error("a gateway starts on the folder")
	}
	other.Eventually("every accepted task has its callback", m.l.Settled)
	t.Logf("%+v", m.l.Tally())
}

func TestAMoveWhileAReloadHasBroughtTheCluster(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	m := newMoving(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering(gatewaytest.ManyTimes), m.site)
	for range 20 {
		m.l.Accept(g.Task(m.shut.URL))
		<-m.begun
	}
	if c := moved(t, g); c.code != 2 || !strings.Contains(c.stderr, "the configuration has no nats option") {
		t.Errorf("without a cluster: %d %s", c.code, c.stderr)
	}
	g.Configure(m.options(c), m.site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	m.isOpen.Store(true)
	g.Eventually("the folder is free", func() error {
		switch c := moved(t, g); {
		case c.code == 0:
			return nil
		case strings.Contains(c.stderr, "is in use by another process"):
			return fmt.Errorf("%s", c.stderr)
		default:
			return gatewaytest.Fatal(fmt.Errorf("%d %s", c.code, c.stderr))
		}
	})
	g.Eventually("every accepted task has its callback", m.l.Settled)
}

func TestTheCommandLineOfAMoveIsChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a spare word":       {[]string{"now"}, 2, `"now" is neither a flag nor the value of one`},
		"an unknown flag":    {[]string{"--to", "x"}, 2, "unknown flag: --to"},
		"no configuration":   {[]string{"--config", "/nowhere/Caddyfile"}, 2, "--config: "},
		"no store":           {[]string{"--from", "/nowhere/store"}, 1, "there is no store in /nowhere/store"},
		"a cluster far away": {nil, 1, "the NATS cluster cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.New(t, natsOptions("nats://u:planted@127.0.0.1:1"), "callback")
			args := []string{"callback", "migrate"}
			if name != "no configuration" {
				args = append(args, "--config", g.File, "--adapter", "caddyfile")
			}
			if name == "a cluster far away" {
				e := gatewaytest.Start(t, "", "callback")
				e.Stop()
				args = append(args, "--from", e.Dir+"/store")
			}
			got := runCaddy(t, g.Dir, append(args, c.args...)...)
			if got.code != c.code || !strings.Contains(got.stderr, c.want) || strings.Contains(got.stderr+got.stdout, "planted") {
				t.Errorf("%d %s", got.code, got.stderr)
			}
		})
	}
}

// copyFile copies a file that is small.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, must[[]byte](t)(os.ReadFile(from)), 0o600); err != nil {
		t.Fatal(err)
	}
}
