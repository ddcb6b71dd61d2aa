package taskapi

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestStatusOfTaskWithoutResult(t *testing.T) {
	t.Parallel()
	for want, rec := range map[int]task.Task{
		http.StatusGatewayTimeout: {Status: task.TimedOut, Error: "the endpoint did not finish within 1s"},
		http.StatusGone:           {Status: task.Failed, Error: engine.ReasonCanceled},
		http.StatusBadGateway:     {Status: task.Failed, Error: "the endpoint gave no answer"},
	} {
		if got := statusWithout(&task.Record{Task: rec}); got != want {
			t.Errorf("%q has %d, not %d", rec.Error, got, want)
		}
	}
}

func TestPublicTaskHidesReceivers(t *testing.T) {
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

// canonicalID matches a task's ID.
var canonicalID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func FuzzLookup(f *testing.F) {
	const id = "0b1f9a3e-6a0c-4d0e-9d0e-0a1b2c3d4e5f"
	for _, path := range []string{
		"/q/" + id, "/q/" + id + "/", "/q/" + id + "/result", "/q/" + strings.ToUpper(id), "/q/{" + id + "}",
		"/q/urn:uuid:" + id, "/q/" + strings.ReplaceAll(id, "-", ""), id, "", "/", "/result", "/q/callback.*.>",
	} {
		for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodPost} {
			f.Add(method, path)
		}
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		l, ok := ParseLookup(method, path)
		// The ID becomes part of a NATS subject, where * and > would match other tasks.
		if ok != canonicalID.MatchString(l.ID) {
			t.Errorf("%s %q looks up %+v, %v", method, path, l, ok)
		}
		if ok && !strings.Contains(strings.ToLower(path), l.ID) {
			t.Errorf("%s %q looks up another task, %s", method, path, l.ID)
		}
	})
}
