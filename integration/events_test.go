package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func init() { caddy.RegisterModule(new(execHandler)) }

// execHandler is an event handler that runs a command. Caddy has none, so it takes the
// name and the arguments of the exec plugin.
type execHandler struct {
	Command string   `json:"command"`
	Args    []string `json:"args,omitempty"`
}

func (*execHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.exec", New: func() caddy.Module { return new(execHandler) }}
}

func (h *execHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&h.Command) {
		return d.ArgErr()
	}
	h.Args = d.RemainingArgs()
	return nil
}

// Handle runs the command and waits for it.
func (h *execHandler) Handle(ctx context.Context, _ caddy.Event) error {
	if h.Command == "panic" {
		panic("as asked")
	}
	repl := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	var args []string
	for _, arg := range h.Args {
		args = append(args, repl.ReplaceAll(arg, ""))
	}
	return exec.CommandContext(ctx, h.Command, args...).Run()
}

// listening sets the lines of the `events` option. It can be called again before a
// reload.
func listening(g *gatewaytest.Gateway, lines ...string) {
	const mark = "auto_https off"
	text, err := os.ReadFile(g.File)
	if err != nil {
		g.T.Fatal(err)
	}
	if head, _, found := strings.Cut(string(text), "\tevents {"); found {
		_, rest, _ := strings.Cut(string(text), "#events\n")
		text = []byte(head + rest)
	}
	block := mark + "\n\tevents {\n" + strings.Join(lines, "\n") + "\n\t}\n#events\n"
	if err := os.WriteFile(g.File, []byte(strings.Replace(string(text), mark+"\n", block, 1)), 0o600); err != nil {
		g.T.Fatal(err)
	}
}

// events waits until a file in the gateway's folder has n lines, and returns them.
func events(g *gatewaytest.Gateway, file string, n int) (lines []string) {
	g.T.Helper()
	g.Eventually(fmt.Sprintf("%d events in %s", n, file), func() error {
		text, err := os.ReadFile(filepath.Join(g.Dir, file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return gatewaytest.Fatal(err)
		}
		if lines = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"); len(lines) != n || lines[0] == "" {
			return fmt.Errorf("the file has %q", lines)
		}
		return nil
	})
	return lines
}

// note returns a command line that appends an event to a file.
func note(file string) string {
	return "exec sh -c `echo \"$1\" >>" + file + "` sh \"{event.name} {event.data}\""
}

func TestEventForEachEndedDelivery(t *testing.T) {
	t.Parallel()
	rcv := failsFirst(t)
	gone := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	g := gatewaytest.New(t, gatewaytest.Delivering("retry 1s"),
		"callback\ntask_queue /q q {\nreverse_proxy "+app+"\n}\nrespond hunter2-body")
	listening(g, "on callback_delivered "+note("delivered"), "on callback_dead exec panic", "on callback_dead "+note("dead"))
	g.Start()

	id := g.Task(rcv.URL + "/hook?token=hunter2")
	want := fmt.Sprintf("callback_delivered map[attempts:2 callback_host:%s last_error: last_status_code:200 queue: status:COMPLETE task_id:%s upstream_status:200]",
		hostOf(t, rcv.URL), id)
	if got := events(g, "delivered", 1)[0]; got != want {
		t.Errorf("the event is %s, want %s", got, want)
	}
	g.Post("/q", fmt.Sprintf(`{"callback_url":%q}`, gone.URL+"/hook?token=hunter2"))
	g.Eventually("the handler panics", func() error {
		if !strings.Contains(g.Log.String(), "event handler panicked") {
			return errNotThere
		}
		return nil
	})
	// The failed handler affects only its event.
	listening(g, "on callback_dead "+note("dead"))
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	resp, _ := g.Post("/q", fmt.Sprintf(`{"callback_url":%q}`, gone.URL+"/hook?token=hunter2"))
	want = fmt.Sprintf("callback_dead map[attempts:1 callback_host:%s last_error: last_status_code:410 queue:q status:FAILED task_id:%s upstream_status:418]",
		hostOf(t, gone.URL), resp.Header.Get("beam-task-id"))
	if got := events(g, "dead", 1)[0]; got != want {
		t.Errorf("the event is %s, want %s", got, want)
	}
}

func TestSlowEventHandlerDelaysNoCallback(t *testing.T) {
	t.Parallel()
	const tasks = 20
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	listening(g, "on callback_delivered exec sh -c `until [ -e go ]; do sleep 0.05; done; echo x >>delivered`")
	g.Start()
	for range tasks {
		g.Task(rcv.URL)
	}
	for range tasks {
		rcv.Next(t)
	}
	g.Attempted("", tasks)
	if _, err := os.Stat(filepath.Join(g.Dir, "delivered")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an event was handled before: %v", err)
	}
	if err := os.WriteFile(filepath.Join(g.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	events(g, "delivered", tasks)
}

func TestEventsSurviveReloadAndExit(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) { <-answer })
	g := gatewaytest.New(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	listening(g, "on callback_delivered "+note("before"))
	g.Start()
	inFlight := g.Task(rcv.URL)
	rcv.Next(t)

	// The old generation makes the attempt, and the new one emits the event.
	listening(g, "on callback_delivered exec sh -c `echo x >begun; until [ -e go ]; do sleep 0.05; done`", "on callback_delivered "+note("after"))
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	answer <- struct{}{}
	events(g, "begun", 1)

	// A hanging handler does not delay a reload for long.
	listening(g, "on callback_delivered "+note("last"))
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	second := g.Task(rcv.URL)
	rcv.Next(t)
	answer <- struct{}{}
	if got := events(g, "last", 1)[0]; !strings.Contains(got, second) {
		t.Errorf("the event is %s", got)
	}

	// A process that shuts down emits events for its last deliveries.
	third := g.Task(rcv.URL)
	rcv.Next(t)
	exited := make(chan int)
	go func() { exited <- g.Stop() }()
	g.Eventually("the gateway exits", func() error {
		if !strings.Contains(g.Log.String(), "exiting") {
			return errNotThere
		}
		return nil
	})
	answer <- struct{}{}
	if code := <-exited; code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	if got := events(g, "last", 2)[1]; !strings.Contains(got, third) {
		t.Errorf("the event is %s", got)
	}
	for _, line := range []string{inFlight, second, third} {
		if _, err := os.Stat(filepath.Join(g.Dir, "before")); err == nil {
			t.Fatalf("a stopped generation got the event %s", line)
		}
	}
}
