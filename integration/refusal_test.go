package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// refused sends a request whose callback must be refused when it comes, and
// returns why.
func (g *gateway) refused(callbackURL string) string {
	g.t.Helper()
	resp, text := g.post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Content-Type") != "application/problem+json" {
		g.t.Errorf("%s got %s %s", callbackURL, resp.Status, text)
	}
	return text
}

func TestARequestCannotNameWhatIsNotPublic(t *testing.T) {
	t.Parallel()
	var forwarded atomic.Int64
	app := newApp(t, func(http.ResponseWriter, *http.Request) { forwarded.Add(1) })
	g := startGateway(t, "", "callback\nreverse_proxy "+app)
	for _, host := range []string{
		"127.0.0.1", "127.255.255.254", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1",
		"198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "168.63.129.16",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1]", "[fc00::1]", "[2002:7f00:1::]",
		"[fe80::1%25eth0]", "localhost", "LOCALHOST.", "a.localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1",
		"１２７.0.0.1", "127。0。0。1", "1.1.1.1:22", "1.1.1.1:0", "1.1.1.1:65536",
	} {
		if why := g.refused("http://" + host + "/hook?token=hunter2"); !strings.Contains(why, "callback_url: ") || strings.Contains(why, "hunter2") {
			t.Errorf("%s: %s", host, why)
		}
	}
	if n := forwarded.Load(); n > 0 {
		t.Errorf("%d refused requests were forwarded", n)
	}
}

// refusedAtTheDial checks that a callback which was accepted, and is tried again
// and again, dies when the options change, without another call to its
// receiver. It returns the last attempt.
func refusedAtTheDial(t *testing.T, before, after, site string, send func(g *gateway, url string) string) attempt {
	t.Helper()
	rcv := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	site = strings.ReplaceAll(site, "%RECEIVER%", rcv.URL)
	g := startGateway(t, before, site)
	id := send(g, rcv.URL)
	rcv.next(t)
	g.configure(after, exampleSite(t))
	if err := g.reload(); err != nil {
		t.Fatal(err)
	}
	var all []attempt
	g.eventually("the callback is given up", func() error {
		if all = g.attempts(id); len(all) == 0 || all[len(all)-1].State != "dead" {
			return fmt.Errorf("%d attempts", len(all))
		}
		return nil
	})
	if called := 1 + len(rcv.got); called != len(all)-1 {
		t.Errorf("the receiver was called %d times in %d attempts", called, len(all))
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if g.dead()[id] == "" {
		t.Error("the callback is not among the dead")
	}
	return all[len(all)-1]
}

func TestAnAddressThatIsRefusedAtTheDialIsFinal(t *testing.T) {
	t.Parallel()
	got := refusedAtTheDial(t, delivering(manyTimes), "delivery {\nports any\n"+manyTimes+"\n}", exampleSite(t),
		func(g *gateway, url string) string { return g.task(url) })
	if got.StatusCode != 0 || !strings.Contains(got.Error, "127.0.0.1 is a loopback address") {
		t.Errorf("it is logged as %+v", got)
	}
}

func TestDenyWinsOverTheOperatorsOwnURLAtTheDialToo(t *testing.T) {
	t.Parallel()
	got := refusedAtTheDial(t, "delivery {\n"+manyTimes+"\n}", "delivery {\ndeny 127.0.0.0/8\n"+manyTimes+"\n}",
		strings.Replace(exampleSite(t), "callback", "callback %RECEIVER%", 1),
		func(g *gateway, _ string) string {
			resp, _ := g.post("/", `{}`)
			return resp.Header.Get("beam-task-id")
		})
	if got.StatusCode != 0 || !strings.Contains(got.Error, "127.0.0.1 is a denied address") {
		t.Errorf("it is logged as %+v", got)
	}
}

func TestTheOperatorsOwnURLMayBePrivateButARequestMayNotNameIt(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	g := startGateway(t, "", strings.Replace(exampleSite(t), "callback", "callback "+rcv.URL+"/own", 1))
	resp, _ := g.post("/", `{"prompt":"hello"}`)
	if got := rcv.next(t); got.id() != resp.Header.Get("beam-task-id") || got.status() != "COMPLETE" {
		t.Errorf("the callback is %s %s", got.id(), got.status())
	}
	if why := g.refused(rcv.URL + "/own"); !strings.Contains(why, "127.0.0.1 is a loopback address") {
		t.Errorf("the reason is %s", why)
	}
	if n := len(rcv.got); n > 0 {
		t.Errorf("%d callbacks too many", n)
	}
}

func TestAnOwnURLThatIsDeniedIsAnErrorOfTheConfiguration(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "delivery {\ndeny 127.0.0.0/8\n}", "callback http://127.0.0.1:9/hook\nrespond ok")
	g.launch()
	<-g.done
	if log := g.log.String(); g.cmd.ProcessState.ExitCode() == 0 || !strings.Contains(log, "127.0.0.1 is a denied address") {
		t.Errorf("exit code %d", g.cmd.ProcessState.ExitCode())
	}
}

func TestProxiesInTheEnvironmentAreNotUsed(t *testing.T) {
	t.Parallel()
	var proxied atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { proxied.Add(1) }))
	t.Cleanup(proxy.Close)
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	rcv := newReceiver(t, nil)
	srv := &http.Server{Handler: rcv.Config.Handler}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(ln) }() // until the test ends
	// 0.0.0.0 is this machine, but not by the name of a loopback address, for
	// which no proxy would be used anyway.
	target := fmt.Sprintf("http://0.0.0.0:%d/hook", ln.Addr().(*net.TCPAddr).Port)
	for _, options := range []string{"delivery {\nallow 0.0.0.0\nports any\n}", ""} {
		site := exampleSite(t)
		if options == "" {
			site = strings.Replace(site, "callback", "callback "+target, 1)
		}
		g := newGateway(t, options, site)
		for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
			g.env = append(g.env, name+"="+proxy.URL)
		}
		g.env = append(g.env, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1") // the app is not what this is about
		g.start()
		if options == "" {
			g.post("/", `{}`)
		} else {
			g.task(target)
		}
		rcv.next(t)
	}
	if n := proxied.Load(); n > 0 {
		t.Errorf("the proxy was used %d times", n)
	}
}
