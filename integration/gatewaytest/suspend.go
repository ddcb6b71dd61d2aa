//go:build unix

package gatewaytest

import "syscall"

// Suspend stops the process (SIGSTOP) until Resume, as if its virtual machine were
// paused. Its sockets stay open but do not respond.
func (g *Gateway) Suspend() {
	g.T.Helper()
	if err := g.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		g.T.Fatal(err)
	}
}

// Resume continues the process.
func (g *Gateway) Resume() {
	g.T.Helper()
	if err := g.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		g.T.Fatal(err)
	}
}

// Suspend stops a server (SIGSTOP). To the other servers it looks like a network
// partition.
func (c *Cluster) Suspend(i int) {
	c.t.Helper()
	if err := c.Servers[i].Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
}

// Resume continues a server.
func (c *Cluster) Resume(i int) {
	c.t.Helper()
	if err := c.Servers[i].Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		c.t.Fatal(err)
	}
}
