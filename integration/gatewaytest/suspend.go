//go:build unix

package gatewaytest

import "syscall"

// Suspend stops the process in its tracks, as a virtual machine is paused, until
// Resume: its sockets stay open and nobody answers on them.
func (g *Gateway) Suspend() {
	g.T.Helper()
	if err := g.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		g.T.Fatal(err)
	}
}

// Resume lets the process go on.
func (g *Gateway) Resume() {
	g.T.Helper()
	if err := g.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		g.T.Fatal(err)
	}
}

// Suspend stops a server in its tracks: the others see it as behind a network that
// has parted.
func (c *Cluster) Suspend(i int) {
	c.t.Helper()
	if err := c.Servers[i].Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
}

// Resume lets a server go on.
func (c *Cluster) Resume(i int) {
	c.t.Helper()
	if err := c.Servers[i].Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		c.t.Fatal(err)
	}
}
