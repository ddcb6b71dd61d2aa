package integration

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// asNATS makes the test binary run a NATS server with the arguments of the
// nats-server program.
const asNATS = "CALLBACK_TEST_AS_NATS"

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

// cluster is a JetStream cluster, each server a process.
type cluster struct {
	t       *testing.T
	servers []*natsServer
}

type natsServer struct {
	client, route, dir string // host:port, host:port, its data
	cmd                *exec.Cmd
}

// startCluster starts n servers and waits until JetStream has a leader.
func startCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for range n {
		c.servers = append(c.servers, &natsServer{client: freeAddr(t), route: freeAddr(t), dir: t.TempDir()})
	}
	for i := range c.servers {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.kill(i)
		}
	})
	c.ready()
	return c
}

// start starts a server, anew with its data if it was killed.
func (c *cluster) start(i int) {
	c.t.Helper()
	s := c.servers[i]
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	host, port, _ := strings.Cut(s.client, ":")
	args := []string{"-js", "-a", host, "-p", port, "-sd", s.dir, "-n", fmt.Sprintf("n%d", i)}
	if len(c.servers) > 1 {
		var routes []string
		for _, other := range c.servers {
			routes = append(routes, "nats://"+other.route)
		}
		args = append(args, "--cluster_name", "c", "--cluster", "nats://"+s.route, "--routes", strings.Join(routes, ","))
	}
	s.cmd = exec.Command(self, args...)
	s.cmd.Env = append(os.Environ(), asNATS+"=1")
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) kill(i int) {
	s := c.servers[i]
	if s.cmd != nil {
		_ = s.cmd.Process.Kill() // it may have ended already
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// ready waits until the cluster takes streams.
func (c *cluster) ready() {
	c.t.Helper()
	eventually(c.t, "the cluster is ready", func() error {
		nc, err := nats.Connect(c.urls())
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := nc.JetStream(nats.MaxWait(2 * time.Second))
		if err != nil {
			return err
		}
		_, err = js.AccountInfo()
		return err
	})
}

func (c *cluster) urls() string {
	var urls []string
	for _, s := range c.servers {
		urls = append(urls, "nats://"+s.client)
	}
	return strings.Join(urls, ",")
}

// options are the gateway's.
func (c *cluster) options() string {
	return fmt.Sprintf("nats %s {\nreplicas %d\n}\n%s", strings.ReplaceAll(c.urls(), ",", " "), len(c.servers), toLocal)
}

func TestAnotherGatewayDeliversForOneThatWasKilled(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	working, release := make(chan struct{}), make(chan struct{})
	app := newApp(t, func(http.ResponseWriter, *http.Request) {
		close(working)
		<-release
	})
	t.Cleanup(func() { close(release) })
	rcv := newReceiver(t, nil)
	site := "callback\nreverse_proxy " + app
	a := startGateway(t, c.options(), site)
	startGateway(t, c.options(), site)
	go func() {
		_, _, _ = send(http.MethodPost, a.url("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json") // it breaks off
	}()
	<-working
	a.kill()
	if got := rcv.next(t); got.status() != "FAILED" || !strings.HasPrefix(got.body, "error=the+gateway") {
		t.Errorf("the callback is %v %s", got.header, got.body)
	}
}

func TestAClusterThatComesLateIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, servers: []*natsServer{{client: freeAddr(t), route: freeAddr(t), dir: t.TempDir()}}}
	t.Cleanup(func() { c.kill(0) })
	app := newApp(t, func(http.ResponseWriter, *http.Request) {})
	rcv := newReceiver(t, nil)
	g := startGateway(t, c.options(), "callback\nreverse_proxy "+app)
	if resp, _ := g.post("/", "{}"); resp.StatusCode != http.StatusOK {
		t.Errorf("a plain request got %s", resp.Status)
	}
	body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
	if resp, _ := g.post("/", body); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a request for a callback got %s %v", resp.Status, resp.Header)
	}
	c.start(0)
	g.eventually("callbacks are accepted", func() error {
		if resp, text := g.post("/", body); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		return nil
	})
	rcv.next(t)
}

func TestAClusterLosesNothingWhenItsServersAreKilledInTurn(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	rcv := newReceiver(t, nil)
	site := "callback\nreverse_proxy " + newApp(t, answerSoon)
	gateways := []*gateway{startGateway(t, c.options(), site), startGateway(t, c.options(), site)}
	l := newLedger(rcv, t.Context().Done())
	for _, g := range gateways {
		g.eventually("callbacks are accepted", func() error {
			resp, text := g.post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s %s", resp.Status, text)
			}
			return nil
		})
	}
	stop, written := make(chan struct{}), make(chan struct{}, 4)
	for i := range 4 {
		go func() {
			l.write(gateways[i%2], rcv.URL, stop, func(error) { pause(10 * time.Millisecond) })
			written <- struct{}{}
		}()
	}
	for i := range c.servers {
		pause(time.Second)
		c.kill(i)
		pause(time.Second)
		c.start(i)
		pause(3 * time.Second)
	}
	close(stop)
	for range 4 {
		<-written
	}
	eventually(t, "every accepted task has its callback", l.settled)
	t.Logf("%d tasks, %d callbacks", len(l.accepted), l.arrived)
}
