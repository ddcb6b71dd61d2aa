package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// read returns a file of the project.
func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// validCaddyfile checks that a Caddyfile of the examples is valid and formatted, and
// that its grace period ends well before the process is killed.
func validCaddyfile(t *testing.T, text string, killedAfter time.Duration) {
	t.Helper()
	validate(t, block{page: t.Name(), line: 1}, "caddyfile", text)
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	runCaddy(t, t.TempDir(), "fmt", "--diff", file).wantCode(t, 0)
	m := regexp.MustCompile(`(?m)^\tgrace_period (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatal("the Caddyfile has no grace_period")
	}
	if grace, err := time.ParseDuration(m[1]); err != nil || grace+10*time.Second > killedAfter {
		t.Errorf("the grace period is %s, and the process is killed after %v: %v", m[1], killedAfter, err)
	}
}

// unit is a systemd unit: its sections with their settings, in order.
type unit map[string]map[string][]string

// readUnit parses a unit. It fails on lines that systemd would ignore.
func readUnit(t *testing.T, file string) unit {
	t.Helper()
	u, section := make(unit), ""
	for i, line := range strings.Split(read(t, file), "\n") {
		name, value, isSetting := strings.Cut(line, "=")
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			if section = line[1 : len(line)-1]; u[section] == nil {
				u[section] = make(map[string][]string)
			}
		case section == "" || !isSetting || strings.TrimSpace(name) != name || strings.TrimSpace(value) != value:
			t.Errorf("%s:%d: %q is not a setting", file, i+1, line)
		default:
			u[section][name] = append(u[section][name], value)
		}
	}
	return u
}

func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	const file, dropIn = "examples/systemd/caddy.service", "examples/systemd/caddy.service.d/callback.conf"
	u, more := readUnit(t, file), readUnit(t, dropIn)
	if len(u) != 3 || u["Unit"] == nil || u["Install"] == nil || len(more) != 1 || more["Service"] == nil {
		t.Fatalf("the sections are %v and %v", u, more)
	}
	service := u["Service"]
	for name, want := range map[string]string{
		"Type": "notify", "User": "caddy", "StateDirectory": "caddy", "Restart": "on-failure",
	} {
		if got := strings.Join(service[name], " "); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"ExecStart", "ExecReload"} {
		if len(service[name]) != 1 {
			t.Fatalf("%s=%v", name, service[name])
		}
		line, ok := strings.CutPrefix(service[name][0], "/usr/local/bin/")
		if !ok || strings.Contains(line, "--environ") {
			t.Errorf("%s=%s", name, service[name][0])
		}
		checkFlags(t, block{page: file}, line)
	}
	if got := strings.Join(more["Service"]["KillSignal"], ""); got != "SIGTERM" {
		t.Errorf("KillSignal=%s", got)
	}
	stop, err := time.ParseDuration(strings.Join(more["Service"]["TimeoutStopSec"], ""))
	if err != nil {
		t.Fatal(err)
	}
	// Check the Caddyfile that the page installs, and those that it shows.
	const installed = "examples/systemd/gateway/Caddyfile"
	if !strings.Contains(read(t, "docs/installing.md"), installed+" /etc/caddy/Caddyfile\n") {
		t.Errorf("the page does not install %s", installed)
	}
	caddyfiles := []string{read(t, installed)}
	for _, b := range blocks(t, "docs/installing.md") {
		if b.lang == "caddyfile" && strings.Contains(b.text, "grace_period") {
			caddyfiles = append(caddyfiles, b.text)
		}
	}
	for _, text := range caddyfiles {
		store := regexp.MustCompile(`engine sqlite /var/lib/(\S+)`).FindStringSubmatch(text)
		if store == nil || !slices.Contains(strings.Fields(more["Service"]["StateDirectory"][0]), store[1]) {
			t.Errorf("the store's folder %v is not in StateDirectory=%v", store, more["Service"]["StateDirectory"])
		}
		validCaddyfile(t, text, stop)
	}
	verifyUnit(t)
}

// verifyUnit checks the unit and its drop-in with systemd-analyze, if it is installed.
// Caddy is not installed, so another program takes its place.
func verifyUnit(t *testing.T) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../examples/systemd")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "caddy.service")
	text := strings.ReplaceAll(read(t, "examples/systemd/caddy.service"), "/usr/local/bin/caddy", analyze)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", "caddy.service")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":/usr/lib/systemd/system")
	if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze: %v: %s", err, out)
	}
}

// ofTheMachine are commands that change the machine, so tests do not run them.
var ofTheMachine = []string{"sudo useradd ", "sudo systemctl ", "sudo dpkg-divert ", "kubectl create secret "}

// checkInstalling checks that the files of an install command are in the checkout. The
// tests above check their contents.
func checkInstalling(t *testing.T, b block, command string) {
	t.Helper()
	if slices.ContainsFunc(ofTheMachine, func(prefix string) bool { return strings.HasPrefix(command, prefix) }) {
		return
	}
	words := strings.Fields(command)
	if !slices.Contains([]string{"go", "sudo", "docker", "kubectl", "echo"}, words[0]) {
		t.Errorf("%v: no test runs %s", b, command)
	}
	for _, word := range words {
		word, _, _ = strings.Cut(word, ":") // a volume is source:target
		word = strings.TrimPrefix(word, "./")
		if !strings.HasPrefix(word, "examples/") && !strings.HasPrefix(word, "cmd/") && word != "Caddyfile.example" {
			continue
		}
		if _, err := os.Stat(filepath.Join("..", word)); err != nil {
			t.Errorf("%v: %v", b, err)
		}
	}
}
