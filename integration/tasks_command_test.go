package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// onTasks runs a command about the tasks of a gateway.
func onTasks(t *testing.T, g *gatewaytest.Gateway, args ...string) command {
	t.Helper()
	return runCaddy(t, t.TempDir(), append([]string{"callback"}, append(args, "--address", g.Admin)...)...)
}

func TestTasksListsTableAndJSON(t *testing.T) {
	t.Parallel()
	rcv, _ := failing(t, http.StatusGone)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, gatewaytest.ExampleSite(t))
	if c := onTasks(t, g, "tasks"); c.code != 0 || c.stdout != "" || c.stderr != "no tasks match\n" {
		t.Errorf("without tasks it prints %q %q", c.stdout, c.stderr)
	}
	a := adminAPI(t, g)
	var ids []string
	for range 3 {
		ids = append(ids, g.Task(rcv.URL))
		a.inState(ids[len(ids)-1], task.Dead)
	}
	slices.Reverse(ids)
	c := onTasks(t, g, "tasks", "--state", "dead,done")
	c.wantCode(t, 0)
	lines := strings.Split(strings.TrimSpace(c.stdout), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "TASK ") {
		t.Fatalf("it is %q", c.stdout)
	}
	column := strings.Index(lines[0], "STATE")
	for i, id := range ids {
		if line := lines[i+1]; !strings.HasPrefix(line, id) || !strings.HasPrefix(line[column:], "dead") {
			t.Errorf("line %d is %q", i+1, line)
		}
	}
	c = onTasks(t, g, "tasks", "--json", "--all", "--status", "complete", "--newer-than", "1d", "--host", "127.0.0.1")
	c.wantCode(t, 0)
	var listed []string
	for line := range strings.Lines(c.stdout) {
		var doc task.Task
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		listed = append(listed, doc.ID)
	}
	if !slices.Equal(listed, ids) {
		t.Errorf("as JSON it lists %v", listed)
	}
	c = onTasks(t, g, "tasks", "--limit", "2")
	c.wantCode(t, 0)
	if strings.Count(c.stdout, "\n") != 3 || !strings.Contains(c.stderr, "there are more") {
		t.Errorf("with two tasks it prints %q %q", c.stdout, c.stderr)
	}
	if c := onTasks(t, g, "tasks", "--older-than", "1h"); c.stderr != "no tasks match\n" {
		t.Errorf("for old tasks it prints %q %q", c.stdout, c.stderr)
	}
}

func TestTaskOutputEscapesControlCharacters(t *testing.T) {
	t.Parallel()
	rcv, _ := failing(t, http.StatusGone)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	adminAPI(t, g).inState(id, task.Dead)
	c := onTasks(t, g, "show", id)
	c.wantCode(t, 0)
	for _, want := range []string{id, "dead", "COMPLETE", "accepted", "verdict", "attempt 1", "410", "<script>alert(1)</script>", `\u202e`} {
		if !strings.Contains(c.stdout, want) {
			t.Errorf("%q is not in %q", want, c.stdout)
		}
	}
	if strings.ContainsAny(c.stdout, "\x1b\u202e") {
		t.Errorf("it prints %q", c.stdout)
	}
	c = onTasks(t, g, "show", id, "--json")
	c.wantCode(t, 0)
	var doc map[string]any
	if err := json.Unmarshal([]byte(c.stdout), &doc); err != nil || doc["task_id"] != id || doc["timeline"] == nil {
		t.Errorf("as JSON it is %s: %v", c.stdout, err)
	}
}

func TestTasksCommandRedeliversCancelsAndDeletes(t *testing.T) {
	t.Parallel()
	rcv, answer := failing(t, http.StatusGone)
	hold := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/q" {
			<-hold
		}
		_, _ = io.WriteString(w, "done")
	})
	t.Cleanup(func() { close(hold) })
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nkeep_results off\nqueue q {\nworkers 1\n}",
		"callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}\nreverse_proxy "+app)
	a := adminAPI(t, g)
	dead := []string{g.Task(rcv.URL), g.Task(rcv.URL), g.Task(rcv.URL)}
	for _, id := range dead {
		a.inState(id, task.Dead)
	}
	answer.Store(http.StatusOK)

	c := onTasks(t, g, "redeliver", dead[0], "nonsense")
	c.wantCode(t, 1)
	if !strings.Contains(c.stdout, dead[0]+" is redelivered") || !strings.Contains(c.stderr, "nonsense: no such task") {
		t.Errorf("the output is %q %q", c.stdout, c.stderr)
	}
	a.inState(dead[0], task.Done)
	c = onTasks(t, g, "redeliver", dead[0])
	c.wantCode(t, 1)
	if !strings.Contains(c.stderr, "not kept") {
		t.Errorf("the output is %q", c.stderr)
	}
	c = onTasks(t, g, "redeliver", "--all", "--json")
	c.wantCode(t, 0)
	var o outcome
	if err := json.Unmarshal([]byte(c.stdout), &o); err != nil || o.Changed != 2 {
		t.Errorf("the output is %q: %v", c.stdout, err)
	}
	for _, id := range dead {
		a.inState(id, task.Done)
	}

	for range 5 {
		accepted(t, g, "/q", "{}")
	}
	c = onTasks(t, g, "cancel", "--queue", "q", "--dry-run")
	c.wantCode(t, 0)
	if c.stdout != "5 tasks would be changed; this is a dry run\n" {
		t.Errorf("the output is %q", c.stdout)
	}
	c = onTasks(t, g, "cancel", "--queue", "q")
	c.wantCode(t, 2)
	if !strings.Contains(c.stderr, "--yes is missing") {
		t.Errorf("it does not ask: %q %q", c.stdout, c.stderr)
	}
	c = onTasks(t, g, "cancel", "--queue", "q", "--yes")
	c.wantCode(t, 0)
	if !strings.Contains(c.stdout, "changed 5 of 5 matching tasks") {
		t.Errorf("the output is %q", c.stdout)
	}
	gatewaytest.Eventually(t, "all have ended", func() error {
		if got := a.all("state=done"); len(got) != 8 {
			return fmt.Errorf("%d have", len(got))
		}
		return nil
	})
	onTasks(t, g, "delete", dead[1], "--yes").wantCode(t, 0)
	onTasks(t, g, "delete", "--state", "done", "--queue", "q", "--yes").wantCode(t, 0)
	if got := a.all(""); len(got) != 2 || !slices.Contains(got, dead[0]) || !slices.Contains(got, dead[2]) {
		t.Errorf("left are %v", got)
	}
}

func TestTasksUsageErrors(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "callback\nrespond ok")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"tasks", "--state", "dying"}, 2, `"dying" is not one of queued`},
		{[]string{"tasks", "--limit", "0"}, 2, "--limit"},
		{[]string{"tasks", "--older-than", "soon"}, 2, `--older-than: "soon" is not a duration`},
		{[]string{"tasks", "spare"}, 2, `"spare"`},
		{[]string{"tasks", "--nothing"}, 2, "--nothing"},
		{[]string{"taks"}, 2, `unknown command "taks"`},
		{[]string{"--nothing"}, 2, "--nothing"},
		{[]string{"show"}, 2, "one task"},
		{[]string{"show", "nonsense"}, 1, "no such task"},
		{[]string{"show", "../tasks"}, 1, "no such task"},
		{[]string{"show", ".."}, 1, "at least 4 characters"},
		{[]string{"show", "a/b?c"}, 1, "no such task"},
		{[]string{"redeliver"}, 2, "--all"},
		{[]string{"redeliver", "x", "--all"}, 2, "not both"},
		{[]string{"cancel", "--state", "dead", "--yes"}, 2, "dead"},
		{[]string{"delete", "--queue", ""}, 2, "--all"},
		{[]string{"delete", "--all"}, 2, "--yes is missing"},
		{[]string{"pause"}, 2, "--queue or --host is missing"},
		{[]string{"schedules", "run"}, 2, "the ID of one schedule"},
	} {
		got := onTasks(t, g, c.args...)
		if got.code != c.code || !strings.Contains(got.stderr, c.want) || got.stdout != "" {
			t.Errorf("%v: %d %q %q", c.args, got.code, got.stdout, got.stderr)
		}
	}
	gone := runCaddy(t, t.TempDir(), "callback", "tasks", "--address", freeaddr.New(t))
	if gone.code != 1 || !strings.Contains(gone.stderr, "--address") {
		t.Errorf("without a gateway: exit code %d, %q", gone.code, gone.stderr)
	}
	// A wrong address, where a server responds with 200 to everything.
	other := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	for _, args := range [][]string{{"tasks"}, {"tasks", "--json"}, {"show", "x"}, {"show", "x", "--json"}, {"redeliver", "x"}, {"redeliver", "--all"}} {
		got := runCaddy(t, t.TempDir(), append(append([]string{"callback"}, args...), "--address", other)...)
		if got.code != 1 || !strings.Contains(got.stderr, "not a gateway's") || got.stdout != "" {
			t.Errorf("%v of another server: exit code %d, %q %q", args, got.code, got.stdout, got.stderr)
		}
	}
	// The address may be a URL, or come from the gateway's own configuration.
	runCaddy(t, t.TempDir(), "callback", "tasks", "--address", "http://"+g.Admin+"/").wantCode(t, 0)
	runCaddy(t, t.TempDir(), "callback", "tasks", "--config", g.File, "--adapter", "caddyfile").wantCode(t, 0)
}

func TestShellCompletion(t *testing.T) {
	t.Parallel()
	rcv, _ := failing(t, http.StatusGone)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\ntask_queue /q* train {\nrespond ok\n}\nrespond ok")
	id := g.Task(rcv.URL)
	adminAPI(t, g).inState(id, task.Dead)
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"tasks", "--state", ""}, []string{"queued", "running", "delivering", "done", "dead"}},
		{[]string{"cancel", "--state", ""}, []string{"queued", "running"}},
		{[]string{"tasks", "--status", ""}, []string{"COMPLETE", "FAILED", "TIMEOUT"}},
		{[]string{"tasks", "--address", g.Admin, "--queue", ""}, []string{"train"}},
		{[]string{"show", "--address", g.Admin, ""}, []string{id}},
		{[]string{"redeliver", "--address", g.Admin, ""}, []string{id}},
		{[]string{""}, []string{"cancel", "listen", "migrate", "delete", "hosts", "pause", "queues", "redeliver", "result", "resume", "retry", "schedules", "stop", "repair", "run", "show", "tasks"}},
	} {
		got := runCaddy(t, t.TempDir(), append([]string{"__complete", "callback"}, c.args...)...)
		got.wantCode(t, 0)
		var words []string
		for line := range strings.Lines(got.stdout) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			words = append(words, word)
		}
		for _, want := range c.want {
			if !slices.Contains(words, want) {
				t.Errorf("%v: %s is not in %v", c.args, want, words)
			}
		}
	}
}

// listener is a running `caddy callback listen`.
type listener struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   io.Closer      // standard output
	lines *bufio.Scanner // of standard output
	url   string
}

func listen(t *testing.T, args ...string) *listener {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr := freeaddr.New(t)
	cmd := exec.CommandContext(t.Context(), self, append([]string{"callback", "listen", "--address", addr}, args...)...)
	cmd.Env = append(os.Environ(), gatewaytest.AsCaddy+"=1", "HOME="+t.TempDir())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	if !lines.Scan() || !strings.Contains(lines.Text(), addr) {
		t.Fatalf("the output is %q", lines.Text())
	}
	return &listener{t, cmd, stdout, bufio.NewScanner(stdout), "http://" + addr + "/hook"}
}

// until reads lines up to one that contains the text.
func (l *listener) until(text string) (all string) {
	l.t.Helper()
	for l.lines.Scan() {
		all += l.lines.Text() + "\n"
		if strings.Contains(l.lines.Text(), text) {
			return all
		}
	}
	l.t.Fatalf("%q is not printed: %s", text, all)
	return ""
}

func TestListenPrintsAndVerifies(t *testing.T) {
	t.Parallel()
	l := listen(t, "--secret", exampleKey)
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+exampleKey), gatewaytest.ExampleSite(t))
	id := g.Task(l.url)
	got := l.until("response = example response")
	for _, want := range []string{"COMPLETE", id, "attempt 1", "/hook", "signature verified"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not have %q", got, want)
		}
	}
	if _, _, err := gatewaytest.Send(http.MethodPost, l.url, strings.NewReader("\x1b[2J\u202e"),
		"Webhook-Signature", "v1,x", "Webhook-Id", "x", "Webhook-Timestamp", "1"); err != nil {
		t.Fatal(err)
	}
	if got := l.until(`\x1b[2J\u202e`); !strings.Contains(got, "signature failed") || strings.Contains(got, "\x1b") {
		t.Errorf("a forged one is printed as %q", got)
	}
	if err := l.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for l.lines.Scan() {
	}
	if err := l.cmd.Wait(); err != nil {
		t.Errorf("interrupted it ends with %v", err)
	}
}

func TestListenEndsWithReader(t *testing.T) {
	t.Parallel()
	l := listen(t)
	if err := l.out.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := gatewaytest.Send(http.MethodPost, l.url, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := l.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ends with %v", err)
	}
}

func TestListenFlags(t *testing.T) {
	t.Parallel()
	l := listen(t, "--respond", "503", "--json")
	resp, _, err := gatewaytest.Send(http.MethodGet, l.url, bytes.NewReader(nil), "Accept", "text/html")
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatal(resp, err)
	}
	var c map[string]any
	if !l.lines.Scan() || json.Unmarshal(l.lines.Bytes(), &c) != nil || c["method"] != "GET" || c["path"] != "/hook" {
		t.Errorf("it writes %q", l.lines.Text())
	}
	for _, args := range [][]string{{"--respond", "99"}, {"--secret", "nonsense"}, {"spare"}} {
		runCaddy(t, t.TempDir(), append([]string{"callback", "listen"}, args...)...).wantCode(t, 2)
	}
	taken := strings.TrimSuffix(strings.TrimPrefix(l.url, "http://"), "/hook")
	if c := runCaddy(t, t.TempDir(), "callback", "listen", "--address", taken); c.code != 1 || !strings.Contains(c.stderr, taken) {
		t.Errorf("with an address in use: exit code %d, %q", c.code, c.stderr)
	}
}

func TestListenForwardsCallbacksAndPrintsAnswers(t *testing.T) {
	t.Parallel()
	refused := true
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if refused {
			refused = false
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, "thank you\x1b[2J")
	})
	l := listen(t, "--forward-to", rcv.URL)
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1s"), gatewaytest.ExampleSite(t))
	id := g.Task(l.url)
	// The response is passed on, so the gateway retries.
	for _, want := range []string{"forwarded: 503 Service Unavailable in ", "forwarded: 200 OK in "} {
		l.until(want)
		if got := l.until("thank you"); strings.Contains(got, "\x1b") {
			t.Errorf("it prints %q", got)
		}
		got := rcv.Next(t)
		if got.TaskID() != id || got.Body != "response=example+response" {
			t.Errorf("forwarded is %v %q", got.Header, got.Body)
		}
	}
	adminAPI(t, g).inState(id, task.Done)
	gone := listen(t, "--forward-to", "http://127.0.0.1:1/")
	resp, _, err := gatewaytest.Send(http.MethodPost, gone.url, strings.NewReader("x"))
	if err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("where nothing listens it answers %v, %v", resp, err)
	}
	gone.until("connection refused")
	runCaddy(t, t.TempDir(), "callback", "listen", "--forward-to", "localhost:3000").wantCode(t, 2)
	runCaddy(t, t.TempDir(), "callback", "listen", "--forward-to", rcv.URL, "--respond", "200").wantCode(t, 2)
}

func TestCommandsListQueuesHostsAndSchedules(t *testing.T) {
	t.Parallel()
	rcv, _ := failing(t, http.StatusServiceUnavailable)
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h 1h 1h 1h")+"\nqueue train {\nschedule @every 24h {\nuri /q\n}\n}",
		"task_queue /q* train {\nrespond ok\n}\n"+gatewaytest.ExampleSite(t))
	a := adminAPI(t, g)
	id := g.Task(rcv.URL)
	gatewaytest.Eventually(t, "an attempt has failed", func() error {
		if c := onTasks(t, g, "tasks", "--state", "delivering"); !strings.Contains(c.stdout, "503 Service Unavailable; again in ") {
			return errors.New(c.stdout)
		}
		return nil
	})
	a.inState(id, task.Delivering)
	gatewaytest.Eventually(t, "the host has the failure", func() error {
		if c := onTasks(t, g, "hosts"); !strings.Contains(c.stdout, "503 Service Unavailable") {
			return errors.New(c.stdout)
		}
		return nil
	})
	for name, want := range map[string][]string{
		"queues":    {"QUEUE", "train"},
		"hosts":     {"HOST", "127.0.0.1:", "503 Service Unavailable"},
		"schedules": {"SCHEDULE", "@every 24h", " /q"},
	} {
		c := onTasks(t, g, name)
		c.wantCode(t, 0)
		for _, text := range want {
			if !strings.Contains(c.stdout, text) {
				t.Errorf("%s does not have %q:\n%s", name, text, c.stdout)
			}
		}
		c = onTasks(t, g, name, "--json")
		c.wantCode(t, 0)
		var item map[string]any
		if strings.Count(c.stdout, "\n") != 1 || json.Unmarshal([]byte(c.stdout), &item) != nil {
			t.Errorf("%s as JSON is %q", name, c.stdout)
		}
	}
	if c := onTasks(t, g, "show", id[:3]); c.code != 1 || !strings.Contains(c.stderr, "at least 4 characters") {
		t.Errorf("show of three characters: %d %q", c.code, c.stderr)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"show", id[:13]}, id}, // a prefix of an ID is enough
		{[]string{"show", strings.ToUpper(id)}, id},
		{[]string{"result", id}, `{"response":"example response"}`},
		{[]string{"result", id, "--callback"}, "response=example+response"},
		{[]string{"pause", "--queue", "train"}, "queue train is paused"},
		{[]string{"queues"}, "paused"},
		{[]string{"resume", "--queue", "train"}, "queue train is resumed"},
		{[]string{"retry", id}, id + " is retried"},
		{[]string{"stop", "--host", "127.0.0.1", "--yes"}, "changed 1 of 1 matching tasks"},
	} {
		c := onTasks(t, g, test.args...)
		if c.code != 0 || !strings.Contains(c.stdout, test.want) {
			t.Errorf("%v: %d %q %q", test.args, c.code, c.stdout, c.stderr)
		}
	}
	a.inState(id, task.Dead)
}
