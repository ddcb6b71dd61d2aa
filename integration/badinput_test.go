package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// problemDocument is the problem document of RFC 9457 that a refused client gets.
type problemDocument struct {
	Type, Title, Detail string
	Status              int
}

// checkProblem returns the detail of a response that must be a problem document
// of the given status.
func checkProblem(t *testing.T, resp *http.Response, body string, status int) string {
	t.Helper()
	var p problemDocument
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("%d %q: %v", resp.StatusCode, body, err)
	}
	if resp.StatusCode != status || p.Status != status || p.Title != http.StatusText(status) || p.Type == "" {
		t.Errorf("%d %+v, want %d", resp.StatusCode, p, status)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content-type %q", ct)
	}
	if id := resp.Header.Get("beam-task-id"); id != "" {
		t.Errorf("the refusal has a task ID, %q", id)
	}
	return p.Detail
}

func TestBadCallbackIsNotForwardedOrStored(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	g := gatewaytest.Start(t, "delivery {\ndeny denied.example 8.8.8.0/24\n}", "callback\nreverse_proxy "+app)
	const marker = "nothing-stored-of-this"
	quoted := func(url string) string {
		text, err := json.Marshal(url)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, c := range map[string]struct{ value, reason string }{
		"a number":                   {`12345678901234567890`, "not a string"},
		"true":                       {`true`, "not a string"},
		"an object":                  {`{"url":"http://c.example"}`, "not a string"},
		"an array":                   {`["http://c.example"]`, "not a string"},
		"twice":                      {`"http://c.example/","callback_url":"http://c.example/"`, "twice"},
		"twice, once null":           {`null,"callback_url":"http://c.example/"`, "twice"},
		"twice, once escaped":        {`"http://c.example/","callback\u005furl":"http://d.example/"`, "twice"},
		"a path":                     {quoted("/hook"), "not an http or https URL"},
		"a name":                     {quoted("c.example"), "not an http or https URL"},
		"no scheme":                  {quoted("//c.example/"), "not an http or https URL"},
		"ftp":                        {quoted("ftp://c.example/"), "not an http or https URL"},
		"a file":                     {quoted("file:///etc/passwd"), "not an http or https URL"},
		"javascript":                 {quoted("javascript:alert(1)"), "not an http or https URL"},
		"an opaque URL":              {quoted("http:c.example"), "has no host"},
		"no host":                    {quoted("http:///hook"), "has no host"},
		"a port and no host":         {quoted("http://:80/"), "has no host"},
		"userinfo":                   {quoted("http://user:password@c.example/"), "user name or password"},
		"a user":                     {quoted("https://user@c.example/"), "user name or password"},
		"port 0":                     {quoted("http://c.example:0/"), "bad port"},
		"port 65536":                 {quoted("http://c.example:65536/"), "bad port"},
		"a port in words":            {quoted("http://c.example:http/"), "not a valid URL"},
		"a port that is not allowed": {quoted("http://c.example:22/"), "port 22 is not allowed"},
		"too long":                   {quoted("http://c.example/" + strings.Repeat("x", 2048-len("http://c.example/")+1)), "longer than 2048 bytes"},
		"a line break":               {quoted("http://c.example/\r\nX: y"), "control"},
		"a space in front":           {quoted(" http://c.example/"), "has space around it"},
		"a bad escape":               {quoted("http://c.example/%zz"), "not a valid URL"},
		"a loopback address":         {quoted("http://127.0.0.1/"), "127.0.0.1"},
		"IPv6 loopback":              {quoted("http://[::1]/"), "::1"},
		"a mapped address":           {quoted("http://[::ffff:10.0.0.1]/"), "10.0.0.1"},
		"a zone":                     {quoted("http://[fe80::1%25eth0]/"), "zone"},
		"metadata":                   {quoted("http://169.254.169.254/latest/"), "169.254.169.254"},
		"decimal":                    {quoted("http://2130706433/"), "address"},
		"octal":                      {quoted("http://0177.0.0.1/"), "address"},
		"full-width digits":          {quoted("http://１２７.0.0.1/"), "127.0.0.1"},
		"localhost":                  {quoted("http://localhost/"), "localhost"},
		"localhost.":                 {quoted("http://LOCALHOST./"), "localhost"},
		"a denied name":              {quoted("http://denied.example/"), "denied"},
		"a denied address":           {quoted("http://8.8.8.8/"), "denied"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := g.Post("/", `{"marker":"`+marker+`","callback_url":`+c.value+`}`)
			detail := checkProblem(t, resp, body, 400)
			if !strings.HasPrefix(detail, "callback_url: ") || !strings.Contains(detail, c.reason) {
				t.Errorf("detail %q does not name the field and %q", detail, c.reason)
			}
			if strings.Contains(body, "password@") {
				t.Errorf("the answer has the password: %s", body)
			}
		})
	}
	t.Run("over the limit", func(t *testing.T) {
		resp, body := g.Post("/", `{"callback_url":"http://c.example/`+marker+`","a":"`+strings.Repeat("x", 8<<20)+`"}`)
		if detail := checkProblem(t, resp, body, 413); !strings.Contains(detail, "callback_url") || !strings.Contains(detail, "8388608") {
			t.Errorf("detail %q does not name the field and the limit", detail)
		}
	})
	select {
	case a := <-got:
		t.Errorf("a request was forwarded: %s", a.body)
	default:
	}
	// A stored URL proves that the search below can find one. Nothing listens at this
	// address.
	resp, _ := g.Post("/", `{"callback_url":"http://callback.invalid/accepted-and-stored"}`)
	if resp.StatusCode != 200 || resp.Header.Get("beam-task-id") == "" {
		t.Fatalf("a good request: %s", resp.Status)
	}
	g.Kill()
	if !g.Stored("/accepted-and-stored") {
		t.Error("the store does not contain an accepted task")
	}
	for _, refused := range []string{marker, "c.example", "denied.example"} {
		if g.Stored(refused) {
			t.Errorf("the store contains %q from a refused request", refused)
		}
	}
	if log := g.Log.String(); strings.Contains(log, "password@") {
		t.Error("the log contains the password of a refused URL")
	}
}

func TestURLLengthLimit(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	paths := make(chan string, 1)
	rcv := gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) { paths <- r.URL.RequestURI() })
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	url := rcv.URL + "/?q=" + strings.Repeat("x", 2048-len(rcv.URL)-len("/?q="))
	if resp, body := g.Post("/", `{"callback_url":"`+url+`"}`); resp.StatusCode != 200 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if path := <-paths; rcv.URL+path != url {
		t.Errorf("the receiver was asked for %s", path)
	}
}

// If a record that is too large looked like an engine failure, other clients would get
// 503.
func TestLongHeadersDoNotAffectOtherClients(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.ToLocal, "callback {\nheader X-Tenant {http.request.header.Tenant}\n}\nreverse_proxy "+app)
	g.Edit("auto_https off", "auto_https off\nservers {\nmax_header_size 1MB\n}")
	g.Start()
	long := strings.Repeat("<", 200_000) // six times as long in JSON
	body := `{"callback_url":"` + rcv.URL + `"}`
	for range 3 {
		resp, text := g.Do("POST", "/", body, "Content-Type", "application/json", "Tenant", long)
		if detail := checkProblem(t, resp, text, 400); !strings.Contains(detail, "X-Tenant") {
			t.Errorf("detail %q does not name the header", detail)
		}
		resp, _ = g.Do("POST", "/", body, "Content-Type", "application/json", "Traceparent", long, "X-Other", long)
		if c := rcv.Next(t); resp.StatusCode != 200 || c.Header.Get("Traceparent") != "" {
			t.Errorf("the client got %s, the receiver a traceparent of %d bytes", resp.Status, len(c.Header.Get("Traceparent")))
		}
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	resp, _ := g.Do("POST", "/", body, "Content-Type", "application/json", "Traceparent", parent, "Tenant", strings.Repeat("<", 16<<10))
	if c := rcv.Next(t); resp.StatusCode != 200 || c.Header.Get("Traceparent") != parent || len(c.Header.Get("X-Tenant")) != 16<<10 {
		t.Errorf("the client got %s, the receiver traceparent %q", resp.Status, c.Header.Get("Traceparent"))
	}
}
