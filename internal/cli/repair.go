package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
)

// NewRepairCommand returns the command that repairs a store folder. folderOf returns the
// absolute path of a folder, and that of the default for "".
func (c *Caddy) NewRepairCommand(folderOf func(name string) (string, error)) *cobra.Command {
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
				return c.Misused(cmd, fmt.Errorf("expected one folder, got %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, err := folderOf(append(args, "")[0])
			if err != nil {
				return c.Misused(cmd, err)
			}
			return c.repair(cmd, folder)
		},
	}
	c.Flags(cmd)
	return cmd
}

func (c *Caddy) repair(cmd *cobra.Command, folder string) error {
	if _, err := os.Stat(folder); err != nil {
		return c.Misused(cmd, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := sqlite.Repair(ctx, folder, cmd.OutOrStdout())
	switch {
	case errors.Is(err, engine.ErrHeld):
		err = fmt.Errorf("repairing %s: %w; stop the gateway that uses it", folder, err)
	case err != nil:
		err = fmt.Errorf("repairing %s: %w", folder, err)
	default:
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.CommandPath(), err)
	return c.End(cmd, ExitFailed)
}
