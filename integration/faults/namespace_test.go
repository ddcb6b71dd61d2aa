package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// inNamespace marks a process that inOwnNamespace has started.
const inNamespace = "CALLBACK_TEST_IN_NAMESPACE"

// inOwnNamespace runs the tests again in a process with its own mount namespace, so that
// a test can fill a disk that only it sees and that disappears with it. It needs no
// privileges if the system allows user namespaces. It reports false if this is that
// process already, or one that a test has started.
func inOwnNamespace() (code int, ended bool) {
	for _, name := range []string{inNamespace, gatewaytest.AsCaddy, gatewaytest.AsNATS} {
		if os.Getenv(name) != "" {
			return 0, false
		}
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	// The child ends with the thread that started it.
	runtime.LockOSThread()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	// Signals that end this process must end the child first.
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "no mount namespace, so the tests of full disks will fail:", err)
		signal.Stop(quit)
		return 0, false
	}
	go func() {
		for sig := range quit {
			_ = cmd.Process.Signal(sig) // the child may have ended
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), true
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
}
