package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/migrate"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// migrateFlags are the flags of `caddy callback migrate`.
type migrateFlags struct {
	config, adapter string
	from, to        storeFlags
}

// storeFlags name a store.
type storeFlags struct {
	flag, store, credentials string
	replicas                 int // of the streams created in a cluster; 0 for the cluster's default
}

func newMigrateCommand() *cobra.Command {
	f := &migrateFlags{from: storeFlags{flag: "--from"}, to: storeFlags{flag: "--to"}}
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
		Args: shell.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	shell.Flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.from.store, "from", "", "the store to copy from (default: that of the configuration)")
	flags.StringVar(&f.to.store, "to", "", "the store to copy to (default: that of the configuration)")
	flags.StringVar(&f.from.credentials, "from-credentials", "", "the NATS credentials file of the store to copy from")
	flags.StringVar(&f.to.credentials, "to-credentials", "", "the NATS credentials file of the store to copy to")
	flags.IntVar(&f.to.replicas, "to-replicas", defaultReplicas, "on how many servers of the cluster to copy to each stream is kept, if it is new")
	flags.StringVarP(&f.config, "config", "c", "", "the configuration that names a store (default: the Caddyfile here)")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	return cmd
}

// run checks the flags and copies the tasks.
func (f *migrateFlags) run(cmd *cobra.Command) error {
	from, to, err := f.stores()
	if err != nil {
		return shell.Misused(cmd, err)
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
		return shell.End(cmd, cli.ExitFailed)
	}
	return nil
}

// stores returns the stores that the flags name. Its errors name the flag.
func (f *migrateFlags) stores() (from, to *store, err error) {
	if f.from.store == "" && f.to.store == "" {
		return nil, nil, errors.New("--from and --to are missing; at most one of them can default to the store of the configuration")
	}
	log, err := quietLog()
	if err != nil {
		return nil, nil, err
	}
	if from, err = f.storeOf(&f.from, log); err != nil {
		return nil, nil, err
	}
	if to, err = f.storeOf(&f.to, log); err != nil {
		return nil, nil, err
	}
	if from.module.storeKey() == to.module.storeKey() {
		return nil, nil, errors.New("--from and --to are the same store")
	}
	if source, ok := from.module.(*SQLiteEngine); ok {
		// Opening a folder creates it. A misspelt name would become an empty store.
		if _, err := os.Stat(source.Folder); err != nil {
			return nil, nil, fmt.Errorf("--from: %w", err)
		}
	}
	return from, to, nil
}

// storeOf returns the store that the flags name, or else that of the configuration.
func (f *migrateFlags) storeOf(s *storeFlags, log *zap.Logger) (*store, error) {
	if s.store != "" {
		module, err := s.parse()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.flag, err)
		}
		return &store{module: module, log: log}, nil
	}
	if s.credentials != "" {
		return nil, fmt.Errorf("%s-credentials: credentials are only for a store named by %[1]s", s.flag)
	}
	app, err := loadApp(f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	return &store{module: app.engine, settings: app.settings(), log: log}, nil
}

// store is a store that is not open yet.
type store struct {
	module   engineModule
	settings engine.Settings
	log      *zap.Logger
}

// parse parses the name of a store: "sqlite:<folder>", or the URLs of a cluster,
// separated by commas. Only the first URL needs a scheme.
func (s *storeFlags) parse() (engineModule, error) {
	if folder, ok := strings.CutPrefix(s.store, "sqlite:"); ok {
		switch {
		case folder == "":
			return nil, errors.New(`"sqlite:" needs a folder, such as sqlite:/var/lib/caddy/callback`)
		case s.credentials != "":
			return nil, errors.New("a folder takes no credentials")
		}
		module := &SQLiteEngine{Folder: folder}
		return module, module.Provision(caddy.Context{})
	}
	scheme, _, ok := strings.Cut(s.store, "://")
	if !ok {
		return nil, errors.New(`expected "sqlite:<folder>" or "nats://<host>:4222"`)
	}
	module := &NATSEngine{Credentials: s.credentials, Replicas: s.replicas}
	for url := range strings.SplitSeq(s.store, ",") {
		if !strings.Contains(url, "://") {
			url = scheme + "://" + url
		}
		module.URLs = append(module.URLs, url)
	}
	if err := module.Provision(caddy.Context{}); err != nil {
		return nil, err
	}
	return module, module.Validate()
}

// loadApp returns the provisioned app of a configuration.
func loadApp(file, adapter string) (*App, error) {
	text, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var config struct {
		Apps struct {
			Callback *App `json:"callback"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	app := config.Apps.Callback
	if app == nil {
		app = new(App) // its defaults apply
	}
	h, err := loadQuietly(func() (*App, *Handler, error) { return app, new(Handler), nil })
	if err != nil {
		return nil, err
	}
	return h.app, nil
}

// openStoreTimeout and closeStoreTimeout bound opening and closing a store, because a
// cluster may not answer.
const (
	openStoreTimeout  = 30 * time.Second
	closeStoreTimeout = 30 * time.Second
)

// copyStore opens both stores, copies the tasks, and closes the stores. It reports its
// progress on w. The counts are nil if a store could not be opened.
func copyStore(ctx context.Context, from, to *store, w io.Writer) (_ *migrate.Counts, err error) {
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

func (s *store) open(ctx context.Context) (engine.Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, openStoreTimeout)
	defer cancel()
	e, err := s.module.open(ctx, s.settings, s.log)
	switch {
	case errors.Is(err, engine.ErrHeld):
		return nil, fmt.Errorf("opening %s: %w; stop the gateway that uses it", s.module.place(), err)
	case err != nil:
		return nil, fmt.Errorf("opening %s: %w", s.module.place(), err)
	}
	return e, nil
}

func (s *store) close(e engine.Engine) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeStoreTimeout)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		return fmt.Errorf("closing %s: %w", s.module.place(), err)
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
