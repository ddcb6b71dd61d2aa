package web_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

func TestInboxForwardsCallbackUnchanged(t *testing.T) {
	t.Parallel()
	type request struct {
		method, uri, body string
		header            http.Header
	}
	got := make(chan request, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- request{r.Method, r.RequestURI, string(body), r.Header}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "short and stout")
	}))
	t.Cleanup(receiver.Close)
	inbox := web.NewInbox(web.InboxConfig{ForwardTo: []string{receiver.URL}})
	serve(inbox, http.MethodPut, "/inbox", strings.NewReader("a=1"), "Webhook-Signature", "v1,abc", "Connection", "close", "Accept-Encoding", "br")
	w := serve(inbox, http.MethodPost, "/inbox?forward=1", strings.NewReader(`{"url":"`+receiver.URL+`/hook?x=1"}`))
	var answer struct {
		StatusCode int    `json:"status_code"`
		Response   string `json:"response"`
		Error      string `json:"error"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if answer.StatusCode != http.StatusTeapot || answer.Response != "short and stout" || answer.Error != "" {
		t.Errorf("got %+v", answer)
	}
	r := <-got
	if r.method != http.MethodPut || r.uri != "/hook?x=1" || r.body != "a=1" || r.header.Get("Webhook-Signature") != "v1,abc" {
		t.Errorf("the receiver got %+v", r)
	}
	if r.header.Get("Accept-Encoding") == "br" {
		t.Error("a header of the first connection was forwarded")
	}
}

func TestInboxForwardsToAllowedOriginsOnly(t *testing.T) {
	t.Parallel()
	const allowed = "http://localhost:3000"
	for name, test := range map[string]struct {
		target, body string
		header       []string
		want         int
	}{
		"another host":              {"/inbox?forward=1", `{"url":"http://169.254.169.254/"}`, nil, http.StatusForbidden},
		"another port":              {"/inbox?forward=1", `{"url":"http://localhost:30001/"}`, nil, http.StatusForbidden},
		"a user in the URL":         {"/inbox?forward=1", `{"url":"http://localhost:3000@evil.example/"}`, nil, http.StatusForbidden},
		"a password":                {"/inbox?forward=1", `{"url":"http://a:b@localhost:3000/"}`, nil, http.StatusForbidden},
		"no URL":                    {"/inbox?forward=1", `{}`, nil, http.StatusForbidden},
		"no JSON":                   {"/inbox?forward=1", `url`, nil, http.StatusBadRequest},
		"an unknown callback":       {"/inbox?forward=7", `{"url":"http://localhost:3000/"}`, nil, http.StatusNotFound},
		"callback of another inbox": {"/other?forward=1", `{"url":"http://localhost:3000/"}`, nil, http.StatusNotFound},
		"another site":              {"/inbox?forward=1", `{"url":"http://localhost:3000/"}`, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inbox := web.NewInbox(web.InboxConfig{ForwardTo: []string{allowed}})
			serve(inbox, http.MethodPost, "/inbox", strings.NewReader("a=1"))
			if w := serve(inbox, http.MethodPost, test.target, strings.NewReader(test.body), test.header...); w.Code != test.want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, test.want)
			}
		})
	}
	t.Run("nowhere by default", func(t *testing.T) {
		t.Parallel()
		inbox := web.NewInbox(web.InboxConfig{})
		if w := serve(inbox, http.MethodPost, "/inbox?forward=1", strings.NewReader("{}")); w.Body.String() != "recorded as 1\n" {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

func TestForwardOrigins(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"http://localhost:3000": "http://localhost:3000", "https://App.example/": "https://app.example",
		"localhost:3000": "", "ftp://a.example": "", "http://a.example/hook": "", "http://u@a.example": "", "http://a.example?x": "", "": "",
	} {
		if got, err := web.ParseForwardOrigin(s); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v; want %q", s, got, err, want)
		}
	}
}
