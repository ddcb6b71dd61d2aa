package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/google/uuid"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// oneRun is a `caddy callback run` in its own process.
type oneRun struct {
	t              *testing.T
	dir            string // for its files
	cmd            *exec.Cmd
	stdout, stderr gatewaytest.LogBuffer
}

// newRun returns a run that is not started.
func newRun(t *testing.T, args ...string) *oneRun {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &oneRun{t: t, dir: t.TempDir()}
	r.cmd = exec.CommandContext(t.Context(), self, append([]string{"callback", "run"}, args...)...)
	r.cmd.Env = append(os.Environ(), gatewaytest.AsCaddy+"=1",
		"XDG_DATA_HOME="+r.dir, "XDG_CONFIG_HOME="+r.dir, "HOME="+r.dir, "TMPDIR="+r.dir)
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	return r
}

func (r *oneRun) start() *oneRun {
	r.t.Helper()
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return r
}

// wait returns how the run ended. It fails the test if files remain.
func (r *oneRun) wait() command {
	r.t.Helper()
	var exit *exec.ExitError
	if err := r.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(r.dir, "*"))
	if err != nil || len(left) > 0 {
		r.t.Errorf("it leaves %v behind: %v", left, err)
	}
	return command{r.stdout.String(), r.stderr.String(), r.cmd.ProcessState.ExitCode()}
}

// interrupt sends what Ctrl-C sends.
func (r *oneRun) interrupt() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
}

// runTask runs a task until it ends.
func runTask(t *testing.T, args ...string) command {
	t.Helper()
	return newRun(t, args...).start().wait()
}

// deliveryFile writes a Caddyfile with delivery options.
func deliveryFile(t *testing.T, options string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	text := "{\n\tcallback {\n\t\tdelivery {\n\t\t\t" + options + "\n\t\t}\n\t}\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRunPrintsResponseAndCallsBack(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != `{"n":1}` || r.Method != "POST" || r.RequestURI != "/train?x=1" ||
			r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Two") != "b" {
			t.Errorf("the app got %s %s %v %s %v", r.Method, r.RequestURI, r.Header, body, err)
		}
		if _, err := uuid.Parse(r.Header.Get("beam-task-id")); err != nil {
			t.Errorf("the app's beam-task-id: %v", err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	c := runTask(t, "--to", "http://"+app+"/train?x=1", "--data", `{"n":1}`, "-H", "X-One: a", "--header", "X-Two: b",
		"--callback-url", rcv.URL, "--config", deliveryFile(t, "secret "+exampleKey))
	c.wantCode(t, 0)
	if c.stdout != `{"response":"example response"}` || !deliveredLine.MatchString(c.stderr) {
		t.Errorf("it writes %q and %q", c.stdout, c.stderr)
	}
	got := rcv.Next(t)
	if got.Body != "response=example+response" || got.Status() != "COMPLETE" {
		t.Errorf("the callback is %v %s", got.Header, got.Body)
	}
	for name, want := range map[string]string{
		"Content-Type":             "application/x-www-form-urlencoded",
		"Callback-Attempt":         "1",
		"Callback-Upstream-Status": "200",
		"Callback-Hop":             "1",
		"Webhook-Id":               got.TaskID(),
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
	verifier, err := standardwebhooks.NewWebhook(exampleKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Verify([]byte(got.Body), got.Header); err != nil {
		t.Errorf("the signature: %v", err)
	}
}

// deliveredLine matches the output on standard error if nothing fails.
var deliveredLine = regexp.MustCompile(`\ACOMPLETE; callback delivered; task [0-9a-f-]{36}\n\z`)

func TestRunCallsURLInData(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	rcv, other := gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)
	data := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
	runTask(t, "--to", "http://"+app, "--data", data, "--format", "json").wantCode(t, 0)
	if got := rcv.Next(t); got.Header.Get("Content-Type") != "application/json" || !strings.Contains(got.Body, `"data":"done"`) {
		t.Errorf("the callback is %v %s", got.Header, got.Body)
	}
	// The option on the command line overrides it.
	runTask(t, "--to", "http://"+app, "--data", data, "--callback-url", other.URL).wantCode(t, 0)
	other.Next(t)
	if len(rcv.Got) > 0 {
		t.Error("both were called")
	}
}

func TestRunExitCodes(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/fail":
			http.Error(w, "out of memory", http.StatusInternalServerError)
		case "/moved":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		case "/length":
			w.Header().Set("Content-Length", "1000")
		case "/hang":
			<-r.Context().Done()
		case "/broken":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "part")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	for name, test := range map[string]struct {
		args                   []string
		code                   int
		status, body           string
		stdout, stderrContains string
	}{
		"endpoint answers 500": {
			[]string{"--to", "http://" + app + "/fail"}, 1, "FAILED", "response=out+of+memory%0A",
			"out of memory\n", "FAILED: the endpoint answered 500 Internal Server Error",
		},
		"unreachable receiver": {
			[]string{"--to", "http://127.0.0.1:1/"}, 1, "FAILED", "error=the+endpoint+gave+no+answer+%28502+Bad+Gateway%29",
			"", "connection refused\nFAILED: the endpoint gave no answer",
		},
		"broken response": {
			[]string{"--to", "http://" + app + "/broken"}, 1, "FAILED", "error=the+endpoint%27s+response+was+incomplete",
			"part", "FAILED: the endpoint's response was incomplete",
		},
		"timeout": {
			[]string{"--to", "http://" + app + "/hang", "--timeout", "100ms"}, 3, "TIMEOUT",
			"error=the+endpoint+did+not+finish+within+100ms", "", "TIMEOUT: the endpoint did not finish within 100ms",
		},
		"redirect": {
			[]string{"--to", "http://" + app + "/moved", "--method", "PUT"}, 0, "COMPLETE", "response=", "", "",
		},
		"response to HEAD": {
			[]string{"--to", "http://" + app + "/length", "--method", "HEAD"}, 0, "COMPLETE", "response=", "", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			runTask(t, test.args...).wantCode(t, test.code) // the same without a callback
			c := runTask(t, append(test.args, "--callback-url", rcv.URL)...)
			c.wantCode(t, test.code)
			got := rcv.Next(t)
			if c.stdout != test.stdout || !strings.Contains(c.stderr, test.stderrContains) || !strings.HasSuffix(c.stderr, "; callback delivered; task "+got.TaskID()+"\n") {
				t.Errorf("it writes %q and %q", c.stdout, c.stderr)
			}
			if got.Status() != test.status || got.Body != test.body {
				t.Errorf("the callback is %s %s", got.Status(), got.Body)
			}
		})
	}
}

func TestRunWaitsForRetries(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	calls := 0
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	c := runTask(t, "--to", "http://"+app, "--callback-url", rcv.URL, "--config", deliveryFile(t, "retry 1s 1s"))
	c.wantCode(t, 0)
	var attempts []string
	for range 3 {
		attempts = append(attempts, rcv.Next(t).Header.Get("Callback-Attempt"))
	}
	if got := strings.Join(attempts, " "); got != "1 2 3" {
		t.Errorf("the attempts are %s", got)
	}
	for _, want := range []string{"callback, attempt 1: 503 Service Unavailable", "callback, attempt 2: 503 Service Unavailable"} {
		if strings.Count(c.stderr, want) != 1 {
			t.Errorf("%q does not tell of the failed attempt: %s", c.stderr, want)
		}
	}
}

func TestRunUndeliveredCallbackExitCode(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	c := runTask(t, "--to", "http://"+app, "--callback-url", "http://127.0.0.1:1/hook", "--config", deliveryFile(t, "retry 1s"))
	c.wantCode(t, 4)
	if c.stdout != "done" || !strings.Contains(c.stderr, "callback, attempt 2: ") || !strings.Contains(c.stderr, "given up") ||
		!strings.Contains(c.stderr, "COMPLETE; callback not delivered; task ") {
		t.Errorf("it writes %q and %q", c.stdout, c.stderr)
	}
}

func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			begun, canceled := make(chan struct{}), make(chan struct{})
			app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					t.Error(err)
				}
				close(begun)
				<-r.Context().Done()
				close(canceled)
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			r := newRun(t, "--to", "http://"+app, "--callback-url", rcv.URL).start()
			<-begun
			if err := r.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			<-canceled
			if got := rcv.Next(t); got.Status() != "FAILED" || got.Body != "error=canceled" {
				t.Errorf("the callback is %s %s", got.Status(), got.Body)
			}
			r.wait().wantCode(t, 1)
		})
	}
}

func TestRunInterruptedTwice(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		close(begun)
		<-r.Context().Done()
	})
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	r := newRun(t, "--to", "http://"+app, "--callback-url", rcv.URL, "--config", deliveryFile(t, "retry 1h")).start()
	<-begun
	r.interrupt()
	gatewaytest.Eventually(t, "the callback is tried", func() error {
		if !strings.Contains(r.stderr.String(), "attempt 1: 503 Service Unavailable; next in ") {
			return errors.New(r.stderr.String())
		}
		return nil
	})
	// Two signals that arrive at once count as one.
	ended := make(chan command, 1)
	go func() { ended <- r.wait() }()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case c := <-ended:
			c.wantCode(t, 4)
			if !strings.Contains(c.stderr, "given up; callback not delivered; task ") {
				t.Errorf("it writes %q", c.stderr)
			}
			return
		case <-again.C:
			_ = r.cmd.Process.Signal(os.Interrupt) // the process may have ended
		case <-t.Context().Done():
			t.Fatal("it waits on")
		}
	}
}

func TestRunUsageErrorsNameFlag(t *testing.T) {
	t.Parallel()
	good := []string{"--to", "http://127.0.0.1:1/"}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no target":          {nil, "--to is missing"},
		"an invalid target":  {[]string{"--to", "app:9000"}, `--to: "app:9000" is not an http or https URL`},
		"an unknown flag":    {append(good, "--callback", "x"), "unknown flag: --callback"},
		"an argument":        {append(good, "x"), `unexpected argument "x"`},
		"a bad timeout":      {append(good, "--timeout", "soon"), `--timeout: "soon" is not a positive duration`},
		"no time":            {append(good, "--timeout", "0"), `--timeout: "0" is not`},
		"a bad format":       {append(good, "--format", "xml"), `--format: "xml" is not one of form, json, raw, cloudevents`},
		"a bad header":       {append(good, "-H", "x"), `--header: "x" is not "Name: value"`},
		"a bad method":       {append(good, "--method", "A B"), `--method: "A B" is not a method`},
		"a missing file":     {append(good, "--data", "@/nowhere"), "--data: open /nowhere"},
		"a bad callback URL": {append(good, "--callback-url", "ftp://c.example"), "--callback-url: not an http or https URL"},
		"a denied callback URL": {
			append(good, "--callback-url", "http://127.0.0.1/", "--config", deliveryFile(t, "deny 127.0.0.0/8")),
			"--callback-url: host 127.0.0.1 is a denied address",
		},
		"a bad URL in data":         {append(good, "--data", `{"callback_url":7}`), "--data: callback_url: not a string"},
		"a missing config":          {append(good, "--config", "/nowhere"), "--config: "},
		"a bad config":              {append(good, "--config", deliveryFile(t, "retry never")), `--config: `},
		"an adapter without config": {append(good, "--adapter", "caddyfile"), "--config"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := runTask(t, test.args...)
			c.wantCode(t, 2)
			if !strings.Contains(c.stderr, "caddy callback run: ") || !strings.Contains(c.stderr, test.want) || c.stdout != "" {
				t.Errorf("it writes %q and %q", c.stdout, c.stderr)
			}
		})
	}
	c := runCaddy(t, t.TempDir(), "callback", "rum")
	c.wantCode(t, 2)
	if !strings.Contains(c.stderr, `unknown command "rum"`) {
		t.Errorf("it writes %q", c.stderr)
	}
}

func TestRunPassesBytesOn(t *testing.T) {
	t.Parallel()
	// 20 MB with all byte values: more than a callback posts whole.
	sent := bytes.Repeat([]byte(allBytes()), 20<<20/256)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = io.Copy(w, r.Body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	r := newRun(t, "--to", "http://"+app, "--data", "@-", "--callback-url", rcv.URL,
		"--config", deliveryFile(t, "timeout 2m")) // the receiver parses the body, which is slow with the race detector
	r.cmd.Stdin = bytes.NewReader(sent)
	c := r.start().wait()
	c.wantCode(t, 0)
	if c.stdout != string(sent) || !deliveredLine.MatchString(c.stderr) {
		t.Errorf("it writes %d bytes, and %q", len(c.stdout), c.stderr)
	}
	got := rcv.Next(t)
	if got.Header.Get("Callback-Encoding") != "base64" || got.Header.Get("Callback-Truncated") != fmt.Sprint(len(sent)) {
		t.Errorf("the callback is %v", got.Header)
	}
}

func allBytes() string {
	var b [256]byte
	for i := range b {
		b[i] = byte(i)
	}
	return string(b[:])
}

func TestRunDataFromFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "job.json")
	if err := os.WriteFile(file, []byte(`{"epochs":3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	c := runTask(t, "--to", "http://"+app, "--data", "@"+file)
	c.wantCode(t, 0)
	if c.stdout != `{"epochs":3}` {
		t.Errorf("it writes %q", c.stdout)
	}
}

func TestRunContinuesWithoutReader(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			_, _ = io.WriteString(w, strings.Repeat("x", 10_000))
		}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	r := newRun(t, "--to", "http://"+app, "--callback-url", rcv.URL)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stdout = writer
	r.start()
	writer.Close()
	reader.Close() // as `| head` does
	if got := rcv.Next(t); got.Status() != "COMPLETE" || len(got.Body) != len("response=")+1_000_000 {
		t.Errorf("the callback is %s, %d bytes", got.Status(), len(got.Body))
	}
	r.wait().wantCode(t, 0)
}

func TestDocsRunCommandsWork(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	rcv := gatewaytest.NewReceiver(t, nil)
	real := strings.NewReplacer("app:9000", app, "https://c.example", rcv.URL)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"job.json":  `{"epochs":3}`,
		"Caddyfile": "example.com {\n\tcallback\n\treverse_proxy app:9000\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range blocks(t, "docs/run.md") {
		if b.lang != "sh" {
			continue
		}
		args, ok := strings.CutPrefix(b.text, "caddy callback run ")
		if !ok {
			t.Fatalf("%v: nothing runs it", b)
		}
		r := newRun(t, shellWords(t, real.Replace(args))...)
		r.cmd.Dir = dir
		c := r.start().wait()
		c.wantCode(t, 0)
		if c.stdout != "done" || !strings.HasPrefix(c.stderr, "COMPLETE; ") {
			t.Errorf("%v: it writes %q and %q", b, c.stdout, c.stderr)
		}
		if strings.Contains(args, "https://c.example/hook") {
			rcv.Next(t)
		}
	}
}
