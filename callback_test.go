package callback

import (
	"net/http/httptest"
	"testing"
)

func TestHopsNeedMAC(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	a, other := newTestApp(t, folder), newTestApp(t, t.TempDir())
	secret, err := a.secret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.secret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := newTestApp(t, folder)
	for _, tt := range []struct {
		name, hop, mac string
		want           int
	}{
		{"none", "", "", 0},
		{"a client's", "9", "", 0},
		{"proven", "3", hopMAC(secret, 3, "g.example", "/x?a=%20"), 3},
		{"at the default port", "3", hopMAC(secret, 3, "G.example:443", "/x?a=%20"), 3},
		{"another number", "4", hopMAC(secret, 3, "g.example", "/x?a=%20"), 0},
		{"another path", "3", hopMAC(secret, 3, "g.example", "/y"), 0},
		{"another host", "3", hopMAC(secret, 3, "h.example", "/x?a=%20"), 0},
		{"another store", "3", hopMAC(foreign, 3, "g.example", "/x?a=%20"), 0},
		{"no number", "x", hopMAC(secret, maxHops+1, "g.example", "/x?a=%20"), maxHops + 1},
	} {
		r := httptest.NewRequest("POST", "http://g.example/x?a=%20", nil)
		if tt.hop != "" {
			r.Header.Set(hopHeader, tt.hop)
		}
		if tt.mac != "" {
			r.Header.Set(hopMACHeader, tt.mac)
		}
		if got := again.provenHops(r); got != tt.want {
			t.Errorf("%s: %d hops, not %d", tt.name, got, tt.want)
		}
	}
}
