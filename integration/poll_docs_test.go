package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// polledService stands in for a service of docs/poll.md. It answers as the service's public
// documentation says.
type polledService struct {
	api    string // the URL in the page
	path   string // of the request
	key    [2]string
	answer func(w http.ResponseWriter, r *http.Request, poll int) bool // false for an unknown request
	result string
}

const azureOperation = "/documentintelligence/documentModels/prebuilt-read/analyzeResults/3b31320d?api-version=2024-11-30"

var polledServices = map[string]polledService{
	"Azure": {
		api: "https://contoso.cognitiveservices.azure.com", key: [2]string{"Ocp-Apim-Subscription-Key", "the-key"},
		path: "/documentintelligence/documentModels/prebuilt-read:analyze?api-version=2024-11-30",
		answer: func(w http.ResponseWriter, r *http.Request, poll int) bool {
			states := []string{`{"status":"notStarted"}`, `{"status":"running"}`, `{"status":"succeeded","analyzeResult":{"content":"text"}}`}
			switch {
			case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, ":analyze"):
				w.Header().Set("Operation-Location", "https://contoso.cognitiveservices.azure.com"+azureOperation)
				w.WriteHeader(http.StatusAccepted)
			case r.Method == http.MethodGet && r.RequestURI == azureOperation:
				_, _ = fmt.Fprint(w, states[poll])
			default:
				return false
			}
			return true
		},
		result: `{"status":"succeeded","analyzeResult":{"content":"text"}}`,
	},
	"Replicate": {
		api: "https://api.replicate.com", path: "/v1/predictions", key: [2]string{"Authorization", "Bearer the-key"},
		answer: func(w http.ResponseWriter, r *http.Request, poll int) bool {
			const prediction = `{"id":"gm3qorzdhgbf","status":"%s","output":%s,"urls":{"get":"https://api.replicate.com/v1/predictions/gm3qorzdhgbf"}}`
			switch {
			case r.Method == http.MethodPost && r.RequestURI == "/v1/predictions":
				w.WriteHeader(http.StatusCreated)
				_, _ = fmt.Fprintf(w, prediction, "starting", "null")
			case r.Method == http.MethodGet && r.RequestURI == "/v1/predictions/gm3qorzdhgbf" && poll == 0:
				_, _ = fmt.Fprintf(w, prediction, "processing", "null")
			case r.Method == http.MethodGet && r.RequestURI == "/v1/predictions/gm3qorzdhgbf":
				_, _ = fmt.Fprintf(w, prediction, "succeeded", `"a cat"`)
			default:
				return false
			}
			return true
		},
		result: `{"id":"gm3qorzdhgbf","status":"succeeded","output":"a cat","urls":{"get":"https://api.replicate.com/v1/predictions/gm3qorzdhgbf"}}`,
	},
	"OpenAI": {
		api: "https://api.openai.com", path: "/v1/batches", key: [2]string{"Authorization", "Bearer the-key"},
		answer: func(w http.ResponseWriter, r *http.Request, poll int) bool {
			const batch = `{"id":"batch_abc123","object":"batch","status":"%s","output_file_id":%s}`
			switch {
			case r.Method == http.MethodPost && r.RequestURI == "/v1/batches":
				_, _ = fmt.Fprintf(w, batch, "validating", "null")
			case r.Method == http.MethodGet && r.RequestURI == "/v1/batches/batch_abc123" && poll == 0:
				_, _ = fmt.Fprintf(w, batch, "in_progress", "null")
			case r.Method == http.MethodGet && r.RequestURI == "/v1/batches/batch_abc123":
				_, _ = fmt.Fprintf(w, batch, "completed", `"file-cvaTdG"`)
			case r.Method == http.MethodGet && r.RequestURI == "/v1/files/file-cvaTdG/content":
				_, _ = fmt.Fprint(w, `{"custom_id":"1"}`)
			default:
				return false
			}
			return true
		},
		result: `{"custom_id":"1"}`,
	},
}

// intervals replaces the intervals of docs/poll.md by short ones.
var intervals = strings.NewReplacer("interval 2s 30s", "interval 10ms 20ms", "interval 30s 10m", "interval 10ms 20ms")

func TestDocsPollServices(t *testing.T) {
	t.Parallel()
	for name, s := range polledServices {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var site string
			for _, b := range blocks(t, "docs/poll.md") {
				if strings.Contains(b.text, "reverse_proxy "+s.api) {
					_, site, _ = strings.Cut(b.text, "\n")
				}
			}
			if !strings.Contains(site, "interval") || intervals.Replace(site) == site {
				t.Fatalf("the page's example is %q", site)
			}
			var mu sync.Mutex
			polls := 0
			app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if r.Header.Get(s.key[0]) != s.key[1] || !s.answer(w, r, polls) {
					t.Errorf("%s %s %v", r.Method, r.RequestURI, r.Header)
					w.WriteHeader(http.StatusNotFound)
				}
				if r.Method == http.MethodGet {
					polls++
				}
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			site = strings.NewReplacer(s.api, "http://"+app, "https://app.example/hook", rcv.URL).Replace(intervals.Replace(site))
			g := gatewaytest.New(t, gatewaytest.ToLocal, strings.TrimSuffix(strings.TrimSpace(site), "}"))
			g.Env = []string{"AZURE_KEY=the-key", "REPLICATE_API_TOKEN=the-key", "OPENAI_API_KEY=the-key"}
			g.Start()
			resp, text := g.Post(s.path, "{}")
			if resp.StatusCode != http.StatusAccepted {
				t.Fatalf("the queue answered %s %s", resp.Status, text)
			}
			id, path := resp.Header.Get("beam-task-id"), strings.TrimSuffix(resp.Header.Get("Location"), "/"+resp.Header.Get("beam-task-id"))
			if c := rcv.Next(t); c.TaskID() != id || c.Status() != "COMPLETE" {
				t.Errorf("the callback is %v %s", c.Header, c.Body)
			}
			reaches(t, g, path, id, task.Done)
			if _, text := g.Do(http.MethodGet, path+"/"+id+"/result", ""); text != s.result {
				t.Errorf("the result is %s", text)
			}
		})
	}
}
