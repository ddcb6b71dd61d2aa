package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-callback/caddy-callback"
)

// asCaddy is the environment variable that makes this program run Caddy with the module.
const asCaddy = "CALLBACK_BENCH_AS_CADDY"

func runAsCaddy() bool {
	if os.Getenv(asCaddy) == "" {
		return false
	}
	caddycmd.Main()
	return true
}

// gateway is a Caddy process.
type gateway struct {
	dir, admin string
	engine     string   // the option
	env        []string // of the process, in addition to this program's
	cmd        *exec.Cmd
	log        *os.File
}

// newGateway creates a folder for a gateway.
func newGateway() (*gateway, error) {
	dir, err := os.MkdirTemp("", "callback-bench-")
	if err != nil {
		return nil, err
	}
	admin, err := freeAddr()
	if err != nil {
		return nil, err
	}
	g := &gateway{dir: dir, admin: admin}
	g.keepIn("")
	if g.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *gateway) store() string { return filepath.Join(g.dir, "store") }

// keepIn makes the gateway store its tasks in its folder, with the options of the
// embedded engine.
func (g *gateway) keepIn(options string) {
	g.engine = fmt.Sprintf("engine sqlite %s {\nmax_size 100GiB\n%s\n}", g.store(), options)
}

// options returns options of the callback app that allow callbacks to this machine.
func (g *gateway) options(queues, delivery string) string {
	return fmt.Sprintf("callback {\n%s\n%s\ndelivery {\nallow 127.0.0.0/8\nports any\n%s\n}\n}", g.engine, queues, delivery)
}

// siteAt returns a site of the Caddyfile for requests of any host.
func siteAt(addr, directives string) string {
	_, port, _ := strings.Cut(addr, ":")
	return fmt.Sprintf("http://:%s {\nbind 127.0.0.1\n%s\n}\n", port, directives)
}

// start runs Caddy with global options and sites. It waits until Caddy serves, and
// returns how long that took.
func (g *gateway) start(options, sites string) (time.Duration, error) {
	// As in production, nothing is logged for each request.
	config := fmt.Sprintf("{\nadmin %s\nauto_https off\nlog {\nlevel WARN\n}\n%s\n}\n%s\n", g.admin, options, sites)
	file := filepath.Join(g.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	g.cmd = exec.Command(self, "run", "--config", file)
	g.cmd.Env = append(append(os.Environ(), g.env...), asCaddy+"=1", "XDG_DATA_HOME="+g.dir, "XDG_CONFIG_HOME="+g.dir, "HOME="+g.dir)
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	began := time.Now()
	if err := g.cmd.Start(); err != nil {
		return 0, err
	}
	for time.Since(began) < patience {
		if serving(g.admin) {
			return time.Since(began), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0, fmt.Errorf("Caddy did not start: %s", g.lastLog())
}

// serving reports whether all apps have started. The admin endpoint has the configuration
// only after that.
func serving(admin string) bool {
	resp, err := http.Get("http://" + admin + "/config/apps")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	config, err := io.ReadAll(resp.Body)
	return err == nil && bytes.HasPrefix(config, []byte("{"))
}

// lastLog returns the end of the log.
func (g *gateway) lastLog() string {
	text, err := os.ReadFile(g.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// kill ends the process and keeps its store.
func (g *gateway) kill() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill() // it may have ended
		_ = g.cmd.Wait()
		g.cmd = nil
	}
}

// remove ends the process and removes its files.
func (g *gateway) remove() {
	g.kill()
	g.log.Close()
	os.RemoveAll(g.dir)
}

// memory returns the resident memory of the process in MB.
func (g *gateway) memory() (float64, error) { return memoryOf(g.cmd.Process.Pid) }

// memoryOf returns the resident memory of a process in MB.
func memoryOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			return float64(kib) * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("the system does not say how much memory a process has")
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
