package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// example is an example of examples/, started on free ports.
type example struct {
	t     *testing.T
	g     *gatewaytest.Gateway
	ports *strings.Replacer
	text  string
}

// examples has the checks for each folder of examples/: the output of its commands, and
// the callbacks in its inbox.
var examples = map[string]func(e *example){
	"inference-queue": func(e *example) {
		answers := e.commands()
		e.want(answers[0], "HTTP/1.1 202 Accepted", `{"task_id":"`)
		e.want(answers[1], "HTTP/1.1 200 OK", "Preference-Applied: wait=10", `{"response":"example response"}`)
		e.wantInbox("/inbox", func(c recorded) bool { return c.Body == "response=example+response" && c.Status == "COMPLETE" })
	},
	"nightly-report": func(e *example) {
		e.want(e.commands()[0], "HTTP/1.1 202 Accepted", `{"task_id":"`)
		e.wantInbox("/inbox/reports", func(c recorded) bool { return c.Body == "report=all+is+well&rows=1200" })
		// One callback of the command, and one of the schedule, which runs at once in
		// this test.
		e.wantInboxCount("/inbox/reports", 2)
	},
	"default-callback": func(e *example) {
		e.want(e.commands()[0], "HTTP/1.1 200 OK", "Beam-Task-Id: ", `{"response":"a short story"}`)
		e.wantInbox("/inbox/answers", func(c recorded) bool {
			return c.header().Get("X-Team") == "blue" && strings.Contains(c.Body, `"data":{"response":"a short story"}`)
		})
	},
	"fan-in": func(e *example) {
		answers := e.commands()
		e.want(answers[0], `{"response":"example response"}`)
		e.want(answers[2], `{"task_id":"`)
		for _, source := range []string{"images", "texts", "videos"} {
			e.wantInbox("/inbox/all", func(c recorded) bool {
				return c.header().Get("X-Source") == source && c.Signed == "verified"
			})
		}
	},
}

// TestExamplesWork starts each example on free ports, runs the commands in its
// comment, and reads its inbox.
func TestExamplesWork(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../examples/*/Caddyfile")
	if err != nil || len(files) != len(examples) {
		t.Fatalf("%d examples exist, %d are tested: %v", len(files), len(examples), err)
	}
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check := examples[name]
			if check == nil {
				t.Fatal("no test checks this example")
			}
			runCaddy(t, t.TempDir(), "fmt", "--diff", file).wantCode(t, 0)
			check(startFile(t, file))
		})
	}
}

// startFile starts a Caddyfile of the docs on free ports.
func startFile(t *testing.T, file string) *example {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e := &example{t: t, g: gatewaytest.New(t, "", ""), text: string(text)}
	port := func() string {
		_, port, err := net.SplitHostPort(freeaddr.New(t))
		if err != nil {
			t.Fatal(err)
		}
		return ":" + port
	}
	gateway := port()
	e.g.Addr = "localhost" + gateway
	e.ports = strings.NewReplacer(":8080", gateway, ":8081", port(), `"30 2 * * *" Europe/Berlin`, "@every 2s")
	head, sites, ok := strings.Cut(e.ports.Replace(e.text), "\n{\n")
	if !ok {
		t.Fatalf("%s has no options", file)
	}
	// Tests run in parallel, and only one could use Caddy's default address.
	if err := os.WriteFile(e.g.File, []byte(head+"\n{\n\tadmin "+e.g.Admin+"\n"+sites), 0o600); err != nil {
		t.Fatal(err)
	}
	e.g.Start()
	return e
}

// commands runs the commands in the file's comment and returns their answers.
func (e *example) commands() (answers []string) {
	e.t.Helper()
	for line := range strings.Lines(e.text) {
		if args, ok := strings.CutPrefix(line, "#\tcurl "); ok {
			answers = append(answers, curlByHand(e.t, shellWords(e.t, e.ports.Replace(args))))
		}
	}
	return answers
}

// want checks that a response contains all parts.
func (e *example) want(answer string, parts ...string) {
	e.t.Helper()
	for _, part := range parts {
		if !strings.Contains(answer, part) {
			e.t.Errorf("%q is not in %s", part, answer)
		}
	}
}

// wantInbox waits until the inbox has a callback for which good returns true.
func (e *example) wantInbox(path string, good func(recorded) bool) {
	e.t.Helper()
	gatewaytest.Eventually(e.t, path, func() error {
		list, err := inboxOf(e.t, e.g, path)
		if err == nil && !slices.ContainsFunc(list, good) {
			err = fmt.Errorf("it has %v", list)
		}
		return err
	})
}

// wantInboxCount waits until the inbox has a number of callbacks.
func (e *example) wantInboxCount(path string, n int) {
	e.t.Helper()
	gatewaytest.Eventually(e.t, path, func() error {
		list, err := inboxOf(e.t, e.g, path)
		if err == nil && len(list) < n {
			err = fmt.Errorf("it has %d callbacks, want %d", len(list), n)
		}
		return err
	})
}

// inboxOf returns the callbacks in an inbox.
func inboxOf(t *testing.T, g *gatewaytest.Gateway, path string) ([]recorded, error) {
	w := walkthrough{t: t, g: g}
	return w.inbox(path)
}

func TestREADMEListsExamples(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range examples {
		if !strings.Contains(string(readme), "examples/"+name+"/Caddyfile") {
			t.Errorf("the README does not name %s", name)
		}
	}
}
