// Package cli is the command line that looks at and changes the tasks of a running
// gateway, and the parts that all commands share: exit codes, errors, colors,
// tables, progress.
//
// The commands ask the gateway's API on Caddy's admin endpoint and nothing else.
// How that endpoint is found and asked comes from outside, in [Caddy], so that the
// package does not depend on Caddy.
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

// Caddy is what the commands need of Caddy.
type Caddy struct {
	// Address returns the address of an admin endpoint: the given one, or that of a
	// configuration file read with an adapter, or Caddy's default.
	Address func(address, config, adapter string) (string, error)
	// Request sends a request to an admin endpoint. An answer of 400 or above is an
	// error that has the answer's text.
	Request func(address, method, uri string, header http.Header, body io.Reader) (*http.Response, error)
	// Exit makes the command end with a code above 1 and print nothing more.
	Exit func(cmd *cobra.Command, code int) error
	// Expand replaces placeholders such as {env.NAME}.
	Expand func(string) string
	// ParseDuration reads a duration as Caddy's configuration has it, such as 1d.
	ParseDuration func(string) (time.Duration, error)
}

// Commands returns the commands that ask a running gateway, and listen.
func (c *Caddy) Commands() []*cobra.Command {
	commands := []*cobra.Command{c.newTasksCommand(), c.newShowCommand(), c.newResultCommand()}
	for i := range actions {
		commands = append(commands, c.newActionCommand(&actions[i]))
	}
	return append(commands,
		c.newQueuesCommand(), c.newHostsCommand(), c.newSchedulesCommand(),
		c.newPauseCommand("pause"), c.newPauseCommand("resume"), c.newListenCommand())
}

// The exit codes. The last two are those of a single run.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitTimeout     = 3
	ExitUndelivered = 4
)

// errExit ends the command line with exit code 1 and prints nothing more.
var errExit = errors.New("exit")

// End makes the command line end with a code, after the command has printed its
// errors.
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

// Misused reports an error in the command line and ends it with [ExitUsage].
func (c *Caddy) Misused(cmd *cobra.Command, err error) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\nSee %[1]s --help.\n", cmd.CommandPath(), web.TerminalText(err.Error()))
	return c.End(cmd, ExitUsage)
}

// Failed reports an error and ends the command line with [ExitFailed], or with
// [ExitUsage] if a gateway refused what the flags say.
func (c *Caddy) Failed(cmd *cobra.Command, err error) error {
	var refused *apiError
	if errors.As(err, &refused) && refused.status == http.StatusBadRequest {
		return c.Misused(cmd, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.CommandPath(), web.TerminalText(err.Error()))
	return c.End(cmd, ExitFailed)
}

// Flags prepares a command for its flags: they are listed in the order in which
// they are added, and an error in them ends with [ExitUsage].
func (c *Caddy) Flags(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(c.Misused)
	cmd.Flags().SortFlags = false
}

// NoArguments refuses arguments.
func (c *Caddy) NoArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return c.Misused(cmd, fmt.Errorf("%q is neither a flag nor the value of one", args[0]))
	}
	return nil
}

// Interrupts returns the signals that would end the process, unless they are
// ignored, as under nohup. The process does not end by them from then on.
func Interrupts() <-chan os.Signal {
	// A reader of the output that has left must not end the process: the callback
	// is still to be delivered.
	signal.Ignore(syscall.SIGPIPE)
	c := make(chan os.Signal, 2)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	return c
}
