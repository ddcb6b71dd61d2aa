package callback

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestPreferNamesTheWaitInSeconds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		lines []string
		wait  time.Duration
		named bool
	}{
		{nil, 0, false},
		{[]string{""}, 0, false},
		{[]string{"respond-async"}, 0, false},
		{[]string{"wait"}, 0, false},
		{[]string{"wait="}, 0, false},
		{[]string{"wait=soon"}, 0, false},
		{[]string{"wait=-1"}, 0, false},
		{[]string{"wait=1.5"}, 0, false},
		{[]string{"waiting=5"}, 0, false},
		{[]string{"wait=0"}, 0, true},
		{[]string{"wait=10"}, 10 * time.Second, true},
		{[]string{" WAIT = 10 "}, 10 * time.Second, true},
		{[]string{`wait="10"`}, 10 * time.Second, true},
		{[]string{"wait=10; a=b"}, 10 * time.Second, true},
		{[]string{"respond-async, wait=5"}, 5 * time.Second, true},
		{[]string{"wait=5,respond-async"}, 5 * time.Second, true},
		{[]string{"respond-async", "wait=5"}, 5 * time.Second, true},
		{[]string{"wait=5, wait=7"}, 5 * time.Second, true}, // RFC 7240, section 2: the first counts
		{[]string{"wait=3600"}, time.Hour, true},
		{[]string{"wait=3601"}, time.Hour, true},
		{[]string{"wait=4294967295"}, time.Hour, true},
	} {
		t.Run(strings.Join(tt.lines, "|"), func(t *testing.T) {
			t.Parallel()
			wait, named := preferredWait(http.Header{"Prefer": tt.lines})
			if wait != tt.wait || named != tt.named {
				t.Errorf("it is %v (%v), not %v (%v)", wait, named, tt.wait, tt.named)
			}
		})
	}
}

func TestQueueBodiesAreTakenUpToTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 100
	broken := errors.New("the connection broke")
	for name, tt := range map[string]struct {
		body   io.Reader
		size   int
		status int // of the refusal; 0: accepted
	}{
		"nothing":          {nil, 0, 0},
		"one byte less":    {strings.NewReader(strings.Repeat("x", limit-1)), limit - 1, 0},
		"exactly":          {strings.NewReader(strings.Repeat("x", limit)), limit, 0},
		"byte by byte":     {iotest.OneByteReader(strings.NewReader(strings.Repeat("x", limit))), limit, 0},
		"one byte over":    {strings.NewReader(strings.Repeat("x", limit+1)), 0, http.StatusRequestEntityTooLarge},
		"over, byte wise":  {iotest.OneByteReader(strings.NewReader(strings.Repeat("x", limit+1))), 0, http.StatusRequestEntityTooLarge},
		"the site's limit": {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("xxxx")), 3), 0, http.StatusRequestEntityTooLarge},
		"broken off":       {io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)), 0, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := newBoundedBody(tt.body, limit)
			body.hash = sha256.New()
			got, err := io.ReadAll(body)
			if tt.status == 0 {
				if want := sha256.Sum256(got); err != nil || len(got) != tt.size || !bytes.Equal(body.hash.Sum(nil), want[:]) {
					t.Errorf("%d bytes are read, with digest %x: %v", len(got), body.hash.Sum(nil), err)
				}
				return
			}
			var p *problem
			if err == nil || !errors.As(refusalOf(err, body), &p) || p.status != tt.status {
				t.Errorf("the error is %v, the refusal %+v", err, p)
			}
		})
	}
}

func TestAResultThatThereIsNotHasAStatus(t *testing.T) {
	t.Parallel()
	for want, rec := range map[int]task.Task{
		http.StatusGatewayTimeout: {Status: task.TimedOut, Error: "the endpoint did not finish within 1s"},
		http.StatusGone:           {Status: task.Failed, Error: errCanceled},
		http.StatusBadGateway:     {Status: task.Failed, Error: noAnswer},
	} {
		if got := statusWithout(&task.Record{Task: rec}); got != want {
			t.Errorf("%q has %d, not %d", rec.Error, got, want)
		}
	}
}

func TestRefusalsOfTheEngineHaveTheirStatus(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]int{
		engine.ErrQueueFull: http.StatusTooManyRequests,
		engine.ErrKeyReused: http.StatusUnprocessableEntity,
		engine.ErrTooLarge:  http.StatusRequestHeaderFieldsTooLarge,
	} {
		var p *problem
		if !errors.As(refusalOf(err, newBoundedBody(nil, 1)), &p) || p.status != want {
			t.Errorf("%v: %+v", err, p)
		}
	}
	if err := refusalOf(engine.ErrFull, newBoundedBody(nil, 1)); !errors.Is(err, engine.ErrFull) {
		t.Errorf("a full store: %v", err)
	}
}

func TestAQueuesClientSeesNothingOfReceivers(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for name, tt := range map[string]struct {
		callback *task.Callback
		host     string
		errors   []string
	}{
		"a URL that it named": {&task.Callback{}, "c.example:443", []string{"", "no such host"}},
		"the operator's own":  {&task.Callback{Trusted: true}, "", []string{"", "not delivered"}},
		"none":                {nil, "c.example:443", []string{"", "no such host"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := &task.Record{Callback: tt.callback, Task: task.Task{
				ID: "the-task", State: task.Delivering, Status: task.Complete, CallbackHost: "c.example:443",
				Attempts: []task.Attempt{{StatusCode: 500, DurationMS: 3, Response: secret}, {Error: "no such host", Response: secret}},
			}}
			doc := publicTask(rec)
			text, err := json.Marshal(doc)
			if err != nil || strings.Contains(string(text), secret) {
				t.Errorf("the document is %s: %v", text, err)
			}
			if doc.ID != rec.ID || doc.State != rec.State || doc.Status != rec.Status || doc.CallbackHost != tt.host || len(doc.Attempts) != 2 {
				t.Fatalf("the document is %s", text)
			}
			for i, attempt := range doc.Attempts {
				if attempt.Error != tt.errors[i] || attempt.StatusCode != rec.Attempts[i].StatusCode || attempt.DurationMS != rec.Attempts[i].DurationMS {
					t.Errorf("attempt %d is %+v", i, attempt)
				}
			}
			// The document shares parts with the record, which must not change.
			if rec.Attempts[0].Response != secret || rec.Attempts[1].Error != "no such host" || rec.CallbackHost == "" {
				t.Errorf("the record became %+v", rec)
			}
		})
	}
}
