package header

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
)

func TestListHeadersDropElements(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		edit       func(http.Header)
		line, want []string
	}{
		{"Prefer", TakePreferences, nil, nil},
		{"Prefer", TakePreferences, []string{"wait=5"}, nil},
		{"Prefer", TakePreferences, []string{"Respond-Async", " WAIT = 10 "}, nil},
		{"Prefer", TakePreferences, []string{"return=minimal"}, []string{"return=minimal"}},
		{"Prefer", TakePreferences, []string{"respond-async, wait=5; x=y, handling=lenient ,return=minimal"}, []string{"handling=lenient ,return=minimal"}},
		{"Prefer", TakePreferences, []string{`note="a, wait=5", wait=3`, "return=representation"}, []string{`note="a, wait=5"`, "return=representation"}},
		{"Prefer", TakePreferences, []string{"waiting=5, respond-asynchronously"}, []string{"waiting=5, respond-asynchronously"}},

		{"Connection", LimitConnection, nil, nil},
		{"Connection", LimitConnection, []string{"close"}, []string{"close"}},
		{"Connection", LimitConnection, []string{"Keep-Alive, X-User, Beam-Task-Id"}, []string{"Keep-Alive"}},
		{"Connection", LimitConnection, []string{"X-User", "TE"}, []string{"TE"}},
		{"Connection", LimitConnection, []string{"authorization"}, nil},
		{"Connection", LimitConnection, []string{"Upgrade, HTTP2-Settings"}, []string{"Upgrade, HTTP2-Settings"}},
	} {
		header := http.Header{}
		if tt.line != nil {
			header[tt.name] = tt.line
		}
		tt.edit(header)
		if got := header[tt.name]; !reflect.DeepEqual(got, tt.want) {
			t.Errorf("of %s: %q stays %q, want %q", tt.name, tt.line, got, tt.want)
		}
	}
}

func TestDropHeaderRemovesSameCGIVariable(t *testing.T) {
	t.Parallel()
	header := http.Header{
		"Beam-Task-Id": {"a", "b"}, "Beam_task_id": {"c"}, "Beam-Task_id": {"d"}, "BEAM-TASK-ID": {"e"},
		"Beam-Task-Ids": {"stays"}, "Xbeam-Task-Id": {"stays"}, "Beam.Task.Id": {"stays"},
	}
	Drop(header, "beam-task-id")
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
		if got := IsUpgrade(r); got != tt.want {
			t.Errorf("%s with Upgrade: %s, Connection: %s is an upgrade: %v", tt.method, tt.upgrade, tt.connection, got)
		}
	}
}
