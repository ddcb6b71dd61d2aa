package gatewaytest

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
)

// AsNATS is the environment variable that makes the test binary run a NATS server with
// the arguments of the nats-server program.
const AsNATS = "CALLBACK_TEST_AS_NATS"

func runNATS() {
	opts, err := server.ConfigureOptions(flag.NewFlagSet("nats-server", flag.ExitOnError), os.Args[1:], func() {}, func() {}, func() {})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.ConfigureLogger()
	s.Start()
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	s.Shutdown()
}

// Cluster is a JetStream cluster with a process for each server.
type Cluster struct {
	t       testing.TB
	Servers []*NATSServer

	// Config has further lines for the servers' configuration file. It must be set before
	// the servers start, like all of the following fields.
	Config string
	// Plain servers have no JetStream.
	Plain bool
	// Scheme is the scheme of the URLs; empty means nats.
	Scheme string
	// Login are the options that the test itself connects with.
	Login []nats.Option
}

// NATSServer is a server of a [Cluster].
type NATSServer struct {
	Client, Route, Dir string // host:port, host:port, its data
	monitor            string // host:port
	Cmd                *exec.Cmd
}

// log is the server's log file.
func (s *NATSServer) log() string { return filepath.Join(s.Dir, "log") }

// NewCluster returns n servers that are not started yet.
func NewCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for range n {
		c.Servers = append(c.Servers, &NATSServer{Client: freeaddr.New(t), Route: freeaddr.New(t), Dir: t.TempDir(), monitor: freeaddr.New(t)})
	}
	t.Cleanup(func() {
		for i, s := range c.Servers {
			c.Kill(i)
			if text, err := os.ReadFile(s.log()); t.Failed() && err == nil {
				t.Logf("the log of NATS server %d:\n%s", i, text)
			}
		}
	})
	return c
}

// StartCluster starts n servers and waits until JetStream has a leader.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := NewCluster(t, n)
	for i := range c.Servers {
		c.Start(i)
	}
	c.Ready()
	return c
}

// Start starts a server, with its data if it ran before.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	s := c.Servers[i]
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	host, port, _ := strings.Cut(s.Client, ":")
	_, monitor, _ := strings.Cut(s.monitor, ":")
	args := []string{"-a", host, "-p", port, "-sd", s.Dir, "-n", fmt.Sprintf("n%d", i), "-m", monitor, "-l", s.log()}
	if !c.Plain {
		args = append(args, "-js")
	}
	if c.Config != "" {
		file := filepath.Join(s.Dir, "nats.conf")
		if err := os.WriteFile(file, []byte(c.Config), 0o600); err != nil {
			c.t.Fatal(err)
		}
		args = append(args, "-c", file)
	}
	if len(c.Servers) > 1 {
		var routes []string
		for _, other := range c.Servers {
			routes = append(routes, "nats://"+other.Route)
		}
		args = append(args, "--cluster_name", "c", "--cluster", "nats://"+s.Route, "--routes", strings.Join(routes, ","))
	}
	s.Cmd = exec.Command(self, args...)
	s.Cmd.Env = append(os.Environ(), AsNATS+"=1")
	if err := s.Cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// Kill kills a server (SIGKILL).
func (c *Cluster) Kill(i int) {
	s := c.Servers[i]
	if s.Cmd != nil {
		_ = s.Cmd.Process.Kill() // it may have ended already
		_ = s.Cmd.Wait()
		s.Cmd = nil
	}
}

// Ready waits until the cluster can create streams, and every running server is
// healthy and up to date. Before that, the cluster may not survive another kill.
func (c *Cluster) Ready() {
	c.t.Helper()
	Eventually(c.t, "the cluster is ready", func() error {
		nc, err := nats.Connect(c.URLs(), c.Login...)
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := nc.JetStream(nats.MaxWait(2 * time.Second))
		if err != nil {
			return err
		}
		if _, err = js.AccountInfo(); err != nil {
			return err
		}
		for _, s := range c.Servers {
			if s.Cmd == nil {
				continue
			}
			if resp, text, err := Send(http.MethodGet, "http://"+s.monitor+"/healthz", nil); err != nil {
				return err
			} else if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("a server is %s %s", resp.Status, text)
			}
		}
		return nil
	})
}

// Leader returns the index of the server that leads a stream.
func (c *Cluster) Leader(stream string) int {
	c.t.Helper()
	leader := -1
	Eventually(c.t, "the stream has a leader", func() error {
		nc, err := nats.Connect(c.URLs(), c.Login...)
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := nc.JetStream(nats.MaxWait(2 * time.Second))
		if err != nil {
			return err
		}
		info, err := js.StreamInfo(stream)
		if err != nil {
			return err
		}
		if info.Cluster == nil || info.Cluster.Leader == "" {
			return fmt.Errorf("%+v", info.Cluster)
		}
		_, err = fmt.Sscanf(info.Cluster.Leader, "n%d", &leader)
		return err
	})
	return leader
}

// URLs returns the URLs of all servers, separated by commas.
func (c *Cluster) URLs() string {
	var urls []string
	scheme := c.Scheme
	if scheme == "" {
		scheme = "nats"
	}
	for _, s := range c.Servers {
		urls = append(urls, scheme+"://"+s.Client)
	}
	return strings.Join(urls, ",")
}

// Options returns the options of a gateway that uses the cluster.
func (c *Cluster) Options() string {
	return fmt.Sprintf("engine nats %s {\nreplicas %d\n}\n%s", strings.ReplaceAll(c.URLs(), ",", " "), len(c.Servers), ToLocal)
}
