package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-callback/caddy-callback"
)

// asCaddy makes the test binary run Caddy's command line instead of tests: so
// every test has a real Caddy in a process of its own that can be killed, built
// with the race detector when the tests are.
const asCaddy = "CALLBACK_TEST_AS_CADDY"

func TestMain(m *testing.M) {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	if os.Getenv(asNATS) != "" {
		runNATS()
		return
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what should come soon. It is generous
// because machines are shared; nothing is concluded from how long it took.
const patience = 60 * time.Second

// gateway is a Caddy process with the callback module.
type gateway struct {
	t     *testing.T
	dir   string   // its data
	admin string   // host:port
	addr  string   // host:port of the site
	file  string   // the Caddyfile
	env   []string // of the process, beside the test's own

	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// newGateway writes a Caddyfile for a gateway but does not start it. In options
// and site, the blocks of the global callback options and of the site, %ADDR%
// is the site's address.
func newGateway(t *testing.T, options, site string) *gateway {
	t.Helper()
	g := &gateway{t: t, dir: t.TempDir(), admin: freeAddr(t), addr: freeAddr(t), log: new(logBuffer)}
	g.file = filepath.Join(g.dir, "Caddyfile")
	g.configure(options, site)
	t.Cleanup(func() {
		g.kill()
		if g.log.hasRace() {
			t.Error("the gateway has a data race")
		}
		if t.Failed() {
			t.Logf("gateway's log:\n%s", g.log.String())
		}
	})
	return g
}

// startGateway writes the Caddyfile and starts the gateway.
func startGateway(t *testing.T, options, site string) *gateway {
	t.Helper()
	g := newGateway(t, options, site)
	g.start()
	return g
}

// toLocal are options that let callbacks go to the test's own receivers.
const toLocal = `
	delivery {
		allow 127.0.0.1
		ports any
	}`

func (g *gateway) configure(options, site string) {
	g.t.Helper()
	text := fmt.Sprintf(`{
	admin %s
	auto_https off
	log {
		level DEBUG
	}
	callback {
		store %s
		%s
	}
}
http://%s {
	%s
}
`, g.admin, filepath.Join(g.dir, "store"), raceOptions+"\n"+options, g.addr, site)
	text = strings.ReplaceAll(text, "%ADDR%", g.addr)
	if err := os.WriteFile(g.file, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// start starts the process and waits until it serves.
func (g *gateway) start() {
	g.t.Helper()
	g.launch()
	g.await()
}

// await waits until the gateway serves.
func (g *gateway) await() {
	g.t.Helper()
	g.eventually("the gateway serves", func() error {
		select {
		case <-g.done:
			return fatal{errors.New("the process ended")}
		default:
		}
		// Apps start in random order. This answers when all have.
		resp, err := http.Get("http://" + g.admin + "/config/apps")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if config, err := io.ReadAll(resp.Body); err != nil || !bytes.HasPrefix(config, []byte("{")) {
			return fmt.Errorf("no configuration yet: %s %v", config, err)
		}
		return nil
	})
}

// launch starts the process.
func (g *gateway) launch() {
	g.t.Helper()
	g.run("run", "--config", g.file, "--adapter", "caddyfile")
}

// run starts a process with the arguments of a command line.
func (g *gateway) run(args ...string) {
	g.t.Helper()
	self, err := os.Executable()
	if err != nil {
		g.t.Fatal(err)
	}
	g.cmd = exec.Command(self, args...)
	g.cmd.Dir = g.dir
	g.cmd.Env = append(os.Environ(), asCaddy+"=1",
		"XDG_DATA_HOME="+g.dir, "XDG_CONFIG_HOME="+g.dir, "HOME="+g.dir)
	g.cmd.Env = append(g.cmd.Env, g.env...)
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its exit code is read from ProcessState
		close(done)
	}(g.cmd, g.done)
}

// kill ends the process as a power cut would end it.
func (g *gateway) kill() {
	if g.cmd != nil && g.cmd.Process != nil {
		_ = g.cmd.Process.Kill() // it may have ended already
		<-g.done
	}
}

// stop ends the process as an operator does, and returns its exit code.
func (g *gateway) stop() int {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-g.done:
	case <-time.After(patience):
		g.t.Fatal("the gateway did not stop")
	}
	return g.cmd.ProcessState.ExitCode()
}

// reload loads the Caddyfile again.
func (g *gateway) reload() error {
	text, err := os.ReadFile(g.file)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+g.admin+"/load", bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	req.Header.Set("Cache-Control", "must-revalidate") // load even what is unchanged
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("reload: %s: %s", resp.Status, body)
	}
	// Those to the servers that are being replaced may close as they are used.
	http.DefaultClient.CloseIdleConnections()
	return nil
}

func (g *gateway) url(path string) string { return "http://" + g.addr + path }

// post sends a JSON body and returns the response with its body read.
func (g *gateway) post(path, body string) (*http.Response, string) {
	g.t.Helper()
	return g.do(http.MethodPost, path, body, "Content-Type", "application/json")
}

// do sends a request with pairs of header names and values.
func (g *gateway) do(method, path, body string, header ...string) (*http.Response, string) {
	g.t.Helper()
	resp, text, err := send(method, g.url(path), strings.NewReader(body), header...)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp, text
}

func send(method, url string, body io.Reader, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, "", err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

// fatal ends a wait that cannot succeed any more.
type fatal struct{ error }

// eventually waits until f returns nil.
func (g *gateway) eventually(what string, f func() error) {
	g.t.Helper()
	eventually(g.t, what, f)
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		var end fatal
		if errors.As(err, &end) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		case <-tick.C:
		}
	}
}

// logBuffer collects a process's output.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// hasRace says whether the race detector has found something. nats-server
// sets the timer of its syncs while that may fire already; it is harmless and
// not ours.
func (b *logBuffer) hasRace() bool {
	for _, report := range strings.Split(b.String(), "WARNING: DATA RACE")[1:] {
		report, _, _ = strings.Cut(report, "==================")
		if !strings.Contains(report, "(*fileStore).setSyncTimer()") {
			return true
		}
	}
	return false
}

// callback is what a receiver got.
type callback struct {
	header http.Header
	body   string
	at     time.Time
}

func (c callback) id() string     { return c.header.Get("beam-task-id") }
func (c callback) status() string { return c.header.Get("x-beam-task-status") }

// receiver takes callbacks.
type receiver struct {
	*httptest.Server
	got chan callback
}

// newReceiver starts a receiver that answers 200, or as answer does if it is
// not nil.
func newReceiver(t *testing.T, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{got: make(chan callback, 100_000)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the gateway was killed in the middle
		}
		r.got <- callback{req.Header.Clone(), string(body), time.Now()}
		if answer != nil {
			answer(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// next waits for the next callback.
func (r *receiver) next(t *testing.T) callback {
	t.Helper()
	select {
	case c := <-r.got:
		return c
	case <-time.After(patience):
		t.Fatal("no callback came")
		panic("unreachable")
	}
}

// newApp starts a stand-in for the service behind the gateway.
func newApp(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	app := httptest.NewServer(handler)
	t.Cleanup(app.Close)
	return strings.TrimPrefix(app.URL, "http://")
}
