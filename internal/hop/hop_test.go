package hop_test

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/hop"
)

// sent returns the header of a callback to a URL.
func sent(t *testing.T, before int, to string, key *hop.Key) http.Header {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	h := make(http.Header)
	if field, ok := hop.Next(before); ok {
		h.Set(field[0], field[1])
	}
	key.Set(h, u)
	return h
}

func TestHopsNeedMAC(t *testing.T) {
	t.Parallel()
	key, other := hop.NewKey([]byte("the secret of a store")), hop.NewKey([]byte("the secret of another store"))
	const here = "https://g.example/x?a=%20"
	with := func(h http.Header, n string) http.Header {
		h.Set(hop.Header, n)
		return h
	}
	for name, tt := range map[string]struct {
		header          http.Header
		claimed, proven int
	}{
		"none":                {http.Header{}, 0, 0},
		"a client's":          {with(http.Header{}, "9"), 9, 0},
		"the first":           {sent(t, 0, here, key), 1, 1},
		"the third":           {sent(t, 2, here, key), 3, 3},
		"at the default port": {sent(t, 2, "https://G.example:443/x?a=%20", key), 3, 3},
		"at another port":     {sent(t, 2, "https://g.example:8443/x?a=%20", key), 3, 0},
		"another number":      {with(sent(t, 2, here, key), "4"), 4, 0},
		"another path":        {sent(t, 2, "https://g.example/y", key), 3, 0},
		"another host":        {sent(t, 2, "https://h.example/x?a=%20", key), 3, 0},
		"another store":       {sent(t, 2, here, other), 3, 0},
		"without a key":       {sent(t, 2, here, nil), 3, 0},
		"not a number":        {with(http.Header{}, "x"), hop.Max + 1, 0},
		"two lines":           {http.Header{hop.Header: {"2", " 7 "}}, 7, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := hop.Claimed(tt.header); got != tt.claimed {
				t.Errorf("%d hops are claimed, not %d", got, tt.claimed)
			}
			if got := key.Proven(tt.header, "g.example", "/x?a=%20"); got != tt.proven {
				t.Errorf("%d hops are proven, not %d", got, tt.proven)
			}
		})
	}
}
