package safedial

import (
	"errors"
	"net/netip"
	"testing"
)

// What the dialer tells about a connection comes from the operating system's
// side; these are forms that it should never take.
func TestUnknownConnectionsAreRefused(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, network, address, want string }{
		{"no port", "tcp4", "8.8.8.8", "host h has an invalid address"},
		{"an empty address", "tcp4", "", "host h has an invalid address"},
		{"an empty host", "tcp4", ":80", "host h has an invalid address"},
		{"a name", "tcp4", "c.example:80", "host h has an invalid address"},
		{"port above 65535", "tcp4", "8.8.8.8:65616", "host h has an invalid address"},
		{"a zone", "tcp6", "[fe80::1%eth0]:80", "host h resolves to an address with a zone"},
		{"a zone on a public address", "tcp6", "[2606:4700::1%1]:80", "host h resolves to an address with a zone"},
		{"UDP", "udp4", "8.8.8.8:80", "network udp4 is not allowed"},
		{"a Unix socket", "unix", "/run/docker.sock", "network unix is not allowed"},
		{"TCP without a version", "tcp", "8.8.8.8:80", "network tcp is not allowed"},
		{"IPv4 in IPv6", "tcp6", "[::ffff:127.0.0.1]:80", "host h resolves to a loopback address"},
		{"port 0", "tcp4", "8.8.8.8:0", "port 0 is not allowed"},
	}
	policy := &Policy{anyPort: true}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := policy.checkConnection("h", tt.network, tt.address)
			if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Reason != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if policy.verdictOn(netip.Addr{}, true) == "" {
		t.Error("no address is permitted")
	}
	for _, address := range []string{"8.8.8.8:80", "[2606:4700::1]:80", "[::ffff:8.8.8.8]:80"} {
		if err := policy.checkConnection("h", "tcp6", address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}
