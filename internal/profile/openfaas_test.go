package profile

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestFunctionStatusIsResponseStatus(t *testing.T) {
	t.Parallel()
	result := new(task.Result)
	for name, test := range map[string]struct {
		rec  task.Record
		want int
	}{
		"answered":               {task.Record{Task: task.Task{Status: task.Complete, UpstreamStatus: 201}, Result: result}, 201},
		"answered with an error": {task.Record{Task: task.Task{Status: task.Failed, UpstreamStatus: 500}, Result: result}, 500},
		"broken response":        {task.Record{Task: task.Task{Status: task.Failed, UpstreamStatus: 200}}, 503},
		"no answer":              {task.Record{Task: task.Task{Status: task.Failed}}, 503},
		"timeout":                {task.Record{Task: task.Task{Status: task.TimedOut, UpstreamStatus: 200}}, 504},
	} {
		if got := functionStatus(&test.rec); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

func TestDurationIsNeverNegative(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		started, finished time.Time
		want              string
	}{
		"ran":                    {start, start.Add(2885 * time.Microsecond), "0.002885"},
		"the clock was set back": {start, start.Add(-time.Hour), "0.000000"},
		"never started":          {time.Time{}, start, "0.000000"},
		"ran for days":           {start, start.Add(100 * time.Hour), "360000.000000"},
	} {
		rec := &task.Record{
			Task:     task.Task{StartedAt: test.started, FinishedAt: test.finished},
			Callback: &task.Callback{Profile: OpenFaaS},
		}
		h := make(http.Header)
		(openFaaS{}).SetHeader(h, rec, start)
		if got := h.Get("X-Duration-Seconds"); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestFunctionHeadersDoNotReplaceGatewayHeaders(t *testing.T) {
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
	(openFaaS{}).SetHeader(h, rec, time.Now())
	want := http.Header{
		"X-Extra": {"one", "two"}, "X-Function-Status": {"500"}, "X-Call-Id": {"the task's"},
		"X-Function-Name": {"figlet"}, "X-Duration-Seconds": {"0.000000"},
	}
	for name := range said {
		if strings.Join(h[name], ",") != strings.Join(want[name], ",") {
			t.Errorf("%s is %q, want %q", name, h[name], want[name])
		}
	}
	if len(h) != len(want) {
		t.Errorf("the header is %v, want %v", h, want)
	}
}

func TestFunctionNameFromPath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/async-function/figlet":                         "figlet",
		"/function/figlet/":                              "figlet",
		"/function/figlet.openfaas-fn/a/b":               "figlet.openfaas-fn",
		"/function/":                                     "",
		"/function/..":                                   "",
		"/function/./x":                                  "",
		"/async-function/...":                            "",
		"/function/..a":                                  "..a",
		"/function":                                      "",
		"/functions/figlet":                              "",
		"/v1/function/figlet":                            "",
		"/function/<script>alert(1)</script>":            "",
		"/function/fig\nlet":                             "",
		"/function/fig\u202elet":                         "",
		"/function/" + strings.Repeat("f", 128):          strings.Repeat("f", 128),
		"/async-function/" + strings.Repeat("f", 129):    "",
		"/async-function/figlet\x1b[31m":                 "",
		"/async-function//function/figlet":               "",
		"/async-function/async-function/function/figlet": "async-function",
	} {
		if got := (openFaaS{}).Function(path); got != want {
			t.Errorf("%q calls %q, want %q", path, got, want)
		}
	}
}

func FuzzFunctionName(f *testing.F) {
	for _, path := range []string{"/function/figlet", "/async-function/figlet.openfaas-fn/a", "/function/a\r\nb", "/function/\u202e", "/"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		name := (openFaaS{}).Function(path)
		if name == "" {
			return
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(path, functionPath), asyncFunctionPath)
		if !httpguts.ValidHeaderFieldName(name) || len(name) > maxFunctionName || !strings.HasPrefix(rest+"/", name+"/") {
			t.Errorf("%q calls %q", path, name)
		}
	})
}

func TestProfilesByName(t *testing.T) {
	t.Parallel()
	if names := Names(); !slices.Equal(names, []string{"beam2", "openfaas"}) {
		t.Errorf("the profiles are %q", names)
	}
	for _, name := range Names() {
		if got := Of(name).Traits(); got.Name != name || len(got.Headers) == 0 || !Sets(name, strings.ToLower(got.Headers[0])) {
			t.Errorf("%s has the traits %+v", name, got)
		}
	}
	for _, name := range []string{"", "other"} {
		if p := Of(name); !reflect.DeepEqual(p.Traits(), Traits{}) || p.BlockURI("/async-function/f") != "/async-function/f" || p.Signer(nil, time.Time{}) != nil || !p.CanSign(nil) {
			t.Errorf("%q changes something: %+v", name, p)
		}
	}
}
