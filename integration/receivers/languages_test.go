package receivers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// key is the key of the specification's example.
const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// A language is a programming language with an example receiver.
type language struct {
	name string
	// with names the Standard Webhooks library that the receiver is tested with. Not
	// every machine can reach the registries of all languages, so most are tested with
	// the same sources from the specification's repository, through Go's proxy.
	with string
	// prepare builds the receiver in a folder with a copy of its source, and returns
	// the command that starts it.
	prepare func(t *testing.T, dir, libraries string) []string
}

var languages = []language{
	{"go", "its library", func(t *testing.T, dir, _ string) []string {
		run(t, dir, "go", "build", "-o", "receiver", ".")
		return []string{"./receiver"}
	}},
	{"python", "library of the specification's repository", func(_ *testing.T, _, libraries string) []string {
		return []string{"env", "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=" + libraries + "/python", "python3", "receiver.py"}
	}},
	{"javascript", "library from npm", func(t *testing.T, dir, _ string) []string {
		run(t, dir, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
		return []string{"node", "receiver.js"}
	}},
	{"php", "library of the specification's repository", func(t *testing.T, dir, libraries string) []string {
		// The same autoloader that composer would write.
		write(t, filepath.Join(dir, "vendor/autoload.php"), `<?php spl_autoload_register(fn ($class) => require '`+
			libraries+`/php/src/' . strtr(substr($class, 17), '\\', '/') . '.php');`)
		return []string{"sh", "-c", `php receiver.php &&
			exec php -d enable_post_data_reading=0 -S 127.0.0.1:$PORT receiver.php 2>/dev/null`}
	}},
	{"ruby", "library of the specification's repository", func(_ *testing.T, _, libraries string) []string {
		return []string{"ruby", "-I", libraries + "/ruby/lib", "receiver.rb"}
	}},
	{"java", "library of the specification's repository", func(t *testing.T, dir, libraries string) []string {
		sources := filepath.Join(libraries, "java/src/main/java/com/standardwebhooks")
		run(t, dir, "sh", "-c", fmt.Sprintf("javac -d classes %s/*.java %s/exceptions/*.java Receiver.java", sources, sources))
		return []string{"java", "-cp", "classes", "Receiver"}
	}},
	{"rust", "library of the specification's repository and stand-ins for three crates", prepareRust},
	{"shell", "openssl", func(*testing.T, string, string) []string {
		return []string{"bash", "receiver.sh"}
	}},
}

// prepareRust builds with Debian's crates. Debian lacks http 1, base64 0.22 and
// hmac-sha256, so testdata/rust has stand-ins for them.
func prepareRust(t *testing.T, dir, libraries string) []string {
	standIns, err := filepath.Abs("testdata/rust")
	if err != nil {
		t.Fatal(err)
	}
	patch := fmt.Sprintf("[source.crates-io]\nreplace-with = \"debian\"\n\n"+
		"[source.debian]\ndirectory = \"/usr/share/cargo/registry\"\n\n[patch.crates-io]\n"+
		"standardwebhooks = { path = %q }\n", libraries+"/rust")
	for _, crate := range []string{"http", "base64", "hmac-sha256"} {
		patch += fmt.Sprintf("%s = { path = %q }\n", crate, filepath.Join(standIns, crate))
	}
	write(t, filepath.Join(dir, ".cargo/config.toml"), patch)
	run(t, dir, "cargo", "build", "--offline", "--quiet")
	return []string{"target/debug/receiver"}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// A process is a running receiver.
type process struct {
	t       *testing.T
	dir     string
	command []string
	addr    string
	out     *gatewaytest.LogBuffer
	errs    *gatewaytest.LogBuffer
	cmd     *exec.Cmd
	done    <-chan struct{} // closed when cmd has ended
}

// build builds a receiver from its source in examples/. It returns its folder and
// the command that starts it there.
func build(t *testing.T, l language) (dir string, command []string) {
	t.Helper()
	libraries, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}",
		"github.com/standard-webhooks/standard-webhooks/libraries").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples/receivers/"+l.name)); err != nil {
		t.Fatal(err)
	}
	return dir, l.prepare(t, dir, strings.TrimSpace(string(libraries)))
}

// start starts a receiver that was built in a folder, without stored callbacks.
func start(t *testing.T, dir string, command []string) *process {
	t.Helper()
	p := &process{
		t: t, dir: dir, command: command, addr: freeaddr.New(t),
		out: new(gatewaytest.LogBuffer), errs: new(gatewaytest.LogBuffer),
	}
	if err := os.RemoveAll(filepath.Join(dir, "callbacks")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the receiver wrote:\n%.4000s\n%.4000s", p.out.String(), p.errs.String())
		}
	})
	p.restart()
	return p
}

// restart starts the receiver, and waits until it listens.
func (p *process) restart() {
	p.t.Helper()
	done := p.launch(key)
	gatewaytest.Eventually(p.t, "the receiver listens", func() error {
		select {
		case <-done:
			return gatewaytest.Fatal(fmt.Errorf("the receiver exited: %.2000s", p.errs.String()))
		default:
		}
		conn, err := net.Dial("tcp", p.addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// launch starts the receiver's process. The channel is closed when it ends.
func (p *process) launch(key string) <-chan struct{} {
	p.t.Helper()
	_, port, err := net.SplitHostPort(p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(p.command[0], p.command[1:]...)
	p.cmd.Dir = p.dir
	p.cmd.Env = append(os.Environ(), "CALLBACK_KEY="+key, "PORT="+port)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.errs
	// A child of a killed receiver must not keep its output open.
	p.cmd.WaitDelay = gatewaytest.Patience
	inGroup(p.cmd)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait() // ProcessState has the exit status
		close(done)
	}(p.cmd)
	p.done = done
	return done
}

// stored is where the receiver keeps a task's callback.
func (p *process) stored(id string) string { return filepath.Join(p.dir, "callbacks", id) }

// finished waits until a task is handled and returns what the receiver printed: the
// rest of the line with its ID, and its pairs.
func (p *process) finished(id string) (head string, pairs []string) {
	p.t.Helper()
	gatewaytest.Eventually(p.t, "task "+id+" is handled", func() error {
		_, err := os.Stat(p.stored(id) + ".done")
		return err
	})
	// The process prints before it creates the file, but its output passes through a pipe.
	gatewaytest.Eventually(p.t, "task "+id+" is printed", func() error {
		_, after, found := strings.Cut(p.out.String(), "task "+id+" ")
		if !found {
			return fmt.Errorf("it is not in %.2000s", p.out.String())
		}
		after, _, another := strings.Cut(after, "\ntask ")
		if !another && !strings.HasSuffix(after, "\n") {
			return errors.New("the output is incomplete")
		}
		lines := strings.Split(strings.TrimSuffix(after, "\n"), "\n")
		head, pairs = lines[0], lines[1:]
		return nil
	})
	return head, pairs
}
