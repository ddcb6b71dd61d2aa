package callback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
)

func newRepairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair [<folder>]",
		Short: "Repairs a damaged store folder",
		Long: `
Checks the store in a folder, and if it is damaged, salvages what can be read into a
new database. The damaged files are kept beside it. No gateway may use the folder.

The folder is, if none is given, the one that is used without an engine option:
callback in Caddy's data directory.

Exit codes: 0 the store is sound or was repaired, 1 it was not, 2 the command line
is wrong.`,
		Example: `  caddy callback repair /var/lib/caddy/callback`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return shell.Misused(cmd, fmt.Errorf("expected one folder, got %d", len(args)))
			}
			return nil
		},
		RunE: repair,
	}
	shell.Flags(cmd)
	return cmd
}

func repair(cmd *cobra.Command, args []string) error {
	module := new(SQLiteEngine)
	if len(args) > 0 {
		module.Folder = args[0]
	}
	if err := module.Provision(caddy.Context{}); err != nil {
		return shell.Misused(cmd, err)
	}
	if _, err := os.Stat(module.Folder); err != nil {
		return shell.Misused(cmd, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := sqlite.Repair(ctx, module.Folder, cmd.OutOrStdout())
	switch {
	case errors.Is(err, engine.ErrHeld):
		err = fmt.Errorf("repairing %s: %w; stop the gateway that uses it", module.Folder, err)
	case err != nil:
		err = fmt.Errorf("repairing %s: %w", module.Folder, err)
	default:
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
	return shell.End(cmd, cli.ExitFailed)
}
