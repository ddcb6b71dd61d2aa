package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// plantedKey is a secret that contains a word to search for.
var plantedKey = "whsec_" + base64.StdEncoding.EncodeToString([]byte("planted-signing-key-of-the-gateway"))

// planted are words that must appear only in their own places, named at each.
var planted = []string{
	strings.TrimPrefix(plantedKey, "whsec_"), // in the options
	"planted-signing-key",                    // the same, decoded
	"planted-callback-header",                // in the option header: for receivers
	"planted-own-query",                      // in the operator's URL: for that receiver
	"planted-query",                          // in a client's URL: for that receiver
	"planted-user", "planted-password",       // in a client's URL: for nobody, because it is refused
	"planted-authorization", "planted-cookie", // in a request: for the app
	"planted-request-body",  // for the app, and for receivers if the app echoes it
	"planted-response-body", // for the client and the receiver
	"planted-set-cookie",    // in the app's response: for the client
	"planted-nats-password", // in the options
	"planted-credentials",   // in a file that the options name
}

// leaks returns the planted words in a text.
func leaks(text string) (found []string) {
	for _, word := range planted {
		if strings.Contains(text, word) {
			found = append(found, word)
		}
	}
	return found
}

// wantNoSecrets checks that a text contains no planted word.
func wantNoSecrets(t *testing.T, where, text string) {
	t.Helper()
	for _, word := range leaks(text) {
		at := strings.Index(text, word)
		t.Errorf("%s has %s: …%s…", where, word, text[max(0, at-200):min(len(text), at+100)])
	}
}

// plant sends a request with all secrets of a client.
func plant(g *gatewaytest.Gateway, path, callbackURL string) (*http.Response, string) {
	body, err := json.Marshal(map[string]string{"prompt": "planted-request-body", "callback_url": callbackURL})
	if err != nil {
		g.T.Fatal(err)
	}
	return g.Do(http.MethodPost, path, string(body), "Content-Type", "application/json",
		"Authorization", "Bearer planted-authorization", "Cookie", "session=planted-cookie")
}

// TestSecretsAreNeverShown plants secrets and covers all ways in which a request can end,
// at the level DEBUG. It leaves out: headers that Caddy itself logs at DEBUG, which are
// all except Authorization, Cookie, Set-Cookie and Proxy-Authorization; Caddy's /config/,
// which is the configuration; requests to a callback_inbox, which shows them; and
// <path>/<id>/result, which is the response.
func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // on an error, the gateway has cut the body
		switch {
		case strings.HasSuffix(r.URL.Path, "/slow"):
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/broken"):
			panic(http.ErrAbortHandler)
		case strings.HasSuffix(r.URL.Path, "/failing"):
			w.WriteHeader(http.StatusBadGateway)
		}
		w.Header().Set("Set-Cookie", "id=planted-set-cookie")
		_, _ = fmt.Fprintf(w, "planted-response-body %s", body)
	})
	answers := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone":
			w.WriteHeader(http.StatusGone)
		case "/again":
			if r.Header.Get("callback-attempt") == "1" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case "/never":
			w.WriteHeader(http.StatusInternalServerError)
		case "/mirror": // echoes the request without the body
			w.Header().Set("X-Mirror", r.URL.String()+" "+r.Header.Get("X-Token"))
			w.Header().Set("Set-Cookie", "id=planted-set-cookie")
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprint(w, r.URL, r.Header)
		}
	})
	echo := echoing(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 50ms", "timeout 5s", "secret "+plantedKey)+
		"\nqueue q {\nattempts 2 502\n}", fmt.Sprintf(`
	task_status /status
	handle /dashboard* {
		task_dashboard
	}
	handle /own* {
		callback %[2]s/hook?token=planted-own-query {
			header X-Token planted-callback-header
		}
		reverse_proxy %[1]s
	}
	handle /q* {
		task_queue q {
			callback {
				timeout 2s
			}
			reverse_proxy %[1]s
		}
	}
	handle {
		callback {
			timeout 1s
			header X-Token planted-callback-header
		}
		reverse_proxy %[1]s
	}`, app, answers.URL))

	ids := make(map[string]string)
	task := func(name, path, callbackURL string) {
		resp, _ := plant(g, path, callbackURL)
		if ids[name] = resp.Header.Get("beam-task-id"); ids[name] == "" {
			t.Errorf("%s is no task: %s", name, resp.Status)
		}
	}
	query := "?token=planted-query"
	task("success", "/", answers.URL+"/hook"+query)
	task("retry", "/", answers.URL+"/again"+query)
	task("gone", "/", answers.URL+"/gone"+query)
	task("given up", "/", answers.URL+"/never"+query)
	task("sent back", "/", answers.URL+"/mirror"+query)
	task("no HTTP", "/", echo+"/echo"+query)
	task("nobody there", "/", "http://"+freeaddr.New(t)+"/hook"+query)
	task("refused when it is called", "/", "http://refused.invalid/hook"+query)
	task("own", "/own", "")
	task("upstream fails", "/failing", answers.URL+"/hook"+query)
	task("upstream breaks off", "/broken", answers.URL+"/hook"+query)
	task("timeout", "/slow", answers.URL+"/hook"+query)
	task("queue", "/q", answers.URL+"/hook"+query)
	task("queue, again and again", "/q/failing", answers.URL+"/hook"+query)
	task("queue, timeout", "/q/slow", answers.URL+"/hook"+query)

	for _, refused := range []string{
		"http://planted-user:planted-password@127.0.0.1/", "ftp://c.example/" + query, "http:///hook" + query,
		"http://c.example:99999/hook" + query, "http://10.0.0.1\u0000/hook" + query, "http://[::1%25eth0]/hook" + query,
		"http://c.example/" + strings.Repeat("x", 3000) + query, "http://c.example/%zz" + query,
	} {
		resp, text := plant(g, "/", refused)
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%.60s got %s", refused, resp.Status)
		}
		wantNoSecrets(t, "the answer to a refused request", text)
	}
	_, text := g.Do(http.MethodPost, "/q", `{"prompt":"planted-request-body"}`, "Content-Type", "application/json", "Authorization", "Bearer planted-authorization")
	wantNoSecrets(t, "the answer of a queue", text)

	for name, id := range ids {
		g.Eventually(name, func() error {
			all := g.Attempts(id)
			if len(all) == 0 || all[len(all)-1].State == "retry" {
				return fmt.Errorf("%d attempts are logged", len(all))
			}
			return nil
		})
	}
	lookAtWhatOperatorsSee(t, g, ids)
	if err := g.Reload(); err != nil {
		t.Error(err)
	}
	if code := g.Stop(); code != 0 {
		t.Errorf("it exits with %d", code)
	}
	wantNoSecrets(t, "the log", g.Log.String())
	for _, want := range []string{"delivery attempted", "upstream roundtrip", `"level":"debug"`} {
		if !strings.Contains(g.Log.String(), want) {
			t.Errorf("the log has no %q: it is not that of all paths", want)
		}
	}
}

// lookAtWhatOperatorsSee reads everything that operators and polling clients can read.
func lookAtWhatOperatorsSee(t *testing.T, g *gatewaytest.Gateway, ids map[string]string) {
	t.Helper()
	admin := "http://" + g.Admin
	urls := []string{
		admin + "/metrics", g.URL("/q/" + ids["queue"]), g.URL("/q/" + ids["queue, timeout"]),
		g.URL("/q/" + ids["success"]), // in no queue: not found
	}
	for _, id := range ids {
		urls = append(urls, g.URL("/status/"+id))
	}
	for _, api := range []string{admin + "/callback", g.URL("/dashboard/api")} {
		for _, path := range []string{"/tasks", "/tasks?state=dead", "/overview", "/queues", "/hosts", "/schedules", "/tasks?after=planted"} {
			urls = append(urls, api+path)
		}
		for _, id := range ids {
			urls = append(urls, api+"/tasks/"+id, api+"/tasks/"+id+"/attempts")
			_, text, err := gatewaytest.Send(http.MethodGet, api+"/tasks/"+id+"/callback", http.NoBody)
			var callback struct {
				URL     string
				Headers [][2]string
			}
			if err != nil || json.Unmarshal([]byte(text), &callback) != nil || len(callback.Headers) == 0 {
				t.Errorf("the callback of %s is %s: %v", id, text, err)
			}
			wantNoSecrets(t, "a callback's URL and headers", fmt.Sprint(callback))
		}
	}
	found := 0
	for _, url := range urls {
		resp, text, err := gatewaytest.Send(http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		wantNoSecrets(t, url, text)
		if resp.StatusCode == http.StatusOK && strings.Contains(text, "callback") {
			found++
		}
	}
	if found < 2*len(ids) {
		t.Errorf("only %d of %d answers are about callbacks", found, len(urls))
	}
}

// echoing is a receiver that is not an HTTP server and echoes what it receives. Go quotes
// it in the error.
func echoing(t *testing.T) string {
	t.Helper()
	return gatewaytest.NewPeer(t, func(conn net.Conn) {
		got := make([]byte, 4096)
		n, _ := conn.Read(got)     // one read is enough
		_, _ = conn.Write(got[:n]) // the sender may have disconnected
	})
}

// TestConfigurationErrorsShowNoSecret starts and reloads with secrets that cannot be
// used.
func TestConfigurationErrorsShowNoSecret(t *testing.T) {
	t.Parallel()
	credentials := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(credentials, []byte("planted-credentials\n-----BEGIN USER NKEY SEED-----\nplanted-credentials\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unreachable := freeaddr.New(t)
	for name, options := range map[string]string{
		"a key with a wrong prefix": gatewaytest.Delivering("secret planted-signing-key"),
		"a key that is not base64":  gatewaytest.Delivering("secret whsec_planted-signing-key!"),
		"a key that is too short":   gatewaytest.Delivering("secret whsec_" + plantedKey[6:18]),
		"a good and a bad key":      gatewaytest.Delivering("secret " + plantedKey + " whsk_" + plantedKey[6:]),
		"unreachable cluster":       "engine nats nats://gateway:planted-nats-password@" + unreachable,
		"a URL with a wrong scheme": "engine nats http://gateway:planted-nats-password@" + unreachable,
		"an invalid URL":            "engine nats nats://gateway:planted-nats-password@[::1",
		"unreadable credentials":    "engine nats nats://" + unreachable + " {\ncredentials " + credentials + "\n}",
		"credentials is a folder":   "engine nats nats://" + unreachable + " {\ncredentials " + filepath.Dir(credentials) + "\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+plantedKey), gatewaytest.ExampleSite(t))
			g.Configure(options, gatewaytest.ExampleSite(t))
			err := g.Reload()
			if err != nil {
				wantNoSecrets(t, "the answer to the reload", err.Error())
			}
			c := runCaddy(t, t.TempDir(), "validate", "--config", g.File, "--adapter", "caddyfile")
			wantNoSecrets(t, "what validate says", c.stdout+c.stderr)
			// An unavailable engine is not an error of the configuration: it is logged.
			// In both cases clients get an error.
			resp, text := g.Post("/", `{"callback_url":"https://callbacks.example/hook?token=planted-query"}`)
			if err == nil && resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("nothing is wrong with it: %s", resp.Status)
			}
			wantNoSecrets(t, "the answer to a request", text)
			g.Stop()
			wantNoSecrets(t, "the log", g.Log.String())
		})
	}
}
