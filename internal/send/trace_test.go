package send

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

func TestTraceDurations(t *testing.T) {
	t.Parallel()
	s, urls := startBoth(t, time.Minute, func(http.ResponseWriter, *http.Request) {})
	for version, target := range urls {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		first, second := s.Send(t.Context(), newCallback(t, target, "x"), nil), s.Send(t.Context(), newCallback(t, target, "x"), nil)
		for _, ans := range []Answer{first, second} {
			if !ans.Accepted() || ans.Trace.RemoteAddr != u.Host || !ans.Trace.At.Equal(ans.At) || ans.Trace.FirstByte <= 0 {
				t.Errorf("%s: the answer is %+v", version, ans)
			}
		}
		if secure := u.Scheme == "https"; first.Trace.Connect <= 0 || (first.Trace.TLS > 0) != secure {
			t.Errorf("%s: the first attempt's trace is %+v", version, first.Trace)
		}
		if second.Trace.Connect != 0 || second.Trace.TLS != 0 {
			t.Errorf("%s: the connection was used again, and the trace is %+v", version, second.Trace)
		}
	}
}

func TestTraceWithoutConnection(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	ans := newSender(t, nil).Send(t.Context(), newCallback(t, server.URL, "x"), nil)
	if ans.Err == nil || ans.Connected || ans.Trace.RemoteAddr != "" || len(ans.Trace.Sent) == 0 || ans.Trace.Received != nil {
		t.Errorf("the answer is %+v", ans)
	}
}

func TestTraceMasksSecrets(t *testing.T) {
	t.Parallel()
	const keyText = "whsec_cGxhbnRlZC1zaWduaW5nLWtleS1vZi10aGUtdGVzdA=="
	key, err := webhook.ParseKey(keyText)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mirror := fmt.Sprint(r.URL, " ", r.Header)
		w.Header().Set("X-Mirror", mirror)
		w.Header().Set("Set-Cookie", "id=planted-cookie")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(mirror))
	}))
	t.Cleanup(server.Close)
	c := newCallback(t, server.URL+"/hook?token=planted-query%21&x=planted+value", "x")
	c.Record.Callback.Header = [][2]string{{"X-Own", "planted-own"}, {"Authorization", "Bearer planted-credentials"}}
	s := newSender(t, func(o *Options) { o.Keys = []webhook.Key{key} })
	ans := s.Send(t.Context(), c, nil)
	kept := fmt.Sprint(ans.Trace, ans.Excerpt, Preview(c.Record, c.Body), PublicURL(c.Record.Callback.URL))
	for _, secret := range []string{"planted", "v1,", strings.TrimPrefix(keyText, "whsec_")} {
		if strings.Contains(kept, secret) {
			t.Errorf("%q is in %s", secret, kept)
		}
	}
	for _, want := range [][2]string{{"X-Own", masked}, {"Authorization", masked}, {"Webhook-Signature", masked}, {"Beam-Task-Id", "id-1"}} {
		if !slices.Contains(ans.Trace.Sent, want) {
			t.Errorf("%v is not among %v", want, ans.Trace.Sent)
		}
	}
	if !slices.ContainsFunc(ans.Trace.Received, func(h [2]string) bool { return h[0] == "X-Mirror" && strings.Contains(h[1], "id-1") }) {
		t.Errorf("received are %v", ans.Trace.Received)
	}
}

func TestTraceOfManyHeadersIsBounded(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := range 40 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("é", 700))
		}
	}))
	t.Cleanup(server.Close)
	ans := newSender(t, nil).Send(t.Context(), newCallback(t, server.URL, "x"), nil)
	size := 0
	for _, h := range ans.Trace.Received {
		size += len(h[0]) + len(h[1])
		if len(h[1]) > maxValue {
			t.Errorf("%s has %d bytes", h[0], len(h[1]))
		}
	}
	if !ans.Accepted() || size == 0 || size > maxKept {
		t.Errorf("%d bytes of headers are kept: %v", size, ans.Err)
	}
}

func TestPublicURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://c.example/hook?token=x#y":   "https://c.example/hook",
		"https://user:pass@c.example:8443/?": "https://c.example:8443/",
		"http://[::1%25eth0":                 "",
	} {
		if got := PublicURL(raw); got != want {
			t.Errorf("of %s it is %q, want %q", raw, got, want)
		}
	}
}

func TestOldTracesAreDropped(t *testing.T) {
	t.Parallel()
	rec, begin := new(task.Record), time.Now()
	for i := range 20 {
		at := begin.Add(time.Duration(i) * time.Second)
		rec.AddAttempt(task.Attempt{At: at})
		rec.AddTrace(task.Trace{At: at, RemoteAddr: fmt.Sprint(i)})
	}
	if _, ok := rec.TraceOf(rec.Attempts[0]); ok || len(rec.Traces) != 12 {
		t.Errorf("%d traces are kept", len(rec.Traces))
	}
	if trace, ok := rec.TraceOf(rec.LastAttempt()); !ok || trace.RemoteAddr != "19" {
		t.Errorf("the last trace is %+v", trace)
	}
}
