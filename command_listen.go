package callback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// listenFlags are the flags of `caddy callback listen` as they are given.
type listenFlags struct {
	address string
	secrets []string
	respond int
	json    bool
}

func newListenCommand() *cobra.Command {
	f := new(listenFlags)
	cmd := &cobra.Command{
		Use:   "listen [--address <host:port>] [--secret <key>]",
		Short: "Receives callbacks and prints them",
		Long: `
Receives whatever is sent to it and prints each callback as it comes: its status
and task, the pairs of its body, and whether the signature verifies. With --json,
each is one line of JSON, as callback_inbox lists it. Nothing is kept.

A gateway calls private addresses only if its delivery options allow them, or if
the operator's own URL names them.

Exit codes: 0 interrupted, 1 it could not listen or print, 2 the command line is
wrong.`,
		Example: `  caddy callback listen --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
  caddy callback listen --address 127.0.0.1:9999 --respond 503`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.SetFlagErrorFunc(usage)
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.address, "address", "127.0.0.1:8099", "where it listens")
	flags.StringArrayVar(&f.secrets, "secret", nil, "a key that signatures are verified with; repeatable")
	flags.IntVar(&f.respond, "respond", http.StatusOK, "the status that senders get")
	flags.BoolVar(&f.json, "json", false, "write JSON")
	complete(cmd, "respond", func() []string { return []string{"200", "410", "429", "500", "503"} })
	return cmd
}

const (
	// listenHeaderTimeout is how long a sender may take to send its header.
	listenHeaderTimeout = 10 * time.Second
	// listenGrace is how long what is being received may take after an interrupt.
	listenGrace = time.Second
)

func (f *listenFlags) run(cmd *cobra.Command) error {
	config := web.InboxConfig{Respond: f.respond, Keep: 1}
	if f.respond < 200 || f.respond > 599 {
		return usage(cmd, fmt.Errorf("--respond: %d is not a status from 200 to 599", f.respond))
	}
	for _, secret := range f.secrets {
		key, err := webhook.ParseVerifyKey(caddy.NewReplacer().ReplaceKnown(secret, ""))
		if err != nil {
			return usage(cmd, fmt.Errorf("--secret: %w", err))
		}
		config.Keys = append(config.Keys, key)
	}
	listener, err := net.Listen("tcp", f.address)
	if err != nil {
		return failed(cmd, fmt.Errorf("listening on %s: %w", f.address, err))
	}
	terminal := web.NewTerminal(config, cmd.OutOrStdout())
	terminal.JSON, terminal.Color = f.json, hasColor(os.Stdout)
	// Who reads no more, as head does, has seen enough; without this the senders
	// would be told that all is well, and nobody would see what they sent.
	unprinted := make(chan error, 1)
	terminal.Failed = func(err error) {
		select {
		case unprinted <- err:
		default: // one is known
		}
	}
	server := &http.Server{Handler: terminal, ReadHeaderTimeout: listenHeaderTimeout}
	fmt.Fprintf(cmd.ErrOrStderr(), "callbacks to http://%s/ are printed; interrupt to end\n", listener.Addr())
	interrupts := trapInterrupts()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	var printed error
	select {
	case err = <-served:
		return failed(cmd, fmt.Errorf("listening on %s: %w", f.address, err))
	case printed = <-unprinted:
	case <-interrupts:
	}
	ctx, cancel := context.WithTimeout(context.Background(), listenGrace)
	defer cancel()
	if err := server.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
		server.Close() //nolint:errcheck // what was still being received is given up
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return failed(cmd, fmt.Errorf("listening on %s: %w", f.address, err))
	}
	if printed != nil {
		return failed(cmd, fmt.Errorf("printing a callback: %w", printed))
	}
	return nil
}

// hasColor says whether f is a terminal whose user has not asked for no color.
func hasColor(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && newProgress(f).terminal
}
