//go:build unix

package receivers

import (
	"os/exec"
	"syscall"
)

// inGroup starts a process in its own process group, so that kill ends its children too.
func inGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// kill ends the receiver like a power failure.
func (p *process) kill() {
	if p.done != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended already
		<-p.done
	}
}
