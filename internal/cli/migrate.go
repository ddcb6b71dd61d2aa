package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/migrate"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Store is a store that is not open yet.
type Store struct {
	// Key identifies the store, and Place names it, without credentials.
	Key, Place string
	// Folder is the folder of an embedded store. It is empty for a cluster.
	Folder string
	// Open opens the store. It returns when ctx ends.
	Open func(ctx context.Context) (engine.Engine, error)
}

// StoreName names a store on the command line.
type StoreName struct {
	Name        string // "sqlite:<folder>", or the URLs of a cluster, separated by commas
	Credentials string // a NATS credentials file, or empty
	Replicas    int    // of the streams created in a cluster; 0 for the cluster's default
}

// Stores finds the stores of [Caddy.NewMigrateCommand].
type Stores struct {
	// Named returns the store of a name.
	Named func(StoreName) (*Store, error)
	// Configured returns the store of a configuration.
	Configured func(config, adapter string) (*Store, error)
	// Replicas is the default number of replicas of a stream.
	Replicas int
}

// migrateFlags are the flags of `caddy callback migrate`.
type migrateFlags struct {
	stores          Stores
	config, adapter string
	from, to        StoreName
}

// NewMigrateCommand returns the command that copies the tasks of one store into another.
func (c *Caddy) NewMigrateCommand(stores Stores) *cobra.Command {
	f := &migrateFlags{stores: stores}
	cmd := &cobra.Command{
		Use:   "migrate --from <store> --to <store>",
		Short: "Copies the tasks of one store into another",
		Long: `
Copies every task from one store into another, with its request or result: queued
tasks, callbacks that are due or will be retried, dead letters and finished tasks;
also idempotency keys, the run times of schedules, and which queues and hosts are
paused.

A store is a folder, "sqlite:<folder>", or a NATS cluster, "nats://<host>:4222", with
more servers after commas. If --from or --to is not given, it is the store that
the configuration names.

Stop the gateways that use the store to copy from: otherwise they deliver
callbacks that are copied, too. Those that use the other store may run.

The command can be interrupted and repeated. What the target has already is left as
it is there. Nothing is removed from the store that is copied.

Exit codes: 0 everything was copied, 1 something was not, 2 the command line or the
configuration is wrong.`,
		Example: `  caddy callback migrate --from sqlite:/var/lib/caddy/callback --to nats://n1:4222,n2:4222,n3:4222
  caddy callback migrate --from sqlite:/var/lib/caddy/callback --config /etc/caddy/Caddyfile`,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(c, cmd) },
	}
	c.Flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.from.Name, "from", "", "the store to copy from (default: that of the configuration)")
	flags.StringVar(&f.to.Name, "to", "", "the store to copy to (default: that of the configuration)")
	flags.StringVar(&f.from.Credentials, "from-credentials", "", "the NATS credentials file of the store to copy from")
	flags.StringVar(&f.to.Credentials, "to-credentials", "", "the NATS credentials file of the store to copy to")
	flags.IntVar(&f.to.Replicas, "to-replicas", stores.Replicas, "on how many servers of the cluster to copy to each stream is kept, if it is new")
	flags.StringVarP(&f.config, "config", "c", "", "the configuration that names a store (default: the Caddyfile here)")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	return cmd
}

// run checks the flags and copies the tasks.
func (f *migrateFlags) run(c *Caddy, cmd *cobra.Command) error {
	from, to, err := f.find()
	if err != nil {
		return c.Misused(cmd, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	counts, err := copyStore(ctx, from, to, cmd.ErrOrStderr())
	if counts != nil {
		printCopied(cmd.OutOrStdout(), counts)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted; run it again to copy the rest")
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
		return c.End(cmd, ExitFailed)
	}
	return nil
}

// find returns the stores that the flags name. Its errors name the flag.
func (f *migrateFlags) find() (from, to *Store, err error) {
	if f.from.Name == "" && f.to.Name == "" {
		return nil, nil, errors.New("--from and --to are missing; at most one of them can default to the store of the configuration")
	}
	if from, err = f.storeOf("--from", f.from); err != nil {
		return nil, nil, err
	}
	if to, err = f.storeOf("--to", f.to); err != nil {
		return nil, nil, err
	}
	if from.Key == to.Key {
		return nil, nil, errors.New("--from and --to are the same store")
	}
	if from.Folder != "" {
		// Opening a folder creates it. A misspelt name would become an empty store.
		if _, err := os.Stat(from.Folder); err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
	}
	return from, to, nil
}

// storeOf returns the store that a flag names, or else that of the configuration.
func (f *migrateFlags) storeOf(flag string, name StoreName) (*Store, error) {
	if name.Name != "" {
		s, err := f.stores.Named(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		return s, nil
	}
	if name.Credentials != "" {
		return nil, fmt.Errorf("%s-credentials: credentials are only for a store named by %[1]s", flag)
	}
	s, err := f.stores.Configured(f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	return s, nil
}

// openStoreTimeout and closeStoreTimeout bound opening and closing a store, because a
// cluster may not answer.
const (
	openStoreTimeout  = 30 * time.Second
	closeStoreTimeout = 30 * time.Second
)

// copyStore opens both stores, copies the tasks, and closes the stores. It reports its
// progress on w. The counts are nil if a store could not be opened.
func copyStore(ctx context.Context, from, to *Store, w io.Writer) (_ *migrate.Counts, err error) {
	source, err := from.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.close(source)) }()
	target, err := to.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, to.close(target)) }()
	begun := time.Now()
	counts, err := migrate.Migration{From: source, To: target, Progress: func(c migrate.Counts) {
		fmt.Fprintf(w, "%5s  %d of %d tasks: %d copied (%s), %d there already, %d failed\n",
			time.Since(begun).Truncate(time.Second), c.Done(), c.Total, c.Done()-c.Known-c.Failed,
			humanize.IBytes(uint64(max(c.Bytes, 0))), c.Known, c.Failed)
	}}.Run(ctx)
	return &counts, err
}

func (s *Store) open(ctx context.Context) (engine.Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, openStoreTimeout)
	defer cancel()
	e, err := s.Open(ctx)
	switch {
	case errors.Is(err, engine.ErrHeld):
		return nil, fmt.Errorf("opening %s: %w; stop the gateway that uses it", s.Place, err)
	case err != nil:
		return nil, fmt.Errorf("opening %s: %w", s.Place, err)
	}
	return e, nil
}

func (s *Store) close(e engine.Engine) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeStoreTimeout)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		return fmt.Errorf("closing %s: %w", s.Place, err)
	}
	return nil
}

// printCopied prints the counts of copied tasks.
func printCopied(w io.Writer, c *migrate.Counts) {
	for _, state := range []task.State{task.Queued, task.Running, task.Delivering, task.Dead, task.Done} {
		fmt.Fprintf(w, "%7d tasks %s\n", c.Copied[state], state)
	}
	for _, line := range []struct {
		n    int64
		what string
	}{
		{c.Known, "tasks that were there already"},
		{c.Failed, "tasks that could not be copied"},
		{c.Keys, "idempotency keys"},
		{c.Schedules, "schedules"},
		{c.Pauses, "paused queues and hosts"},
	} {
		fmt.Fprintf(w, "%7d %s\n", line.n, line.what)
	}
}
