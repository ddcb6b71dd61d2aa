// Package gatewaytest starts what tests of the gateway need: a real Caddy and real NATS
// servers in their own processes, which tests can kill, and receivers of callbacks.
//
// The processes run the test binary: a package that uses gatewaytest calls [Main] in its
// TestMain.
package gatewaytest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard" // the modules of the gateways

	_ "github.com/caddy-callback/caddy-callback" // the module under test
	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/internal/engine/nats"
)

// AsCaddy is the environment variable that makes the test binary run Caddy's command line
// instead of tests. So every test has a real Caddy in its own process, which can be
// killed, and which has the race detector if the tests have it.
const AsCaddy = "CALLBACK_TEST_AS_CADDY"

// Main runs the tests, or the gateway or server that a test has started this binary as.
// After the tests, it runs the functions in after and ends the process.
func Main(m *testing.M, after ...func()) {
	switch {
	case os.Getenv(AsCaddy) != "":
		if lease, err := time.ParseDuration(os.Getenv(leaseTime)); err == nil {
			nats.DefaultLeaseTime = lease
		}
		caddycmd.Main()
	case os.Getenv(AsNATS) != "":
		runNATS()
	default:
		if signal.Ignored(os.Interrupt) {
			// Shells start background programs with this signal ignored, and gateways
			// would inherit that. Catching the signal here prevents it.
			signal.Notify(make(chan os.Signal, 1), os.Interrupt)
		}
		RunAtOnce(8)
		code := m.Run()
		for _, f := range after {
			f()
		}
		os.Exit(code)
	}
}

// leaseTime is the environment variable with the lease time of the gateways that
// share a cluster, if it is not the default.
const leaseTime = "CALLBACK_TEST_LEASE"

// ShortLease is a lease time that outlasts the election of a leader on a shared
// machine.
const ShortLease = slowness * 10 * time.Second

// ShortLeases gives the gateways that share a cluster a [ShortLease]: tests wait for
// leases to expire. It is called before [Main].
func ShortLeases() { _ = os.Setenv(leaseTime, ShortLease.String()) }

// RunAtOnce sets how many tests run at once, unless a flag or an earlier call did.
// Tests mostly wait: for leases to expire, and for servers to come back.
func RunAtOnce(n int) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // it is a number
	}
}

// Patience is how long a test waits for something that should happen soon. It is
// generous because machines are shared. Tests conclude nothing from the duration.
const Patience = slowness * 3 * time.Minute

// Gateway is a Caddy process with the callback module.
type Gateway struct {
	T     testing.TB // the test of the gateway
	Dir   string     // its data
	Admin string     // host:port
	Addr  string     // host:port of the site
	File  string     // the Caddyfile
	Env   []string   // of the process, in addition to the test's own

	Cmd  *exec.Cmd
	Log  *LogBuffer
	Done chan struct{}

	logged int // the length of Log when the configuration was loaded
}

// New writes a Caddyfile for a gateway but does not start it. options is the content of
// the global callback block, and site that of the site block. In both, %ADDR% is replaced
// by the site's address.
func New(t testing.TB, options, site string) *Gateway {
	t.Helper()
	g := &Gateway{T: t, Dir: t.TempDir(), Admin: freeaddr.New(t), Addr: freeaddr.New(t), Log: new(LogBuffer)}
	g.File = filepath.Join(g.Dir, "Caddyfile")
	g.Configure(options, site)
	t.Cleanup(func() {
		g.Kill()
		if g.Log.HasRace() {
			t.Error("the gateway has a data race")
		}
		if t.Failed() {
			t.Logf("gateway's log:\n%s", g.Log.String())
		}
	})
	return g
}

// Start writes the Caddyfile and starts the gateway.
func Start(t testing.TB, options, site string) *Gateway {
	t.Helper()
	g := New(t, options, site)
	g.Start()
	return g
}

// attemptTimeout is the timeout of an attempt if a test sets none. A slow machine needs
// more than the default: receivers wait until the test has sent all tasks.
const attemptTimeout = "timeout 2m"

// ToLocal are options that allow callbacks to the test's own receivers.
const ToLocal = `
	delivery {
		` + attemptTimeout + `
		allow 127.0.0.1
		ports any
	}`

var namesEngine = regexp.MustCompile(`(?m)^\s*engine\s`)

// Folder returns the gateway's store if its options name no engine.
func (g *Gateway) Folder() string { return filepath.Join(g.Dir, "store") }

// Configure replaces the Caddyfile; see [New].
func (g *Gateway) Configure(options, site string) {
	g.T.Helper()
	if !namesEngine.MatchString(options) {
		options = "engine sqlite " + g.Folder() + "\n" + options
	}
	text := fmt.Sprintf(`{
	admin %s
	auto_https off
	log {
		level DEBUG
	}
	callback {
		%s
	}
}
http://%s {
	%s
}
`, g.Admin, options, g.Addr, site)
	text = strings.ReplaceAll(text, "%ADDR%", g.Addr)
	if err := os.WriteFile(g.File, []byte(text), 0o600); err != nil {
		g.T.Fatal(err)
	}
}

// Start starts the process and waits until it serves and its store is open.
func (g *Gateway) Start() {
	g.T.Helper()
	g.Launch()
	g.Await()
}

// Await waits until the gateway serves and its store is open.
func (g *Gateway) Await() {
	g.T.Helper()
	g.Eventually("the gateway serves", func() error {
		select {
		case <-g.Done:
			return Fatal(errors.New("the process ended"))
		default:
		}
		// Apps start in random order. This succeeds when all have started.
		resp, err := http.Get("http://" + g.Admin + "/config/apps")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if config, err := io.ReadAll(resp.Body); err != nil || !bytes.HasPrefix(config, []byte("{")) {
			return fmt.Errorf("no configuration yet: %s %v", config, err)
		}
		return g.storeOpen()
	})
}

// storeOpen returns an error while the store is being opened, if the gateway did not wait
// for it because the disk is slow. Until the store is open, callbacks are refused. A store
// that cannot be opened is no error: tests break stores.
func (g *Gateway) storeOpen() error {
	resp, _, err := Send(http.MethodGet, "http://"+g.Admin+"/callback/queues", nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		return err
	}
	log := g.Log.String()
	log = log[min(g.logged, len(log)):]
	if strings.Contains(log, "store not open yet") && !strings.Contains(log, "store not opened") {
		return errors.New("the store is not open yet")
	}
	return nil
}

// Launch starts the process.
func (g *Gateway) Launch() {
	g.T.Helper()
	g.Run("run", "--config", g.File, "--adapter", "caddyfile")
}

// Run starts a process with the arguments of a command line.
func (g *Gateway) Run(args ...string) {
	g.T.Helper()
	self, err := os.Executable()
	if err != nil {
		g.T.Fatal(err)
	}
	g.Cmd = exec.Command(self, args...)
	g.Cmd.Dir = g.Dir
	g.Cmd.Env = append(os.Environ(), AsCaddy+"=1",
		"XDG_DATA_HOME="+g.Dir, "XDG_CONFIG_HOME="+g.Dir, "HOME="+g.Dir)
	g.Cmd.Env = append(g.Cmd.Env, g.Env...)
	g.Cmd.Stdout, g.Cmd.Stderr = g.Log, g.Log
	g.logged = len(g.Log.String())
	if err := g.Cmd.Start(); err != nil {
		g.T.Fatal(err)
	}
	g.Done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // its exit code is read from ProcessState
		close(done)
	}(g.Cmd, g.Done)
}

// Kill kills the process (SIGKILL) after it has stored the outcomes of its attempts.
func (g *Gateway) Kill() {
	Pause(outcomesStored)
	g.KillAtOnce()
}

// KillAtOnce kills the process (SIGKILL).
func (g *Gateway) KillAtOnce() {
	if g.Cmd != nil && g.Cmd.Process != nil {
		_ = g.Cmd.Process.Kill() // it may have ended already
		<-g.Done
	}
}

// outcomesStored is longer than the embedded engine waits before it commits the outcome of
// an attempt: a test that has seen a callback counts on its outcome.
const outcomesStored = 100 * time.Millisecond

// Stop stops the process (SIGTERM) and returns its exit code.
func (g *Gateway) Stop() int {
	g.T.Helper()
	if err := g.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.T.Fatal(err)
	}
	select {
	case <-g.Done:
	case <-time.After(Patience):
		g.T.Fatal("the gateway did not stop")
	}
	return g.Cmd.ProcessState.ExitCode()
}

// Reload loads the Caddyfile again and waits until only the new servers listen, and the
// store is open. Until then, the old servers close connections that they have accepted but
// not read from yet.
func (g *Gateway) Reload() error {
	text, err := os.ReadFile(g.File)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+g.Admin+"/load", bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	req.Header.Set("Cache-Control", "must-revalidate") // load it even if it is unchanged
	g.logged = len(g.Log.String())
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
	return g.AwaitReload()
}

// AwaitReload waits, after a configuration was loaded, until only the new servers listen,
// and the store is open.
func (g *Gateway) AwaitReload() error {
	if err := until(g.T.Context(), g.listensOnce); err != nil {
		return fmt.Errorf("after a reload: %w", err)
	}
	// Connections to the replaced servers may close while they are used.
	http.DefaultClient.CloseIdleConnections()
	return until(g.T.Context(), g.storeOpen)
}

// listensOnce returns an error while several sockets listen on the port of the site or of
// the admin endpoint. Caddy opens the next one before it closes the last. On systems other
// than Linux it returns nil.
func (g *Gateway) listensOnce() error {
	// A line is: number, local address, remote address, state in hexadecimal.
	const listening = "0A"
	sockets := make(map[string]int) // by port in hexadecimal
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		lines, err := os.ReadFile(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(lines)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == listening {
				_, port, _ := strings.Cut(f[1], ":")
				sockets[port]++
			}
		}
	}
	for _, addr := range []string{g.Addr, g.Admin} {
		_, text, _ := strings.Cut(addr, ":")
		port, err := strconv.Atoi(text)
		if err != nil {
			return Fatal(err)
		}
		if n := sockets[fmt.Sprintf("%04X", port)]; n > 1 {
			return fmt.Errorf("%d sockets listen at %s", n, addr)
		}
	}
	return nil
}

// URL returns the URL of a path on the site.
func (g *Gateway) URL(path string) string { return "http://" + g.Addr + path }

// Post sends a JSON body and returns the response with its body read.
func (g *Gateway) Post(path, body string) (*http.Response, string) {
	g.T.Helper()
	return g.Do(http.MethodPost, path, body, "Content-Type", "application/json")
}

// Do sends a request with pairs of header names and values.
func (g *Gateway) Do(method, path, body string, header ...string) (*http.Response, string) {
	g.T.Helper()
	resp, text, err := Send(method, g.URL(path), strings.NewReader(body), header...)
	if err != nil {
		g.T.Fatal(err)
	}
	return resp, text
}

// Send sends a request with pairs of header names and values, and reads the response.
func Send(method, url string, body io.Reader, header ...string) (*http.Response, string, error) {
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
