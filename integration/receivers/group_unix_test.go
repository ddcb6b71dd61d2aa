//go:build unix

package receivers

import (
	"os/exec"
	"syscall"
)

// inGroup gives a process a group of its own, so that what it starts ends with it.
func inGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// kill ends the receiver as a power cut would.
func (p *process) kill() {
	if p.done != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended already
		<-p.done
	}
}
