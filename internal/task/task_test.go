package task

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRecordKeepsLatestAttempts(t *testing.T) {
	t.Parallel()
	var rec Record
	for i := range 200 {
		rec.AddAttempt(Attempt{StatusCode: i, Response: strings.Repeat("x", 1024)})
	}
	if rec.Tries != 200 || len(rec.Attempts) != maxAttemptsKept || rec.Attempts[maxAttemptsKept-1].StatusCode != 199 {
		t.Fatalf("after 200 attempts: %d tries, %d kept", rec.Tries, len(rec.Attempts))
	}
	kept := 0
	for _, a := range rec.Attempts {
		kept += len(a.Response)
	}
	if want := maxResponsesKept * 1024; kept != want {
		t.Errorf("%d bytes of answers are kept, want %d", kept, want)
	}
}

func TestDroppedRequestKeepsName(t *testing.T) {
	t.Parallel()
	rec := Record{Request: &Request{Method: "POST", URI: "/x", Header: map[string][]string{"Authorization": {"secret"}}}}
	rec.DropRequest()
	if rec.Request.Header != nil || rec.Request.Method != "POST" || rec.Request.URI != "/x" {
		t.Errorf("the request is %+v", rec.Request)
	}
	new(Record).DropRequest() // a waiting client's task has no request
}

func TestNextRequestOfPolledTask(t *testing.T) {
	t.Parallel()
	accepted := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	rec := Record{Request: &Request{Method: "POST", URI: "/x", Path: "/y", Host: "a.example", Size: 3, RemoteAddr: "10.0.0.1:1"}}
	if rec.NextRequest() != rec.Request || rec.Elapsed(accepted) != 0 {
		t.Errorf("before polls, the next request is %+v after %v", rec.NextRequest(), rec.Elapsed(accepted))
	}
	rec.Poll = &Poll{StartedAt: accepted, URI: "/jobs/1", Host: "b.example"}
	want := Request{Method: "GET", URI: "/jobs/1", Host: "b.example", RemoteAddr: "10.0.0.1:1"}
	if got := *rec.NextRequest(); !reflect.DeepEqual(got, want) {
		t.Errorf("the poll is %+v, want %+v", got, want)
	}
	if got := rec.Elapsed(accepted.Add(time.Minute)); got != time.Minute {
		t.Errorf("a minute later, %v have passed", got)
	}
	if rec.Request.Method != "POST" {
		t.Error("a poll changes the accepted request")
	}
}
