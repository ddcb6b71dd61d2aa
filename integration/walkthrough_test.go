package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// The README's commands that get the code, and start the example and a run.
const (
	cloneCommand = "git clone https://github.com/caddy-callback/caddy-callback && cd caddy-callback"
	startExample = "go run ./cmd/caddy run --config Caddyfile.example"
	startRun     = "go run ./cmd/caddy callback run "
)

// walkthrough follows the README.
type walkthrough struct {
	t    *testing.T
	g    *gatewaytest.Gateway
	curl func(t *testing.T, args []string) string

	ports *strings.Replacer // replaces the example's ports by free ones
	last  func() string     // runs the last command again, because its output can be too early
}

// TestREADMEWalkthrough runs the README's commands in order on free ports and compares
// their output with the README's. It uses net/http, and curl too if it is installed.
func TestREADMEWalkthrough(t *testing.T) {
	t.Parallel()
	clients := map[string]func(*testing.T, []string) string{"net/http": curlByHand}
	if path, err := exec.LookPath("curl"); err == nil {
		clients["curl"] = func(t *testing.T, args []string) string { return curl(t, path, args) }
	}
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &walkthrough{t: t, curl: client}
			compared := 0
			for _, b := range blocks(t, "README.md") {
				switch b.lang {
				case "sh":
					w.run(b)
				case "http", "json":
					w.compare(b)
					compared++
				}
			}
			if compared < 4 {
				t.Errorf("the README shows only %d outputs", compared)
			}
			w.wantInbox("/inbox/slow", "COMPLETE", "response=slow+response")
			w.wantInbox("/inbox/fail", "FAILED", "detail=out+of+memory")
			w.wantInbox("/inbox/train", "COMPLETE", "response=example+response")
			w.wantInbox("/inbox/run", "COMPLETE", "response=example+response")
		})
	}
}

// run runs a command of the README.
func (w *walkthrough) run(b block) {
	w.t.Helper()
	command := strings.TrimSpace(b.text)
	args, isCurl := strings.CutPrefix(command, "curl ")
	switch {
	case command == startExample:
		w.start(strings.Fields(strings.TrimPrefix(command, "go run ./cmd/caddy ")))
	case isCurl:
		words := shellWords(w.t, w.ports.Replace(args))
		out := w.curl(w.t, words)
		first := true
		w.last = func() string {
			if !first {
				out = w.curl(w.t, words)
			}
			first = false
			return out
		}
	case strings.HasPrefix(command, startRun):
		out := runTask(w.t, shellWords(w.t, w.ports.Replace(strings.TrimPrefix(command, startRun)))...)
		out.wantCode(w.t, 0)
		w.last = func() string { return out.stdout }
	case command == cloneCommand: // the tests run in a checkout
	case strings.HasPrefix(command, "caddy "): // see TestDocsCommandsAreTested
	default:
		w.t.Fatalf("%v: nothing runs it", b)
	}
}

// start starts the example on free ports.
func (w *walkthrough) start(args []string) {
	w.t.Helper()
	w.g = gatewaytest.New(w.t, "", "")
	port := func() string {
		_, port, err := net.SplitHostPort(freeaddr.New(w.t))
		if err != nil {
			w.t.Fatal(err)
		}
		return ":" + port
	}
	gateway := port()
	w.g.Addr = "localhost" + gateway
	w.ports = strings.NewReplacer(":8080", gateway, ":8081", port())
	text, err := os.ReadFile(filepath.Join("..", "Caddyfile.example"))
	if err != nil {
		w.t.Fatal(err)
	}
	options, sites, ok := strings.Cut(string(text), "\n{\n")
	if !ok {
		w.t.Fatal("Caddyfile.example has no options")
	}
	// Tests run in parallel, and only one can use Caddy's default address.
	example := options + "\n{\n\tadmin " + w.g.Admin + "\n" + w.ports.Replace(sites)
	if err := os.WriteFile(filepath.Join(w.g.Dir, "Caddyfile.example"), []byte(example), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.g.Run(args...)
	w.g.Await()
}

// compare compares the output in the README with the actual one.
func (w *walkthrough) compare(b block) {
	w.t.Helper()
	gatewaytest.Eventually(w.t, b.String(), func() error {
		switch {
		case b.lang == "json":
			return w.compareJSON(b)
		case strings.HasPrefix(b.text, "HTTP/1.1 "):
			return w.compareResponse(b)
		default:
			return w.compareCallback(b)
		}
	})
}

// compareJSON checks that the output of the last command contains everything in the
// README's. It may contain more.
func (w *walkthrough) compareJSON(b block) error {
	var want, got any
	if err := json.Unmarshal([]byte(b.text), &want); err != nil {
		return gatewaytest.Fatal(err)
	}
	out := w.last()
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return gatewaytest.Fatal(fmt.Errorf("%w in %s", err, out))
	}
	if err := within(want, got); err != nil {
		return fmt.Errorf("%w in %s", err, out)
	}
	return nil
}

// compareResponse compares status, headers and body.
func (w *walkthrough) compareResponse(b block) error {
	want, wantBody, err := parseResponse(b.text)
	if err != nil {
		return gatewaytest.Fatal(err)
	}
	got, body, err := parseResponse(w.last())
	if err != nil {
		return gatewaytest.Fatal(err)
	}
	if got.Status != want.Status || strings.TrimSpace(body) != strings.TrimSpace(wantBody) {
		return fmt.Errorf("%s %q", got.Status, body)
	}
	return sameHeaders(want.Header, got.Header)
}

func parseResponse(text string) (*http.Response, string, error) {
	head, body, _ := strings.Cut(strings.ReplaceAll(text, "\r\n", "\n"), "\n\n")
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head+"\n\n")), nil)
	return resp, body, err
}

// compareCallback checks that the inbox has the README's callback.
func (w *walkthrough) compareCallback(b block) error {
	head, wantBody, _ := strings.Cut(b.text, "\n\n")
	request, head, _ := strings.Cut(head, "\n")
	want, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request + "\r\nHost: x\r\n" + head + "\r\n\r\n")))
	if err != nil {
		return gatewaytest.Fatal(err)
	}
	list, err := w.inbox(want.URL.Path)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Path == want.URL.Path && c.Method == want.Method && c.Body == strings.TrimSpace(wantBody) {
			return sameHeaders(want.Header, c.header())
		}
	}
	return fmt.Errorf("not among %v", list)
}

// wantInbox checks that the inbox has exactly one callback, as in the README.
func (w *walkthrough) wantInbox(path, status, body string) {
	w.t.Helper()
	gatewaytest.Eventually(w.t, path, func() error {
		list, err := w.inbox(path)
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].Status != status || list[0].Body != body {
			return fmt.Errorf("the inbox has %v", list)
		}
		return nil
	})
}

// recorded is a callback in the inbox.
type recorded struct {
	Method  string `json:"method"`
	Path    string `json:"path"`
	TaskID  string `json:"task_id"`
	Status  string `json:"status"`
	Signed  string `json:"signature"`
	Body    string `json:"body"`
	Headers []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"headers"`
}

func (c recorded) header() http.Header {
	h := make(http.Header)
	for _, field := range c.Headers {
		h.Add(field.Name, field.Value)
	}
	return h
}

func (w *walkthrough) inbox(path string) ([]recorded, error) {
	_, text := w.g.Do(http.MethodGet, path, "", "Accept", "application/json")
	var list struct {
		Callbacks []recorded `json:"callbacks"`
	}
	return list.Callbacks, json.Unmarshal([]byte(text), &list)
}

// uuidPattern matches task IDs, which differ in each run.
var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// same reports whether two values are equal or both are task IDs.
func same(want, got any) bool {
	w, ok := want.(string)
	g, ok2 := got.(string)
	return reflect.DeepEqual(want, got) || ok && ok2 && uuidPattern.MatchString(w) && uuidPattern.MatchString(g)
}

func sameHeaders(want, got http.Header) error {
	for name := range want {
		if !same(want.Get(name), got.Get(name)) {
			return fmt.Errorf("%s is %q", name, got.Get(name))
		}
	}
	return nil
}

// within returns an error unless got contains want. Objects may have more members, and
// lists more elements at the end.
func within(want, got any) error {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			return errors.New("not an object")
		}
		for name, value := range want {
			if err := within(value, got[name]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	case []any:
		got, ok := got.([]any)
		if !ok || len(got) < len(want) {
			return errors.New("not a list, or a shorter one")
		}
		for i, value := range want {
			if err := within(value, got[i]); err != nil {
				return fmt.Errorf("%d: %w", i, err)
			}
		}
	default:
		if !same(want, got) {
			return fmt.Errorf("%v is not %v", got, want)
		}
	}
	return nil
}

// shellWords splits a command like a shell that knows only single quotes.
func shellWords(t *testing.T, command string) (words []string) {
	t.Helper()
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	if strings.ContainsAny(strings.Join(strings.Fields(command), " "), "\"$\\`") && strings.Count(command, "'")%2 == 1 {
		t.Fatalf("too difficult: %s", command)
	}
	return words
}

// curl runs curl. It accepts a timeout that the command itself sets.
func curl(t *testing.T, path string, args []string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path, args...).Output()
	const timedOut = 28
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != timedOut) {
		t.Fatalf("curl %q: %v", args, err)
	}
	return string(out)
}

// curlByHand implements the curl arguments that the README uses.
func curlByHand(t *testing.T, args []string) string {
	t.Helper()
	method, url, body, include := http.MethodGet, "", "", false
	client := http.Client{Timeout: gatewaytest.Patience}
	header := make(http.Header)
	for len(args) > 0 {
		option := args[0]
		args = args[1:]
		value := func() string {
			v := args[0]
			args = args[1:]
			return v
		}
		switch option {
		case "-i":
			include = true
		case "-H":
			name, v, _ := strings.Cut(value(), ": ")
			header.Add(name, v)
		case "-d":
			method, body = http.MethodPost, value()
			if header.Get("Content-Type") == "" {
				header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
		case "--json":
			method, body = http.MethodPost, value()
			header.Set("Content-Type", "application/json")
			header.Set("Accept", "application/json")
		case "--max-time":
			seconds, err := time.ParseDuration(value() + "s")
			if err != nil {
				t.Fatal(err)
			}
			client.Timeout = seconds
		default:
			url = option
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := client.Do(req)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out strings.Builder
	if include {
		fmt.Fprintf(&out, "%s %s\r\n", resp.Proto, resp.Status)
		if err := resp.Header.Write(&out); err != nil {
			t.Fatal(err)
		}
		out.WriteString("\r\n")
	}
	if _, err := io.Copy(&out, resp.Body); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
