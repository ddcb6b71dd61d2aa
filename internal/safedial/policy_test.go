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

func TestNewPolicyRefusesUnknownWords(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config safedial.Config
		want   string
	}{
		{"invalid CIDR", safedial.Config{Allow: []string{"10.0.0.0/33"}}, `allow: "10.0.0.0/33" is not a CIDR, an address or a host name`},
		{"a CIDR with host bits", safedial.Config{Allow: []string{"10.0.0.1/8"}}, `allow: "10.0.0.1/8" is within 10.0.0.0/8: write that, or the address alone`},
		{"mapped CIDR", safedial.Config{Deny: []string{"::ffff:10.0.0.0/104"}}, `deny: "::ffff:10.0.0.0/104" is IPv4 written as IPv6: write it as IPv4`},
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
		{"port above 65535", safedial.Config{Ports: []string{"65536"}}, `ports: "65536" is not a port from 1 to 65535, nor "any" alone`},
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
		{"allowed block", safedial.Config{Allow: private}, false, "http://10.1.2.3/", ""},
		{"allowed block, mapped address", safedial.Config{Allow: private}, false, "http://[::ffff:10.1.2.3]/", ""},
		{"allowed IPv6 block", safedial.Config{Allow: private}, false, "http://[fd00::1]/", ""},
		{"allowed address", safedial.Config{Allow: private}, false, "http://192.168.1.1/", ""},
		{"neighbour of an allowed address", safedial.Config{Allow: private}, false, "http://192.168.1.2/", "host 192.168.1.2 is a private address"},
		{"allowed address, other port", safedial.Config{Allow: private}, false, "http://10.1.2.3:8080/", "port 8080 is not allowed"},
		{"IPv6 if all of IPv4 is allowed", safedial.Config{Allow: []string{"0.0.0.0/0"}}, false, "http://[::1]/", "host ::1 is not a public address"},

		{"localhost", safedial.Config{}, false, "http://localhost/", "host localhost is this machine"},
		{"localhost allowed by name", safedial.Config{Allow: []string{"LocalHost."}}, false, "http://localhost/", ""},
		{"localhost allowed by IPv4 address", safedial.Config{Allow: []string{"127.0.0.1"}}, false, "http://localhost/", ""},
		{"localhost allowed by IPv6 address", safedial.Config{Allow: []string{"::1"}}, false, "http://localhost/", ""},
		{"full-width spelling of an allowed name", safedial.Config{Allow: []string{"localhost"}}, false, "http://ｌocalhost/", "host localhost is this machine"},

		{"denied block", safedial.Config{Deny: []string{"8.8.8.0/24"}}, false, "http://8.8.8.8/", "host 8.8.8.8 is a denied address"},
		{"denied block, mapped address", safedial.Config{Deny: []string{"8.8.8.0/24"}}, false, "http://[::ffff:8.8.8.8]/", "host ::ffff:8.8.8.8 is a denied address"},
		{"denied and allowed", safedial.Config{Allow: private, Deny: []string{"10.1.0.0/16"}}, false, "http://10.1.2.3/", "host 10.1.2.3 is a denied address"},
		{"allowed beside a denied block", safedial.Config{Allow: private, Deny: []string{"10.1.0.0/16"}}, false, "http://10.2.2.3/", ""},
		{"denied operator's URL", safedial.Config{Deny: []string{"10.1.0.0/16"}}, true, "http://10.1.2.3/", "host 10.1.2.3 is a denied address"},
		{"denied name", safedial.Config{Deny: []string{"c.example"}}, false, "http://c.example/", "host c.example is denied"},
		{"denied name in capitals with a dot", safedial.Config{Deny: []string{"c.example"}}, false, "http://C.Example./", "host c.example is denied"},
		{"denied name in full-width letters", safedial.Config{Deny: []string{"c.example"}}, false, "http://ｃ。example/", "host c.example is denied"},
		{"denied and allowed name", safedial.Config{Allow: private, Deny: []string{"DB.internal"}}, false, "http://db.internal/", "host db.internal is denied"},
		{"denied name of the operator's URL", safedial.Config{Deny: []string{"c.example"}}, true, "http://c.example/", "host c.example is denied"},
		{"name below a denied name", safedial.Config{Deny: []string{"c.example"}}, false, "http://www.c.example/", ""},

		{"80 is a default port", safedial.Config{}, false, "https://c.example:80/", ""},
		{"443 is a default port", safedial.Config{}, false, "http://c.example:443/", ""},
		{"other names", safedial.Config{}, false, "http://c.example:25/", "port 25 is not allowed"},
		{"default port if ports are set", safedial.Config{Ports: []string{"8443"}}, false, "http://c.example/", "port 80 is not allowed"},
		{"https port if ports are set", safedial.Config{Ports: []string{"8443"}}, false, "https://c.example/", "port 443 is not allowed"},
		{"allowed port", safedial.Config{Ports: []string{"8443", "9443"}}, false, "https://c.example:9443/", ""},
		{"any port", safedial.Config{Ports: []string{"any"}}, false, "https://c.example:65535/", ""},
		{"operator's URL, other port", safedial.Config{}, true, "http://c.example:9000/", ""},
		{"operator's URL, localhost", safedial.Config{}, true, "http://localhost:9000/", ""},
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

func TestTrustedDoesNotChangePolicy(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	trusted := policy.Trusted()
	assertPermitted(t, trusted, "http://127.0.0.1:9000/")
	assertRefused(t, &policy, "http://127.0.0.1/")
	if _, err := trusted.CheckURL("http://user:secret@127.0.0.1/"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a trusted URL with a password: %v", err)
	}
}
