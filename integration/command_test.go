package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// command is the output and the exit code of a Caddy command.
type command struct {
	stdout, stderr string
	code           int
}

// runCaddy runs a Caddy command to its end, with its data in dir.
func runCaddy(t *testing.T, dir string, args ...string) command {
	t.Helper()
	return runCaddyWithInput(t, nil, dir, args...)
}

// runCaddyWithInput is runCaddy with standard input; nil is empty.
func runCaddyWithInput(t *testing.T, input io.Reader, dir string, args ...string) command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), gatewaytest.AsCaddy+"=1", "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "HOME="+dir,
		"CALLBACK_KEY="+exampleKey) // the docs and the examples use it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return command{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// wantCode fails the test unless the command ended with the code.
func (c command) wantCode(t *testing.T, code int) {
	t.Helper()
	if c.code != code {
		t.Fatalf("exit code %d, want %d\n%s%s", c.code, code, c.stdout, c.stderr)
	}
}

func TestListModules(t *testing.T) {
	t.Parallel()
	c := runCaddy(t, t.TempDir(), "list-modules")
	c.wantCode(t, 0)
	lines := strings.Split(c.stdout, "\n")
	for _, module := range []string{
		"admin.api.callback", "callback", "http.handlers.callback", "http.handlers.callback_inbox", "http.handlers.task_dashboard",
		"http.handlers.task_queue",
	} {
		if !slices.Contains(lines, module) {
			t.Errorf("%s is not listed", module)
		}
	}
}

func TestValidateDoesNotAffectRunningGateway(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	rcv.Next(t)

	c := runCaddy(t, g.Dir, "validate", "--config", g.File, "--adapter", "caddyfile")
	c.wantCode(t, 0)
	if !strings.Contains(c.stdout, "Valid configuration") {
		t.Errorf("validate printed %q", c.stdout)
	}

	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	rcv.Next(t)
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
}

func TestValidateCreatesNoStore(t *testing.T) {
	t.Parallel()
	g := gatewaytest.New(t, "", "callback\nrespond ok")
	runCaddy(t, g.Dir, "validate", "--config", g.File, "--adapter", "caddyfile").wantCode(t, 0)
	for _, name := range []string{"store", "caddy/callback"} {
		if _, err := os.Stat(filepath.Join(g.Dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateFindsProvisioningErrors(t *testing.T) {
	t.Parallel()
	g := gatewaytest.New(t, "delivery {\nsecret {env.CALLBACK_TEST_UNSET}\n}", "callback\nrespond ok")
	c := runCaddy(t, g.Dir, "validate", "--config", g.File, "--adapter", "caddyfile")
	c.wantCode(t, 1)
	if !strings.Contains(c.stderr, "secret") {
		t.Errorf("it does not name the secret: %s", c.stderr)
	}
}

func TestAdaptPrintsJSON(t *testing.T) {
	t.Parallel()
	g := gatewaytest.New(t, "retention 1h 5", "callback {\nformat json\n}\nrespond ok")
	c := runCaddy(t, g.Dir, "adapt", "--config", g.File, "--adapter", "caddyfile", "--validate")
	c.wantCode(t, 0)
	var config struct {
		Apps struct {
			Callback struct {
				RetentionCount int `json:"retention_count"`
			} `json:"callback"`
		} `json:"apps"`
	}
	if err := json.Unmarshal([]byte(c.stdout), &config); err != nil {
		t.Fatal(err)
	}
	if config.Apps.Callback.RetentionCount != 5 {
		t.Errorf("retention_count is not 5 in %s", c.stdout)
	}
}

func TestAdaptNamesLine(t *testing.T) {
	t.Parallel()
	g := gatewaytest.New(t, "retain 1h", "callback\nrespond ok")
	c := runCaddy(t, g.Dir, "adapt", "--config", g.File, "--adapter", "caddyfile")
	c.wantCode(t, 1)
	output := strings.ReplaceAll(c.stderr, `\"`, `"`) // the error is inside a log line
	text, err := os.ReadFile(g.File)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "retain 1h")
	line := fmt.Sprintf(" at %s:%d", g.File, strings.Count(before, "\n")+1)
	for _, want := range []string{`callback: unknown option "retain"; expected one of alert, dead, `, line} {
		if !strings.Contains(output, want) {
			t.Errorf("%q does not contain %q", output, want)
		}
	}
}

func TestExampleIsFormatted(t *testing.T) {
	t.Parallel()
	runCaddy(t, t.TempDir(), "fmt", "--diff", filepath.Join("..", "Caddyfile.example")).wantCode(t, 0)
}

func TestFmtFormatsOurDirectives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "Caddyfile")
	untidy := "example.com {\ncallback   /a/*   {\n    timeout    5m\n}\nrespond ok\n}\n"
	if err := os.WriteFile(file, []byte(untidy), 0o600); err != nil {
		t.Fatal(err)
	}
	runCaddy(t, dir, "fmt", "--overwrite", file).wantCode(t, 0)
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "example.com {\n\tcallback /a/* {\n\t\ttimeout 5m\n\t}\n\trespond ok\n}\n"; string(got) != want {
		t.Errorf("it becomes %q", got)
	}
}

func TestReloadAppliesCaddyfile(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	reload := func() command {
		c := runCaddy(t, g.Dir, "reload", "--config", g.File, "--adapter", "caddyfile", "--address", g.Admin)
		if err := g.AwaitReload(); err != nil {
			t.Fatal(err)
		}
		return c
	}

	g.Configure(gatewaytest.ToLocal, "callback {\nformat json\nstatus_header x-status\n}\nreverse_proxy "+app)
	reload().wantCode(t, 0)
	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	if got := rcv.Next(t); got.Header.Get("Content-Type") != "application/json" || got.Header.Get("X-Status") != "COMPLETE" {
		t.Errorf("the callback is still of the old Caddyfile: %v", got.Header)
	}

	// A Caddyfile that cannot be loaded changes nothing.
	g.Configure(gatewaytest.ToLocal, "callback {\nformat xml\n}\nreverse_proxy "+app)
	reload().wantCode(t, 1)
	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	if got := rcv.Next(t); got.Header.Get("X-Status") != "COMPLETE" {
		t.Errorf("the failed reload changed the configuration: %v", got.Header)
	}
}

func TestSecondGatewayOnSameStoreFails(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "callback\nrespond ok")
	text, err := os.ReadFile(g.File)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(g.Dir, "other.caddyfile")
	second := strings.NewReplacer(g.Admin, freeaddr.New(t), g.Addr, freeaddr.New(t)).Replace(string(text))
	if err := os.WriteFile(other, []byte(second), 0o600); err != nil {
		t.Fatal(err)
	}
	c := runCaddy(t, g.Dir, "run", "--config", other, "--adapter", "caddyfile")
	c.wantCode(t, 1)
	if !strings.Contains(c.stderr, "is in use by process") {
		t.Errorf("it does not say why: %s", c.stderr)
	}
}
