package callback

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/cli"
)

// command is the command `caddy callback`.
var command = caddycmd.Command{
	Name:  "callback",
	Usage: "<command>",
	Short: "Runs tasks, and manages those of a running gateway",
	CobraFunc: func(cmd *cobra.Command) {
		cmd.AddCommand(shell.NewRunCommand(defaultTimeout, "caddy-callback/"+Version, runOnce),
			shell.NewKeyCommand(loadSecrets), newMigrateCommand(), newRepairCommand())
		cmd.AddCommand(shell.Commands()...)
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return shell.Misused(cmd, fmt.Errorf("unknown command %q", args[0]))
		}
	},
}

// shell gives the commands access to Caddy.
var shell = &cli.Caddy{
	Address: func(address, config, adapter string) (string, error) {
		return caddycmd.DetermineAdminAPIAddress(address, nil, config, adapter)
	},
	Request: caddycmd.AdminAPIRequest,
	Exit: func(cmd *cobra.Command, code int) error {
		// Caddy does not export the error that carries the code.
		end := func(caddycmd.Flags) (int, error) { return code, nil }
		return caddycmd.WrapCommandFuncForCobra(end)(cmd, nil)
	},
	Expand:        func(s string) string { return caddy.NewReplacer().ReplaceKnown(s, "") },
	ParseDuration: func(s string) (time.Duration, error) { return caddy.ParseDuration(s) },
}
