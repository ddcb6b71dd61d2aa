package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// migrateFlags are the flags of `caddy callback migrate` as they are given.
type migrateFlags struct {
	config, adapter, from string
}

func newMigrateCommand() *cobra.Command {
	f := new(migrateFlags)
	cmd := &cobra.Command{
		Use:   "migrate --config <file> [--from <folder>]",
		Short: "Moves the tasks of a store folder into a NATS cluster",
		Long: `
Moves every task from a store folder into the cluster that the configuration's
nats option names: tasks that wait, callbacks that are due or to be retried,
those that were given up, what can be looked up, idempotency keys, schedules. No
gateway may use the folder; those that use the cluster may run.

It can be interrupted and run again: what the cluster has already is left as it
stands there. From its beginning on no gateway starts on the folder.

The folder is, if --from is not given, the one of the configuration's store
option, or the one that is used without it.

Exit codes: 0 everything is in the cluster, 1 it is not, 2 the command line or
the configuration is wrong.`,
		Example: `  caddy callback migrate --config /etc/caddy/Caddyfile`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.SetFlagErrorFunc(usage)
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.config, "config", "c", "", "the configuration that names the cluster (default: the Caddyfile here)")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	flags.StringVar(&f.from, "from", "", "the store folder")
	return cmd
}

// run checks the flags and moves the tasks.
func (f *migrateFlags) run(cmd *cobra.Command) error {
	app, err := loadApp(f.config, f.adapter)
	if err != nil {
		return usage(cmd, fmt.Errorf("--config: %w", err))
	}
	if app.NATS == nil {
		return usage(cmd, errors.New("--config: the configuration has no nats option; it says where the tasks go"))
	}
	if f.from != "" {
		if app.Store, err = filepath.Abs(f.from); err != nil {
			return usage(cmd, fmt.Errorf("--from: %w", err))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	to := app.engineConfig()
	done, err := engine.Migration{
		From:     engine.Config{Store: to.Store, Sync: to.Sync, Logger: to.Logger},
		To:       to,
		NameTick: func(rec *task.Record, sequence uint64) { nameTick(rec, sequence, tickHeader(rec)) },
	}.Run(ctx)
	if done != nil {
		printMigrated(cmd.OutOrStdout(), done)
	}
	if err != nil {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted; run it again to move the rest")
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
		return exit(cmd, exitFailed)
	}
	return nil
}

// loadApp returns the app of a configuration as it would run.
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
		return nil, errors.New("the configuration has no callback options")
	}
	h, err := loadQuietly(func() (*App, *Handler, error) { return app, new(Handler), nil })
	if err != nil {
		return nil, err
	}
	return h.app, nil
}

// tickHeader is the header of the ID of a task that a tick makes where its queue
// is not known.
func tickHeader(rec *task.Record) string {
	if rec.Callback != nil {
		return rec.Callback.TaskHeader
	}
	return defaultTaskHeader
}

// printMigrated says what was moved.
func printMigrated(w io.Writer, done *engine.Migrated) {
	for _, state := range []task.State{task.Queued, task.Running, task.Delivering, task.Dead, task.Done} {
		fmt.Fprintf(w, "%7d tasks %s\n", done.Tasks[state], state)
	}
	for _, line := range []struct {
		n      int
		what   string
		always bool
	}{
		{done.There, "tasks that the cluster has already", true},
		{done.Keys, "idempotency keys", true},
		{done.Schedules, "schedules", true},
		{done.Bodies, "large bodies", true},
		{done.Damaged, "damaged messages, kept among the dead", false},
		{done.Bodyless, "tasks whose large body is not in the store", false},
	} {
		if line.always || line.n > 0 {
			fmt.Fprintf(w, "%7d %s\n", line.n, line.what)
		}
	}
}
