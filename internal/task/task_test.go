package task

import (
	"strings"
	"testing"
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
