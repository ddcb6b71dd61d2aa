package integration

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestPrivateAddressesAreRefused(t *testing.T) {
	t.Parallel()
	var forwarded atomic.Int64
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { forwarded.Add(1) })
	g := gatewaytest.Start(t, "", "callback\nreverse_proxy "+app)
	for _, host := range []string{
		"127.0.0.1", "127.255.255.254", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1",
		"198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "168.63.129.16",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1]", "[fc00::1]", "[2002:7f00:1::]",
		"[fe80::1%25eth0]", "localhost", "LOCALHOST.", "a.localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
		"１２７.0.0.1", "127。0。0。1", "1.1.1.1:22", "1.1.1.1:0", "1.1.1.1:65536",
	} {
		if why := g.Refused("http://" + host + "/hook?token=hunter2"); !strings.Contains(why, "callback_url: ") || strings.Contains(why, "hunter2") {
			t.Errorf("%s: %s", host, why)
		}
	}
	if n := forwarded.Load(); n > 0 {
		t.Errorf("%d refused requests were forwarded", n)
	}
}

// refusedAtTheDial checks that a callback that was accepted and is being retried dies
// when the options change, without another request to its receiver. It returns the last
// attempt.
func refusedAtTheDial(t *testing.T, before, after, site string, send func(g *gatewaytest.Gateway, url string) string) gatewaytest.Attempt {
	t.Helper()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	site = strings.ReplaceAll(site, "%RECEIVER%", rcv.URL)
	g := gatewaytest.Start(t, before, site)
	id := send(g, rcv.URL)
	rcv.Next(t)
	g.Configure(after, gatewaytest.ExampleSite(t))
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	var all []gatewaytest.Attempt
	g.Eventually("the callback is dead", func() error {
		if all = g.Attempts(id); len(all) == 0 || all[len(all)-1].State != "dead" {
			return fmt.Errorf("%d attempts", len(all))
		}
		return nil
	})
	if called := 1 + len(rcv.Got); called != len(all)-1 {
		t.Errorf("the receiver was called %d times in %d attempts", called, len(all))
	}
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if g.Dead()[id].Record == nil {
		t.Error("the callback is not among the dead")
	}
	return all[len(all)-1]
}

func TestAddressRefusedAtDialIsFinal(t *testing.T) {
	t.Parallel()
	got := refusedAtTheDial(t, gatewaytest.Delivering(gatewaytest.ManyTimes), "delivery {\nports any\n"+gatewaytest.ManyTimes+"\n}", gatewaytest.ExampleSite(t),
		func(g *gatewaytest.Gateway, url string) string { return g.Task(url) })
	if got.StatusCode != 0 || !strings.Contains(got.Error, "127.0.0.1 is a loopback address") {
		t.Errorf("it is logged as %+v", got)
	}
}

func TestDenyWinsOverOperatorURLAtDial(t *testing.T) {
	t.Parallel()
	got := refusedAtTheDial(t, "delivery {\n"+gatewaytest.ManyTimes+"\n}", "delivery {\ndeny 127.0.0.0/8\n"+gatewaytest.ManyTimes+"\n}",
		strings.Replace(gatewaytest.ExampleSite(t), "callback", "callback %RECEIVER%", 1),
		func(g *gatewaytest.Gateway, _ string) string {
			resp, _ := g.Post("/", `{}`)
			return resp.Header.Get("beam-task-id")
		})
	if got.StatusCode != 0 || !strings.Contains(got.Error, "127.0.0.1 is a denied address") {
		t.Errorf("it is logged as %+v", got)
	}
}

func TestOnlyOperatorURLMayBePrivate(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, "", strings.Replace(gatewaytest.ExampleSite(t), "callback", "callback "+rcv.URL+"/own", 1))
	resp, _ := g.Post("/", `{"prompt":"hello"}`)
	if got := rcv.Next(t); got.TaskID() != resp.Header.Get("beam-task-id") || got.Status() != "COMPLETE" {
		t.Errorf("the callback is %s %s", got.TaskID(), got.Status())
	}
	if why := g.Refused(rcv.URL + "/own"); !strings.Contains(why, "127.0.0.1 is a loopback address") {
		t.Errorf("the reason is %s", why)
	}
	if n := len(rcv.Got); n > 0 {
		t.Errorf("%d callbacks too many", n)
	}
}

func TestDeniedOperatorURLIsConfigurationError(t *testing.T) {
	t.Parallel()
	g := gatewaytest.New(t, "delivery {\ndeny 127.0.0.0/8\n}", "callback http://127.0.0.1:9/hook\nrespond ok")
	g.Launch()
	<-g.Done
	if log := g.Log.String(); g.Cmd.ProcessState.ExitCode() == 0 || !strings.Contains(log, "127.0.0.1 is a denied address") {
		t.Errorf("exit code %d", g.Cmd.ProcessState.ExitCode())
	}
}

func TestProxiesInTheEnvironmentAreNotUsed(t *testing.T) {
	t.Parallel()
	var proxied atomic.Int64
	proxy := gatewaytest.NewServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { proxied.Add(1) }))
	proxy.Start()
	ln := freeaddr.ListenOn(t, "0.0.0.0")
	rcv := gatewaytest.NewReceiver(t, nil)
	srv := &http.Server{Handler: rcv.Config.Handler}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(ln) }() // until the test ends
	// 0.0.0.0 is this machine. For a loopback address no proxy would be used.
	target := fmt.Sprintf("http://0.0.0.0:%d/hook", ln.Addr().(*net.TCPAddr).Port)
	for _, options := range []string{"delivery {\nallow 0.0.0.0\nports any\n}", ""} {
		site := gatewaytest.ExampleSite(t)
		if options == "" {
			site = strings.Replace(site, "callback", "callback "+target, 1)
		}
		g := gatewaytest.New(t, options, site)
		for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
			g.Env = append(g.Env, name+"="+proxy.URL)
		}
		g.Env = append(g.Env, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1") // no proxy for the app
		g.Start()
		if options == "" {
			g.Post("/", `{}`)
		} else {
			g.Task(target)
		}
		rcv.Next(t)
	}
	if n := proxied.Load(); n > 0 {
		t.Errorf("the proxy was used %d times", n)
	}
}
