// Package cli has the commands that show and change the tasks of a running gateway, and
// the parts that all commands share: exit codes, errors, colors, tables, progress.
//
// Most commands use only the gateway's API on Caddy's admin endpoint. run, migrate and
// repair need no running gateway. [Caddy] has the functions of Caddy that the commands
// need, so the package does not depend on Caddy.
package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// Caddy has the functions of Caddy that the commands need.
type Caddy struct {
	// Address returns the address of the admin endpoint: the given address, or else the
	// one in a configuration file, or else Caddy's default.
	Address func(address, config, adapter string) (string, error)
	// Request sends a request to an admin endpoint. A status of 400 or above becomes an
	// error with the text of the response.
	Request func(address, method, uri string, header http.Header, body io.Reader) (*http.Response, error)
	// Exit returns an error that ends the process with a code above 1 and prints
	// nothing.
	Exit func(cmd *cobra.Command, code int) error
	// Expand replaces placeholders such as {env.NAME}.
	Expand func(string) string
	// ParseDuration parses a duration as Caddy's configuration does, such as 1d.
	ParseDuration func(string) (time.Duration, error)
}

// Commands returns the commands for a running gateway, and listen.
func (c *Caddy) Commands() []*cobra.Command {
	commands := []*cobra.Command{c.newTasksCommand(), c.newShowCommand(), c.newResultCommand()}
	for i := range actions {
		commands = append(commands, c.newActionCommand(&actions[i]))
	}
	return append(commands,
		c.newQueuesCommand(), c.newHostsCommand(), c.newSchedulesCommand(),
		c.newPauseCommand("pause"), c.newPauseCommand("resume"), c.newListenCommand())
}

// The exit codes. Only run uses the last two.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitTimeout     = 3
	ExitUndelivered = 4
)

// errExit ends the process with exit code 1 and prints nothing.
var errExit = errors.New("exit")

// End returns an error that ends the process with a code. The command has printed its
// errors before.
func (c *Caddy) End(cmd *cobra.Command, code int) error {
	cmd.SilenceErrors = true
	switch code {
	case ExitDone:
		return nil
	case ExitFailed:
		return errExit
	default:
		return c.Exit(cmd, code)
	}
}

// Misused prints a usage error and ends the command with [ExitUsage].
func (c *Caddy) Misused(cmd *cobra.Command, err error) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\nSee %[1]s --help.\n", cmd.CommandPath(), web.TerminalText(err.Error()))
	return c.End(cmd, ExitUsage)
}

// Failed prints an error and ends the command with [ExitFailed], or with [ExitUsage] if
// the gateway refused the value of a flag.
func (c *Caddy) Failed(cmd *cobra.Command, err error) error {
	var refused *apiError
	if errors.As(err, &refused) && refused.status == http.StatusBadRequest {
		return c.Misused(cmd, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.CommandPath(), web.TerminalText(err.Error()))
	return c.End(cmd, ExitFailed)
}

// Flags sets up a command for flags: the help lists them in the order in which they are
// added, and a wrong flag ends the command with [ExitUsage].
func (c *Caddy) Flags(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(c.Misused)
	cmd.Flags().SortFlags = false
}

// NoArguments is the Args function of a command without arguments.
func (c *Caddy) NoArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return c.Misused(cmd, fmt.Errorf("unexpected argument %q; the command takes only flags", args[0]))
	}
	return nil
}

// Interrupts returns a channel of the signals that would otherwise end the process.
// Signals that are ignored, as under nohup, stay ignored.
func Interrupts() <-chan os.Signal {
	// A closed pipe must not end the process, because the callback is not delivered
	// yet.
	signal.Ignore(syscall.SIGPIPE)
	c := make(chan os.Signal, 2)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	return c
}
