package profile

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestTheStatusOfAFunctionIsItsOwnOrStandsForNone(t *testing.T) {
	t.Parallel()
	result := new(task.Result)
	for name, test := range map[string]struct {
		rec  task.Record
		want int
	}{
		"it answered":                     {task.Record{Task: task.Task{Status: task.Complete, UpstreamStatus: 201}, Result: result}, 201},
		"it answered that it failed":      {task.Record{Task: task.Task{Status: task.Failed, UpstreamStatus: 500}, Result: result}, 500},
		"it broke off after a good start": {task.Record{Task: task.Task{Status: task.Failed, UpstreamStatus: 200}}, 503},
		"it gave no answer":               {task.Record{Task: task.Task{Status: task.Failed}}, 503},
		"its time was up":                 {task.Record{Task: task.Task{Status: task.TimedOut, UpstreamStatus: 200}}, 504},
	} {
		if got := functionStatus(&test.rec); got != test.want {
			t.Errorf("%s: %d, not %d", name, got, test.want)
		}
	}
}

func TestTheDurationIsNeverNegative(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		started, finished time.Time
		want              string
	}{
		"it ran":                  {start, start.Add(2885 * time.Microsecond), "0.002885"},
		"the clock was set back":  {start, start.Add(-time.Hour), "0.000000"},
		"it never began":          {time.Time{}, start, "0.000000"},
		"it ran longer than days": {start, start.Add(100 * time.Hour), "360000.000000"},
	} {
		rec := &task.Record{
			Task:     task.Task{StartedAt: test.started, FinishedAt: test.finished},
			Callback: &task.Callback{Profile: OpenFaaS},
		}
		h := make(http.Header)
		SetHeader(h, rec)
		if got := h.Get("X-Duration-Seconds"); got != test.want {
			t.Errorf("%s: %s, not %s", name, got, test.want)
		}
	}
}

func TestAFunctionCannotSpeakForTheGateway(t *testing.T) {
	t.Parallel()
	said := http.Header{
		"X-Extra": {"one", "two"}, "X-Function-Status": {"200"}, "X-Call-Id": {"forged"}, "Webhook-Signature": {"v1,forged"},
		"Callback-Hop": {"0"}, "Expect": {"100-continue"}, "User-Agent": {"forged"}, "Content-Type": {"text/forged"}, "Host": {"forged"},
	}
	rec := &task.Record{
		Task:     task.Task{Status: task.Failed, UpstreamStatus: 500},
		Result:   &task.Result{Header: said},
		Callback: &task.Callback{Profile: OpenFaaS, Function: "figlet"},
	}
	h := http.Header{"X-Call-Id": {"the task's"}}
	SetHeader(h, rec)
	want := http.Header{
		"X-Extra": {"one", "two"}, "X-Function-Status": {"500"}, "X-Call-Id": {"the task's"},
		"X-Function-Name": {"figlet"}, "X-Duration-Seconds": {"0.000000"},
	}
	for name := range said {
		if strings.Join(h[name], ",") != strings.Join(want[name], ",") {
			t.Errorf("%s is %q, not %q", name, h[name], want[name])
		}
	}
	if len(h) != len(want) {
		t.Errorf("the header is %v, not %v", h, want)
	}
}
