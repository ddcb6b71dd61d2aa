package safedial_test

import (
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

func mustPolicy(t testing.TB, c safedial.Config) *safedial.Policy {
	t.Helper()
	p, err := safedial.NewPolicy(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewPolicyRefusesWordsItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config safedial.Config
		want   string
	}{
		{"a CIDR that is none", safedial.Config{Allow: []string{"10.0.0.0/33"}}, `allow: "10.0.0.0/33" is not a CIDR, an address or a host name`},
		{"a CIDR with host bits", safedial.Config{Allow: []string{"10.0.0.1/8"}}, `allow: "10.0.0.1/8" is within 10.0.0.0/8: write that, or the address alone`},
		{"a mapped CIDR, which would never match", safedial.Config{Deny: []string{"::ffff:10.0.0.0/104"}}, `deny: "::ffff:10.0.0.0/104" is IPv4 written as IPv6: write it as IPv4`},
		{"a mapped address", safedial.Config{Deny: []string{"::ffff:10.0.0.1"}}, `deny: "::ffff:10.0.0.1" is IPv4 written as IPv6: write it as IPv4`},
		{"an address with a zone", safedial.Config{Allow: []string{"fe80::1%eth0"}}, `allow: "fe80::1%eth0" is not a CIDR, an address or a host name`},
		{"an address cut short", safedial.Config{Allow: []string{"10.0.0"}}, `allow: "10.0.0" is not a CIDR, an address or a host name`},
		{"an address in hexadecimal", safedial.Config{Deny: []string{"0x7f.1"}}, `deny: "0x7f.1" is not a CIDR, an address or a host name`},
		{"an address in brackets", safedial.Config{Allow: []string{"[::1]"}}, `allow: "[::1]" is not a CIDR, an address or a host name`},
		{"a host with a port", safedial.Config{Allow: []string{"db.internal:5432"}}, `allow: "db.internal:5432" is not a CIDR, an address or a host name`},
		{"a URL", safedial.Config{Allow: []string{"http://db.internal/"}}, `allow: "http://db.internal/" is not a CIDR, an address or a host name`},
		{"a wildcard", safedial.Config{Allow: []string{"*.internal"}}, `allow: "*.internal" is not a CIDR, an address or a host name`},
		{"an empty word", safedial.Config{Allow: []string{""}}, `allow: "" is not a CIDR, an address or a host name`},
		{"a name with an empty part", safedial.Config{Deny: []string{"a..b"}}, `deny: "a..b" is not a CIDR, an address or a host name`},
		{"a name outside ASCII", safedial.Config{Deny: []string{"bücher.example"}}, `deny: "bücher.example" is not in ASCII: write a host name as xn--…`},
		{"a bad word after good ones", safedial.Config{Deny: []string{"10.0.0.0/8", "c.example", "?"}}, `deny: "?" is not a CIDR, an address or a host name`},
		{"port 0", safedial.Config{Ports: []string{"0"}}, `ports: "0" is not a port from 1 to 65535, nor "any" alone`},
		{"a port beyond the last", safedial.Config{Ports: []string{"65536"}}, `ports: "65536" is not a port from 1 to 65535, nor "any" alone`},
		{"a port in words", safedial.Config{Ports: []string{"80", "http"}}, `ports: "http" is not a port from 1 to 65535, nor "any" alone`},
		{"any among ports", safedial.Config{Ports: []string{"80", "any"}}, `ports: "any" is not a port from 1 to 65535, nor "any" alone`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := safedial.NewPolicy(tt.config)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	private := []string{"10.0.0.0/8", "fd00::/8", "db.internal", "192.168.1.1"}
	tests := []struct {
		name    string
		config  safedial.Config
		trusted bool
		url     string
		want    string // the refusal; empty if permitted
	}{
		{"an allowed block is open", safedial.Config{Allow: private}, false, "http://10.1.2.3/", ""},
		{"an allowed block is open to mapped addresses", safedial.Config{Allow: private}, false, "http://[::ffff:10.1.2.3]/", ""},
		{"an allowed IPv6 block is open", safedial.Config{Allow: private}, false, "http://[fd00::1]/", ""},
		{"an allowed address is open", safedial.Config{Allow: private}, false, "http://192.168.1.1/", ""},
		{"its neighbour is not", safedial.Config{Allow: private}, false, "http://192.168.1.2/", "host 192.168.1.2 is a private address"},
		{"allow does not open ports", safedial.Config{Allow: private}, false, "http://10.1.2.3:8080/", "port 8080 is not allowed"},
		{"allowing all of IPv4 leaves IPv6 closed", safedial.Config{Allow: []string{"0.0.0.0/0"}}, false, "http://[::1]/", "host ::1 is not a public address"},

		{"localhost is refused", safedial.Config{}, false, "http://localhost/", "host localhost is this machine"},
		{"localhost can be allowed by name", safedial.Config{Allow: []string{"LocalHost."}}, false, "http://localhost/", ""},
		{"localhost can be allowed by its IPv4 address", safedial.Config{Allow: []string{"127.0.0.1"}}, false, "http://localhost/", ""},
		{"localhost can be allowed by its IPv6 address", safedial.Config{Allow: []string{"::1"}}, false, "http://localhost/", ""},
		{"a name is not allowed by what it resembles", safedial.Config{Allow: []string{"localhost"}}, false, "http://ｌocalhost/", "host localhost is this machine"},

		{"a denied block is closed", safedial.Config{Deny: []string{"8.8.8.0/24"}}, false, "http://8.8.8.8/", "host 8.8.8.8 is a denied address"},
		{"a denied block is closed to mapped addresses", safedial.Config{Deny: []string{"8.8.8.0/24"}}, false, "http://[::ffff:8.8.8.8]/", "host ::ffff:8.8.8.8 is a denied address"},
		{"deny wins over allow", safedial.Config{Allow: private, Deny: []string{"10.1.0.0/16"}}, false, "http://10.1.2.3/", "host 10.1.2.3 is a denied address"},
		{"and leaves the rest of it open", safedial.Config{Allow: private, Deny: []string{"10.1.0.0/16"}}, false, "http://10.2.2.3/", ""},
		{"deny wins over the operator's URL", safedial.Config{Deny: []string{"10.1.0.0/16"}}, true, "http://10.1.2.3/", "host 10.1.2.3 is a denied address"},
		{"a denied name is closed", safedial.Config{Deny: []string{"c.example"}}, false, "http://c.example/", "host c.example is denied"},
		{"in capitals and with a dot too", safedial.Config{Deny: []string{"c.example"}}, false, "http://C.Example./", "host c.example is denied"},
		{"and in full-width letters", safedial.Config{Deny: []string{"c.example"}}, false, "http://ｃ。example/", "host c.example is denied"},
		{"a denied name wins over the same name allowed", safedial.Config{Allow: private, Deny: []string{"DB.internal"}}, false, "http://db.internal/", "host db.internal is denied"},
		{"a denied name wins over the operator's URL", safedial.Config{Deny: []string{"c.example"}}, true, "http://c.example/", "host c.example is denied"},
		{"a denied name leaves those below it open", safedial.Config{Deny: []string{"c.example"}}, false, "http://www.c.example/", ""},

		{"80 is a default port", safedial.Config{}, false, "https://c.example:80/", ""},
		{"443 is a default port", safedial.Config{}, false, "http://c.example:443/", ""},
		{"others are not", safedial.Config{}, false, "http://c.example:25/", "port 25 is not allowed"},
		{"ports replace the defaults", safedial.Config{Ports: []string{"8443"}}, false, "http://c.example/", "port 80 is not allowed"},
		{"for https too", safedial.Config{Ports: []string{"8443"}}, false, "https://c.example/", "port 443 is not allowed"},
		{"and open theirs", safedial.Config{Ports: []string{"8443", "9443"}}, false, "https://c.example:9443/", ""},
		{"any opens all", safedial.Config{Ports: []string{"any"}}, false, "https://c.example:65535/", ""},
		{"the operator's URL may have any port", safedial.Config{}, true, "http://c.example:9000/", ""},
		{"the operator's URL may be localhost", safedial.Config{}, true, "http://localhost:9000/", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			policy := mustPolicy(t, tt.config)
			if tt.trusted {
				policy = policy.Trusted()
			}
			if tt.want == "" {
				assertPermitted(t, policy, tt.url)
				return
			}
			assertRefused(t, policy, tt.url)
			if _, err := policy.CheckURL(tt.url); err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestTrustedLeavesThePolicyAsItIs(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	trusted := policy.Trusted()
	assertPermitted(t, trusted, "http://127.0.0.1:9000/")
	assertRefused(t, &policy, "http://127.0.0.1/")
	if _, err := trusted.CheckURL("http://user:secret@127.0.0.1/"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a trusted URL with a password: %v", err)
	}
}
