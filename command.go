package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
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

// newRun returns a run that keeps its task in a folder. Its errors name the flag.
func newRun(o *cli.Run, log *cli.Progress, folder string) (*run, error) {
	h, err := loadQuietly(func() (app *App, h *Handler, err error) {
		// The command does not survive a power failure, so its store is not synced.
		store := &SQLiteEngine{Folder: folder, Sync: caddy.Duration(time.Hour)}
		app = &App{EngineRaw: caddyconfig.JSONModuleObject(store, "engine", "sqlite", nil)}
		if o.Config != "" || o.Adapter != "" {
			app.Delivery, err = loadDelivery(o.Config, o.Adapter)
		}
		return app, &Handler{Timeout: caddy.Duration(o.Timeout), Format: o.Format}, err
	})
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	r := &run{app: h.app, h: h, request: o.Request, log: log}
	target, flag := o.CallbackURL, "--callback-url"
	if target == "" {
		flag = "--data: " + h.Field
		if target, err = namedIn(r.request, h.Field); err != nil {
			return nil, fmt.Errorf("--data: %w", err)
		}
	}
	if target == "" {
		return r, nil
	}
	u, err := h.app.Delivery.trusted.CheckURL(target)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if r.callback, err = h.newCallback(u.String(), true, "", caddy.NewReplacer()); err != nil {
		return nil, err
	}
	r.host = safedial.HostPort(u)
	r.callback.Traceparent = r.request.Header.Get("Traceparent")
	return r, nil
}

// loadDelivery returns the delivery options of a configuration, or nil if it has none.
func loadDelivery(file, adapter string) (*Delivery, error) {
	text, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var config struct {
		Apps struct {
			Callback struct {
				Delivery *Delivery `json:"delivery"`
			} `json:"callback"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return config.Apps.Callback.Delivery, nil
}

// loadSecrets returns the keys in the delivery options of a configuration as they are
// written: those of the Caddyfile here if none is named.
func loadSecrets(file, adapter string) ([]string, error) {
	delivery, err := loadDelivery(file, adapter)
	if err != nil || delivery == nil {
		return nil, err
	}
	return delivery.Secret, nil
}

// namedIn returns the callback URL in the request's body, or "" if there is none.
func namedIn(r *http.Request, field string) (string, error) {
	value, _, err := bodies.Find(r, bodies.Options{Field: field, Limit: r.ContentLength})
	return value, err
}

// loadQuietly provisions the app and a handler, with a log of warnings only. It calls f
// for the configuration once that log is in place.
func loadQuietly(f func() (*App, *Handler, error)) (*Handler, error) {
	apps := make(caddy.ModuleMap)
	ctx, err := quietContext(apps)
	if err != nil {
		return nil, err
	}
	app, h, err := f()
	if err != nil {
		return nil, err
	}
	apps["callback"] = caddyconfig.JSON(app, nil)
	module, err := ctx.LoadModuleByID("http.handlers.callback", caddyconfig.JSON(h, nil))
	if err != nil {
		return nil, err
	}
	return module.(*Handler), nil
}

// quietContext returns a Caddy context whose modules log warnings only.
func quietContext(apps caddy.ModuleMap) (caddy.Context, error) {
	return caddy.ProvisionContext(&caddy.Config{
		AppsRaw: apps,
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: "WARN"}}}},
	})
}

// quietLog returns a logger of warnings for code outside of modules.
func quietLog() (*zap.Logger, error) {
	if _, err := quietContext(nil); err != nil {
		return nil, err
	}
	return caddy.Log().Named("callback"), nil
}

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
