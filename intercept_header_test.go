package callback

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
)

func TestListHeadersLoseElements(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		edit       func(http.Header)
		line, want []string
	}{
		{"Prefer", takePreferences, nil, nil},
		{"Prefer", takePreferences, []string{"wait=5"}, nil},
		{"Prefer", takePreferences, []string{"Respond-Async", " WAIT = 10 "}, nil},
		{"Prefer", takePreferences, []string{"return=minimal"}, []string{"return=minimal"}},
		{"Prefer", takePreferences, []string{"respond-async, wait=5; x=y, handling=lenient ,return=minimal"}, []string{"handling=lenient ,return=minimal"}},
		{"Prefer", takePreferences, []string{`note="a, wait=5", wait=3`, "return=representation"}, []string{`note="a, wait=5"`, "return=representation"}},
		{"Prefer", takePreferences, []string{"waiting=5, respond-asynchronously"}, []string{"waiting=5, respond-asynchronously"}},

		{"Connection", limitConnection, nil, nil},
		{"Connection", limitConnection, []string{"close"}, []string{"close"}},
		{"Connection", limitConnection, []string{"Keep-Alive, X-User, Beam-Task-Id"}, []string{"Keep-Alive"}},
		{"Connection", limitConnection, []string{"X-User", "TE"}, []string{"TE"}},
		{"Connection", limitConnection, []string{"authorization"}, nil},
		{"Connection", limitConnection, []string{"Upgrade, HTTP2-Settings"}, []string{"Upgrade, HTTP2-Settings"}},
	} {
		header := http.Header{}
		if tt.line != nil {
			header[tt.name] = tt.line
		}
		tt.edit(header)
		if got := header[tt.name]; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("of %s: %q stays %q, not %q", tt.name, tt.line, got, tt.want)
		}
	}
}

func TestDropHeaderRemovesWhatBecomesTheSameVariable(t *testing.T) {
	t.Parallel()
	header := http.Header{
		"Beam-Task-Id": {"a", "b"}, "Beam_task_id": {"c"}, "Beam-Task_id": {"d"}, "BEAM-TASK-ID": {"e"},
		"Beam-Task-Ids": {"stays"}, "Xbeam-Task-Id": {"stays"}, "Beam.Task.Id": {"stays"},
	}
	dropHeader(header, "beam-task-id")
	want := http.Header{"Beam-Task-Ids": {"stays"}, "Xbeam-Task-Id": {"stays"}, "Beam.Task.Id": {"stays"}}
	if !reflect.DeepEqual(header, want) {
		t.Errorf("what stays is %v", header)
	}
}

func TestIsUpgrade(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method, upgrade, connection string
		want                        bool
	}{
		{"GET", "websocket", "Upgrade", true},
		{"GET", "websocket", "keep-alive, upgrade", true},
		{"GET", "foo/1", "upgrade", true},
		{"GET", "h2c, websocket", "upgrade", true},
		{"GET", "foo", "", false},
		{"GET", "foo", "keep-alive", false},
		{"GET", "foo", "upgraded", false},
		{"GET", "", "upgrade", false},
		{"POST", "websocket", "upgrade", false},
		{"DELETE", "foo", "upgrade", false},
		{"GET", "h2c", "Upgrade, HTTP2-Settings", false},
		{"GET", "TLS/1.3", "upgrade", false},
	} {
		r := httptest.NewRequest(tt.method, "/", nil)
		r.Header["Upgrade"], r.Header["Connection"] = []string{tt.upgrade}, []string{tt.connection}
		if got := isUpgrade(r); got != tt.want {
			t.Errorf("%s with Upgrade: %s, Connection: %s is an upgrade: %v", tt.method, tt.upgrade, tt.connection, got)
		}
	}
}

func TestHopsCountOnlyWithProof(t *testing.T) {
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
