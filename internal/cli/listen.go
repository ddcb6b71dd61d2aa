package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// listenFlags are the flags of `caddy callback listen`.
type listenFlags struct {
	address   string
	secrets   []string
	respond   int
	forwardTo string
	json      bool
}

func (c *Caddy) newListenCommand() *cobra.Command {
	f := new(listenFlags)
	cmd := &cobra.Command{
		Use:   "listen [--forward-to <url>] [--secret <key>]",
		Short: "Receives, prints and forwards callbacks",
		Long: `
Receives callbacks and prints each at once: its status and task, the pairs of its
body, and whether the signature verifies. With --forward-to, each is also sent to a
URL, such as that of the receiver you develop: the answer is printed and becomes the
answer to the gateway, which retries as it would in production.

With --json, each callback is one line of JSON, as callback_inbox lists it. Nothing
is stored.

A gateway calls private addresses only if its delivery options allow them, or if its
own configuration has the URL.

Exit codes: 0 interrupted, 1 it could not listen or print, 2 the command line is
wrong.`,
		Example: `  caddy callback listen --forward-to http://localhost:3000/hook
  caddy callback listen --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
  caddy callback listen --address 127.0.0.1:9999 --respond 503`,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	c.Flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.address, "address", "127.0.0.1:8099", "the address to listen on")
	flags.StringVar(&f.forwardTo, "forward-to", "", "the URL to forward each callback to")
	flags.StringArrayVar(&f.secrets, "secret", nil, "a key to verify signatures with; repeatable")
	flags.IntVar(&f.respond, "respond", http.StatusOK, "the status to answer with")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	complete(cmd, "respond", func() []string { return []string{"200", "410", "429", "500", "503"} })
	return cmd
}

const (
	// listenHeaderTimeout is how long a sender may take to send its header.
	listenHeaderTimeout = 10 * time.Second
	// listenGrace is how long callbacks in flight may take after an interrupt.
	listenGrace = time.Second
)

// terminal returns the handler that prints callbacks. Its errors name the flag.
func (f *listenFlags) terminal(c *Caddy, s *screen) (*web.Terminal, error) {
	if f.respond < 200 || f.respond > 599 {
		return nil, fmt.Errorf("--respond: %d is not a status from 200 to 599", f.respond)
	}
	config := web.InboxConfig{Respond: f.respond, Keep: 1}
	for _, secret := range f.secrets {
		key, err := webhook.ParseVerifyKey(c.Expand(secret))
		if err != nil {
			return nil, fmt.Errorf("--secret: %w", err)
		}
		config.Keys = append(config.Keys, key)
	}
	terminal := web.NewTerminal(config, s.out)
	terminal.JSON, terminal.Color = f.json, s.color
	if f.forwardTo != "" {
		u, err := url.Parse(f.forwardTo)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("--forward-to: %q is not an http or https URL", f.forwardTo)
		}
		terminal.ForwardTo = u
	}
	return terminal, nil
}

func (f *listenFlags) run(cmd *cobra.Command, c *Caddy) error {
	terminal, err := f.terminal(c, newScreen(cmd))
	switch {
	case err != nil:
		return c.Misused(cmd, err)
	case f.forwardTo != "" && cmd.Flags().Changed("respond"):
		return c.Misused(cmd, errors.New("--respond cannot be combined with --forward-to, which returns the answer of the URL"))
	}
	listener, err := net.Listen("tcp", f.address)
	if err != nil {
		return c.Failed(cmd, fmt.Errorf("listening on %s: %w", f.address, err))
	}
	// If the output is closed, as by head, the command ends. Otherwise it would
	// acknowledge callbacks that nobody sees.
	unprinted := make(chan error, 1)
	terminal.Failed = func(err error) {
		select {
		case unprinted <- err:
		default: // the first error is enough
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "printing callbacks to http://%s/; interrupt to end\n", listener.Addr())
	if err := serveUntil(listener, terminal, Interrupts(), unprinted); err != nil {
		return c.Failed(cmd, err)
	}
	return nil
}

// serveUntil serves until an interrupt, or until a callback cannot be printed.
func serveUntil(listener net.Listener, h http.Handler, interrupts <-chan os.Signal, unprinted <-chan error) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: listenHeaderTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	var printed error
	select {
	case err := <-served:
		return fmt.Errorf("listening on %s: %w", listener.Addr(), err)
	case printed = <-unprinted:
	case <-interrupts:
	}
	ctx, cancel := context.WithTimeout(context.Background(), listenGrace)
	defer cancel()
	if err := server.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
		server.Close() //nolint:errcheck // the grace is over
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listening on %s: %w", listener.Addr(), err)
	}
	if printed != nil {
		return fmt.Errorf("printing a callback: %w", printed)
	}
	return nil
}
