package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// asNATS is the environment variable that makes this program run nats-server.
const asNATS = "CALLBACK_BENCH_AS_NATS"

func runAsNATS() bool {
	if os.Getenv(asNATS) == "" {
		return false
	}
	if err := runNATS(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func runNATS() error {
	opts, err := server.ConfigureOptions(flag.NewFlagSet("nats-server", flag.ExitOnError), os.Args[1:], func() {}, func() {}, func() {})
	if err != nil {
		return err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.Start()
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	s.Shutdown()
	return nil
}

// cluster is a JetStream cluster with a process for each server. It is empty if the
// engine is embedded.
type cluster struct {
	dir     string
	servers []*exec.Cmd
	clients []string // host:port
}

func startCluster(n int) (*cluster, error) {
	c := &cluster{}
	if n == 0 {
		return c, nil
	}
	var err error
	if c.dir, err = os.MkdirTemp("", "callback-bench-"); err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var routes []string
	for range 2 * n {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		if len(c.clients) < n {
			c.clients = append(c.clients, addr)
		} else {
			routes = append(routes, "nats://"+addr)
		}
	}
	for i := range n {
		host, port, _ := strings.Cut(c.clients[i], ":")
		cmd := exec.Command(program, "-js", "-a", host, "-p", port, "-sd", filepath.Join(c.dir, fmt.Sprint(i)), "-n", fmt.Sprint("n", i),
			"--cluster_name", "c", "--cluster", routes[i], "--routes", strings.Join(routes, ","))
		cmd.Env = append(os.Environ(), asNATS+"=1")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		c.servers = append(c.servers, cmd)
	}
	return c, c.ready()
}

// ready waits until the cluster can create streams.
func (c *cluster) ready() error {
	var last error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(100 * time.Millisecond) {
		nc, err := nats.Connect(c.urls())
		if err != nil {
			last = err
			continue
		}
		js, err := nc.JetStream(nats.MaxWait(2 * time.Second))
		if err == nil {
			_, err = js.AccountInfo()
		}
		nc.Close()
		if err == nil {
			return nil
		}
		last = err
	}
	return fmt.Errorf("the cluster is not ready: %w", last)
}

func (c *cluster) urls() string { return "nats://" + strings.Join(c.clients, ",nats://") }

// use makes the gateway store its tasks in the cluster, if there is one.
func (c *cluster) use(g *gateway) {
	if len(c.servers) > 0 {
		g.engine = "engine nats " + strings.ReplaceAll(c.urls(), ",", " ")
	}
}

func (c *cluster) processes() (pids []int) {
	for _, s := range c.servers {
		pids = append(pids, s.Process.Pid)
	}
	return pids
}

func (c *cluster) remove() {
	for _, s := range c.servers {
		_ = s.Process.Kill() // it may have ended
		_ = s.Wait()
	}
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}
