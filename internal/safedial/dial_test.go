package safedial_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

func addrs(words ...string) []netip.Addr {
	var list []netip.Addr
	for _, w := range words {
		list = append(list, netip.MustParseAddr(w))
	}
	return list
}

// listen opens a port of the loopback.
func listen(t *testing.T) (l net.Listener, port string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return l, port
}

// assertUnreached fails if anybody connected to l before we do now.
func assertUnreached(t *testing.T, l net.Listener) {
	t.Helper()
	ours, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.RemoteAddr().String() != ours.LocalAddr().String() {
		t.Errorf("%s was reached from %s", l.Addr(), first.RemoteAddr())
	}
}

func assertDialRefused(t *testing.T, p *safedial.Policy, hostPort, want string) *safedial.RefusedError {
	t.Helper()
	conn, err := p.DialContext(t.Context(), "tcp", hostPort)
	if conn != nil {
		conn.Close()
	}
	refused, ok := errors.AsType[*safedial.RefusedError](err)
	if !ok || refused.Reason != want {
		t.Fatalf("%s: got error %v, want %q", hostPort, err, want)
	}
	return refused
}

// The name is public when somebody looks, and the loopback when we connect.
func TestReboundNameIsRefused(t *testing.T) {
	t.Parallel()
	l, port := listen(t)
	resolver := serveDNS(t, map[string][][]netip.Addr{
		"rebind.example.": {addrs("93.184.215.14"), addrs("127.0.0.1")},
	})
	policy := mustPolicy(t, safedial.Config{Ports: []string{"any"}, Resolver: resolver})

	assertPermitted(t, policy, "http://rebind.example:"+port+"/")
	looked, err := resolver.LookupNetIP(t.Context(), "ip4", "rebind.example")
	if err != nil || len(looked) != 1 {
		t.Fatalf("looked up %v, %v", looked, err)
	}
	assertPermitted(t, policy, urlOf(looked[0].Unmap()))

	refused := assertDialRefused(t, policy, "rebind.example:"+port, "host rebind.example resolves to a loopback address")
	if refused.Addr != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("the refused address is given as %s", refused.Addr)
	}
	assertUnreached(t, l)
}

func TestDialRefusesAddress(t *testing.T) {
	t.Parallel()
	resolver := serveDNS(t, map[string][][]netip.Addr{
		"private.example.": {addrs("10.0.0.1")},
		"several.example.": {addrs("10.0.0.1", "172.16.0.1", "192.168.0.1")},
		"allowed.example.": {addrs("127.0.0.1")},
		"denied.example.":  {addrs("127.0.0.1")},
		"0x7f.1.":          {addrs("127.0.0.1")}, // as inet_aton(3) reads it
	})
	l, port := listen(t)
	loopback := []string{"127.0.0.0/8"}
	anyPort := safedial.Config{Ports: []string{"any"}, Resolver: resolver}
	defaultPorts := safedial.Config{Allow: loopback, Resolver: resolver}
	denying := safedial.Config{
		Allow: append(loopback, "denied.example", "allowed.example"), Deny: []string{"denied.example", "127.0.0.1"},
		Ports: []string{"any"}, Resolver: resolver,
	}
	tests := []struct {
		name    string
		config  safedial.Config
		trusted bool
		host    string
		want    string
	}{
		{"literal", anyPort, false, "127.0.0.1", "host 127.0.0.1 is a loopback address"},
		{"mapped literal", anyPort, false, "[::ffff:127.0.0.1]", "host ::ffff:127.0.0.1 is a loopback address"},
		{"unspecified address", anyPort, false, "0.0.0.0", "host 0.0.0.0 is an unspecified address"},
		{"name of a private address", anyPort, false, "private.example", "host private.example resolves to a private address"},
		{"name of several private addresses", anyPort, false, "several.example", "host several.example resolves to a private address"},
		{"address in hexadecimal", anyPort, false, "0x7f.1", "host 0x7f.1 resolves to a loopback address"},
		{"port not allowed", defaultPorts, false, "127.0.0.1", "port " + port + " is not allowed"},
		{"denied name", denying, false, "Denied.Example.", "host denied.example is denied"},
		{"denied name of the operator", denying, true, "denied.example", "host denied.example is denied"},
		{"denied address of an allowed name", denying, false, "allowed.example", "host allowed.example resolves to a denied address"},
		{"denied address of the operator", denying, true, "127.0.0.1", "host 127.0.0.1 is a denied address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			policy := mustPolicy(t, tt.config)
			if tt.trusted {
				policy = policy.Trusted()
			}
			_ = assertDialRefused(t, policy, tt.host+":"+port, tt.want)
		})
	}
	// Go's resolver takes these for no names at all; another may not.
	for _, host := range []string{"127.0.0.1.", "2130706433", "017700000001", "127.1", "0"} {
		if conn, err := mustPolicy(t, anyPort).DialContext(t.Context(), "tcp", host+":"+port); err == nil {
			conn.Close()
			t.Errorf("%s was dialed", host)
		}
	}
	assertUnreached(t, l)
}

func TestDialRefusesOtherNetworks(t *testing.T) {
	t.Parallel()
	trusted := new(safedial.Policy).Trusted()
	for network, address := range map[string]string{"udp": "127.0.0.1:53", "unix": "/run/docker.sock", "unixgram": "a:1"} {
		if conn, err := trusted.DialContext(t.Context(), network, address); err == nil {
			conn.Close()
			t.Errorf("%s %s was dialed", network, address)
		}
	}
}

func TestDialReachesPermittedAddress(t *testing.T) {
	t.Parallel()
	resolver := serveDNS(t, map[string][][]netip.Addr{
		"allowed.example.": {addrs("127.0.0.1")},
		"mixed.example.":   {addrs("127.0.0.2", "10.0.0.1", "127.0.0.1")},
	})
	l, port := listen(t)
	tests := []struct {
		name   string
		policy *safedial.Policy
		host   string
	}{
		{"an allowed address", mustPolicy(t, safedial.Config{Allow: []string{"127.0.0.1"}, Ports: []string{port}}), "127.0.0.1"},
		{"an allowed name", mustPolicy(t, safedial.Config{Allow: []string{"Allowed.Example"}, Ports: []string{port}, Resolver: resolver}), "ALLOWED.example."},
		{"one permitted address of several", mustPolicy(t, safedial.Config{Allow: []string{"127.0.0.1"}, Ports: []string{port}, Resolver: resolver}), "mixed.example"},
		{"operator's address", mustPolicy(t, safedial.Config{Resolver: resolver}).Trusted(), "allowed.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := tt.policy.DialContext(t.Context(), "tcp", net.JoinHostPort(tt.host, port))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if conn.RemoteAddr().String() != l.Addr().String() {
				t.Errorf("reached %s", conn.RemoteAddr())
			}
		})
	}
}

// A refusal is final, so a host that is merely down must not be refused.
func TestUnreachableHostIsNotRefused(t *testing.T) {
	t.Parallel()
	l, port := listen(t)
	l.Close()
	resolver := serveDNS(t, map[string][][]netip.Addr{
		"down.example.":  {addrs("127.0.0.1")},
		"mixed.example.": {addrs("127.0.0.2", "127.0.0.1")},
	})
	policy := mustPolicy(t, safedial.Config{Allow: []string{"127.0.0.1"}, Ports: []string{port}, Resolver: resolver})
	for _, host := range []string{"down.example", "mixed.example", "unknown.example"} {
		_, err := policy.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if _, refused := errors.AsType[*safedial.RefusedError](err); err == nil || refused {
			t.Errorf("%s: got error %v", host, err)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := policy.DialContext(canceled, "tcp", "127.0.0.1:"+port); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got error %v", err)
	}
}

// get fetches a URL as the delivery would, but follows redirects.
func get(t *testing.T, p *safedial.Policy, url string) error {
	t.Helper()
	transport := &http.Transport{DialContext: p.DialContext}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func TestRedirectsToRefusedAddresses(t *testing.T) {
	t.Parallel()
	inner, innerPort := listen(t)
	for _, target := range []string{
		"http://169.254.169.254/latest/meta-data/",
		"http://127.0.0.1:" + innerPort + "/",
		"http://[::ffff:127.0.0.1]:" + innerPort + "/",
		"http://0.0.0.0:" + innerPort + "/",
	} {
		outer := httptest.NewUnstartedServer(http.RedirectHandler(target, http.StatusFound))
		outer.Listener.Close()
		var err error
		if outer.Listener, err = net.Listen("tcp4", "127.0.0.2:0"); err != nil {
			t.Fatal(err)
		}
		outer.Start()
		t.Cleanup(outer.Close)

		policy := mustPolicy(t, safedial.Config{Allow: []string{"127.0.0.2"}, Ports: []string{"any"}})
		err = get(t, policy, outer.URL)
		if _, ok := errors.AsType[*safedial.RefusedError](err); !ok {
			t.Errorf("redirect to %s: got error %v", target, err)
		}
		if failed, ok := errors.AsType[*url.Error](err); !ok || failed.URL != target {
			t.Errorf("redirect to %s: it was not what was refused: %v", target, err)
		}
	}
	assertUnreached(t, inner)
}

// net/http turns hosts into ASCII after we have seen the URL.
func TestAddressSpellingsAreRefused(t *testing.T) {
	t.Parallel()
	l, port := listen(t)
	policy := mustPolicy(t, safedial.Config{Ports: []string{"any"}, Resolver: serveDNS(t, nil)})
	for _, host := range []string{"１２７.０.０.１", "127。0。0。1", "①②⑦.⓪.⓪.①", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "127.0.0.1\u00ad"} {
		err := get(t, policy, "http://"+host+":"+port+"/")
		if refused, ok := errors.AsType[*safedial.RefusedError](err); !ok || !strings.Contains(refused.Reason, "127.0.0.1 is a loopback") {
			t.Errorf("%q: got error %v", host, err)
		}
	}
	assertUnreached(t, l)
}
