package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// openTerminal opens a pseudo-terminal into which a user has typed text.
func openTerminal(t *testing.T, text string) *os.File {
	t.Helper()
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	user := open("/dev/ptmx")
	control := func(request uintptr, value *int32) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, user.Fd(), request, uintptr(unsafe.Pointer(value))) //nolint:gosec // ioctl takes a pointer
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	var lock, number int32
	control(syscall.TIOCSPTLCK, &lock) // 0 unlocks it
	control(syscall.TIOCGPTN, &number)
	terminal := open(fmt.Sprintf("/dev/pts/%d", number))
	if _, err := io.WriteString(user, text); err != nil {
		t.Fatal(err)
	}
	return terminal
}

// onTasksTyping is onTasks with a terminal as standard input.
func onTasksTyping(t *testing.T, g *gatewaytest.Gateway, text string, args ...string) command {
	t.Helper()
	args = append(append([]string{"callback"}, args...), "--address", g.Admin)
	return runCaddyWithInput(t, openTerminal(t, text), t.TempDir(), args...)
}

func TestDestructiveCommandsAskOnTerminal(t *testing.T) {
	t.Parallel()
	rcv, _ := failing(t, http.StatusServiceUnavailable)
	hold := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/q" {
			<-hold
		}
		_, _ = io.WriteString(w, "done")
	})
	t.Cleanup(func() { close(hold) })
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h")+"\nqueue q {\nworkers 1\n}",
		"callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}\nreverse_proxy "+app)
	a := adminAPI(t, g)
	var ids []string
	for range 2 {
		ids = append(ids, g.Task(rcv.URL))
		a.inState(ids[len(ids)-1], task.Delivering)
	}
	for range 2 {
		accepted(t, g, "/q", "{}")
	}
	const (
		stop      = "Stop retrying the callbacks of "
		remove    = "Delete "
		noRestore = "? They cannot be redelivered afterwards. [y/N] "
	)
	for _, test := range []struct {
		name, typed, question string
		args                  []string
		declined              bool
	}{
		{"no", "n\n", stop + "1 task? [y/N] ", []string{"stop", ids[0]}, true},
		{"an empty line", "\n", stop + "2 tasks? [y/N] ", []string{"stop", ids[0], ids[1]}, true},
		{"another word", "yeah\n", stop + "2 tasks? [y/N] ", []string{"stop", "--all"}, true},
		{"end of input", "\x04", "Cancel 2 tasks? [y/N] ", []string{"cancel", "--queue", "q"}, true},
		{"yes", "yes\n", stop + "1 task? [y/N] ", []string{"stop", ids[0]}, false},
		{"y", "y\n", stop + "1 task? [y/N] ", []string{"stop", "--host", "127.0.0.1"}, false},
		{"upper case", "Y\n", "Cancel 2 tasks? [y/N] ", []string{"cancel", "--queue", "q"}, false},
		{"delete and no", "n\n", remove + "1 task" + noRestore, []string{"delete", ids[0]}, true},
		{"delete and yes", "y\n", remove + "1 task" + noRestore, []string{"delete", ids[0]}, false},
		{"no question with --yes", "n\n", "", []string{"delete", ids[1], "--yes"}, false},
	} {
		before := a.all("")
		want := command{stderr: test.question, code: 0}
		if test.declined {
			want.stderr, want.code = test.question+"nothing was changed\n", 1
		}
		got := onTasksTyping(t, g, test.typed, test.args...)
		if got.stderr != want.stderr || got.code != want.code || test.declined != (got.stdout == "") {
			t.Errorf("%s: %v: exit code %d, stdout %q, stderr %q", test.name, test.args, got.code, got.stdout, got.stderr)
		}
		if test.declined && strings.Join(a.all(""), " ") != strings.Join(before, " ") {
			t.Errorf("%s: %v deleted a task although the user declined", test.name, test.args)
		}
	}
	if got := a.all("state=dead&state=delivering"); len(got) != 0 {
		t.Errorf("%v are not deleted", got)
	}
	gatewaytest.Eventually(t, "the queue's tasks are canceled", func() error {
		if got := a.all("queue=q&state=done"); len(got) != 2 {
			return fmt.Errorf("%d are", len(got))
		}
		return nil
	})
}
