package poll

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

const home = "gateway.example"

// rules are those of most tests.
func rules() *Rules {
	return &Rules{
		Location: Source{Header: "Location"}, Pending: []Condition{{Status: []int{202}}},
		Interval: time.Second, Longest: 2 * time.Second,
	}
}

// first returns the exchange of a task's request.
func first(status int, header ...string) Exchange {
	x := Exchange{Poll: task.Poll{URI: "/jobs?a=b", Host: home}, First: true, Home: home, Answer: Answer{Status: status, Header: make(http.Header)}}
	for i := 0; i < len(header); i += 2 {
		x.Answer.Header.Set(header[i], header[i+1])
	}
	return x
}

// later returns the exchange of a poll.
func later(status int, body string) Exchange {
	x := first(status)
	x.First, x.Poll.URI, x.Poll.Interval, x.Answer.Body = false, "/jobs/1", time.Second, []byte(body)
	return x
}

func TestNextDecidesOutcome(t *testing.T) {
	t.Parallel()
	byState := rules()
	byState.Pending = []Condition{{JSON: "state", Values: []string{"new", "busy"}}, {JSON: "done", Values: []string{"false"}}, {JSON: "answer", Values: []string{"null"}}}
	byState.Failed = []Condition{{JSON: "state", Values: []string{"broken"}}}
	cut := later(200, `{"state": "busy", "log": "`)
	cut.Answer.Cut = true
	cutResult := later(200, `{"state": "ready", "done": true, "answer": 1, "log": "`)
	cutResult.Answer.Cut = true
	cutText := later(200, `ready, log: `)
	cutText.Answer.Cut = true
	zipped := later(200, "")
	zipped.Answer.Body, zipped.Answer.Coding = zip(t, `{"state": "busy"}`), "gzip"
	unknown := later(200, `{"state": "busy"}`)
	unknown.Answer.Coding = "rot13"
	result := later(202, `{"state": "broken"}`)
	result.Poll.Result = true
	resultLater := later(503, "")
	resultLater.Poll.Result = true
	for name, tt := range map[string]struct {
		rules *Rules
		x     Exchange
		want  Outcome
	}{
		"202 with a location":                   {rules(), first(202, "Location", "/jobs/1"), Pending},
		"200 with a location":                   {rules(), first(200, "Location", "/jobs/1"), Final},
		"202 counts beside a condition of JSON": {byState, first(202, "Location", "/jobs/1"), Pending},
		"a refused request":                     {rules(), first(503, "Location", "/jobs/1"), Final},
		"a pending poll":                        {rules(), later(202, ""), Pending},
		"a final poll":                          {rules(), later(200, ""), Final},
		"a refused poll":                        {rules(), later(403, ""), Final},
		"an unavailable endpoint":               {rules(), later(502, ""), Retry},
		"no answer":                             {rules(), later(0, ""), Retry},
		"too many polls":                        {rules(), later(429, ""), Retry},
		"a pending value":                       {byState, later(200, `{"state": "busy"}`), Pending},
		"a pending boolean":                     {byState, later(200, `{"done": false}`), Pending},
		"a pending null":                        {byState, later(200, `{"answer": null}`), Pending},
		"a failed value":                        {byState, later(200, `{"state": "broken", "done": false}`), Failed},
		"another value":                         {byState, later(200, `{"state": "ready"}`), Final},
		"no value":                              {byState, later(200, `{}`), Final},
		"no JSON":                               {byState, later(200, `<html>`), Final},
		"a poll with 202 and no pending value":  {byState, later(202, `{"state": "ready"}`), Final},
		"a body that is cut":                    {byState, cut, Pending},
		"a final body that is cut":              {byState, cutResult, Final},
		"a text that is cut":                    {byState, cutText, Final},
		"a body that is encoded":                {byState, zipped, Pending},
		"an unknown coding":                     {byState, unknown, Final},
		"a result is not judged":                {byState, result, Final},
		"a result that is unavailable":          {byState, resultLater, Retry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			step, err := tt.rules.Next(tt.x)
			if err != nil || step.Outcome != tt.want {
				t.Errorf("the outcome is %q: %v", step.Outcome, err)
			}
			if asks := step.Outcome == Pending || step.Outcome == Retry; asks != (step.Wait > 0) || asks != (step.Poll.URI != "") {
				t.Errorf("the step is %+v", step)
			}
		})
	}
}

func TestNextRefusesToGuess(t *testing.T) {
	t.Parallel()
	byState := rules()
	byState.Pending = []Condition{{JSON: "state", Values: []string{"busy"}}}
	for name, body := range map[string]string{"object": `{"log": "`, "array": ` [{"log": "`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := later(200, body)
			x.Answer.Cut = true
			if step, err := byState.Next(x); !errors.Is(err, ErrCut) {
				t.Errorf("the outcome is %q: %v", step.Outcome, err)
			}
		})
	}
}

func zip(t *testing.T, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLocationIsResolved(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		location  string
		host, uri string
		err       error
	}{
		"path":                       {"/jobs/1?x=%2F", home, "/jobs/1?x=%2F", nil},
		"relative":                   {"1", home, "/1", nil},
		"relative with dots":         {"../../1", home, "/1", nil},
		"query":                      {"?id=1", home, "/jobs?id=1", nil},
		"fragment":                   {"/jobs/1#top", home, "/jobs/1", nil},
		"host alone":                 {"https://gateway.example", home, "/", nil},
		"own host":                   {"http://GATEWAY.example:80/1", "GATEWAY.example:80", "/1", nil},
		"named host":                 {"https://api.example:443/1", "api.example:443", "/1", nil},
		"named host without scheme":  {"//api.example/1", "api.example", "/1", nil},
		"named port":                 {"http://10.0.0.1:8080/1", "10.0.0.1:8080", "/1", nil},
		"other host":                 {"http://169.254.169.254/1", "", "", ErrLocation},
		"other port":                 {"http://10.0.0.1:8081/1", "", "", ErrLocation},
		"subdomain of a named host":  {"https://x.api.example/1", "", "", ErrLocation},
		"port of another scheme":     {"https://api.example:80/1", "", "", ErrLocation},
		"user":                       {"https://user@api.example/1", "", "", ErrLocation},
		"other scheme":               {"ftp://api.example/1", "", "", ErrLocation},
		"opaque":                     {"mailto:a@api.example", "", "", ErrLocation},
		"invalid":                    {"http://[/1", "", "", ErrLocation},
		"longer than a record takes": {"/" + strings.Repeat("a", maxURI), "", "", ErrLocation},
		"none":                       {"", "", "", ErrNoLocation},
		"spaces":                     {" ", "", "", ErrNoLocation},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rules()
			r.Hosts = []string{"api.example", "10.0.0.1:8080"}
			step, err := r.Next(first(202, "Location", tt.location))
			if !errors.Is(err, tt.err) || step.Poll.URI != tt.uri || step.Poll.Host != tt.host {
				t.Errorf("it leads to %q at %q: %v", step.Poll.URI, step.Poll.Host, err)
			}
		})
	}
}

func TestCheckHosts(t *testing.T) {
	t.Parallel()
	valid := []string{"api.example", "api.example:8443", "10.0.0.1", "[2606::1]:443", "x.example:65535"}
	if err := CheckHosts(valid); err != nil {
		t.Error(err)
	}
	for _, host := range []string{"", "*", "*.example", "x.example:0", "x.example:99999", "http://x.example", "x.example/1", "user@x.example", ":80"} {
		if err := CheckHosts(append(slices.Clip(valid), host)); err == nil || !strings.Contains(err.Error(), strconv.Quote(host)) {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestPublicErrorsNameNoAddress(t *testing.T) {
	t.Parallel()
	for _, known := range []error{ErrNoLocation, ErrLocation, ErrCut} {
		if got := Public(fmt.Errorf("%w: http://10.0.0.1", known)); got != known {
			t.Errorf("%v becomes %v", known, got)
		}
	}
	if got := Public(errors.New("parsing http://10.0.0.1")); got != ErrLocation {
		t.Errorf("another error becomes %v", got)
	}
}

func TestLocationIsFoundInJSON(t *testing.T) {
	t.Parallel()
	r := rules()
	r.Location, r.Pending = Source{JSON: "urls.get"}, []Condition{{JSON: "state", Values: []string{"busy"}}}
	r.Result = Source{JSON: "output"}
	x := first(201)
	x.Answer.Body = []byte(`{"state": "busy", "urls": {"get": "/1"}}`)
	step, err := r.Next(x)
	if err != nil || step.Outcome != Pending || step.Poll.URI != "/1" || step.Poll.Result {
		t.Fatalf("the first step is %+v: %v", step, err)
	}
	x.First, x.Poll, x.Answer.Body = false, step.Poll, []byte(`{"state": "busy"}`)
	if step, err = r.Next(x); err != nil || step.Poll.URI != "/1" {
		t.Errorf("a poll without a location leads to %+v: %v", step, err)
	}
	x.Answer.Body = []byte(`{"state": "ready", "output": ["/2"]}`)
	if step, err = r.Next(x); err != nil || step.Outcome != Final {
		t.Errorf("an answer with other output is %+v: %v", step, err)
	}
	x.Answer.Body = []byte(`{"state": "ready", "output": "/2"}`)
	if step, err = r.Next(x); err != nil || step.Outcome != Pending || step.Poll.URI != "/2" || !step.Poll.Result || step.Wait != 0 {
		t.Errorf("the result is at %+v: %v", step, err)
	}
}

func TestIntervalGrows(t *testing.T) {
	t.Parallel()
	r, x := rules(), first(202, "Location", "/1")
	for i, want := range []time.Duration{time.Second, 1500 * time.Millisecond, 2 * time.Second, 2 * time.Second} {
		step, err := r.Next(x)
		if err != nil || step.Wait != want {
			t.Errorf("wait %d is %v, not %v: %v", i, step.Wait, want, err)
		}
		x.First, x.Poll = false, step.Poll
	}
	x.Answer.RetryAfter = time.Hour
	if step, err := r.Next(x); err != nil || step.Wait != time.Hour {
		t.Errorf("the wait is %v, not that of Retry-After: %v", step.Wait, err)
	}
}

func FuzzLocation(f *testing.F) {
	for _, seed := range []string{"/1", "../x?y", "//api.example/1", "https://api.example:443/%2F", "http://[::1]:80/", "http:/a", "http:a", `\\evil\x`, "//\x00", "http://api.example@evil/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, location string) {
		r := rules()
		r.Hosts = []string{"api.example"}
		step, err := r.Next(first(202, "Location", location))
		if err != nil {
			return
		}
		host := strings.ToLower(step.Poll.Host)
		if host, _, _ = strings.Cut(host, ":"); host != home && host != "api.example" {
			t.Errorf("%q leads to the host %q", location, step.Poll.Host)
		}
		if u, err := url.ParseRequestURI(step.Poll.URI); err != nil || u.Host != "" {
			t.Errorf("%q leads to %q, which is not a request's URI: %v", location, step.Poll.URI, err)
		}
	})
}
