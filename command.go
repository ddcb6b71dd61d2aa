package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// command is the command `caddy callback`.
var command = caddycmd.Command{
	Name:  "callback",
	Usage: "<command>",
	Short: "Runs tasks, and manages those of a running gateway",
	CobraFunc: func(cmd *cobra.Command) {
		cmd.AddCommand(shell.NewRunCommand(defaultTimeout, "caddy-callback/"+Version, runOnce),
			shell.NewKeyCommand(loadSecrets), shell.NewRepairCommand(repairFolder),
			shell.NewMigrateCommand(cli.Stores{Named: namedStore, Configured: configuredStore, Replicas: defaultReplicas}))
		cmd.AddCommand(shell.Commands()...)
		cmd.Args = cobra.ArbitraryArgs
		// The error must name the unknown command, not the first of its flags.
		cmd.DisableFlagParsing = true
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "--help" || args[0] == "-h":
				return cmd.Help()
			case strings.HasPrefix(args[0], "-"):
				return shell.Misused(cmd, fmt.Errorf("unknown flag %s", args[0]))
			default:
				return shell.Misused(cmd, fmt.Errorf("unknown command %q", args[0]))
			}
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

// run is one task from the command line: a Handler without a server, in front of an
// endpoint. Standard output is its client.
type run struct {
	app      *App
	h        *Handler
	request  *http.Request
	callback *task.Callback // nil if there is none
	host     string         // host and port of the callback
	log      *cli.Progress
}

// runOnce runs one task from the command line.
func runOnce(cmd *cobra.Command, o *cli.Run) error {
	log := cli.NewProgress(os.Stderr)
	folder, err := os.MkdirTemp("", "caddy-callback-")
	if err != nil {
		log.Line("making a folder for the task: %v", err)
		return shell.End(cmd, cli.ExitFailed)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // the folder is a temporary one
	r, err := newRun(o, log, folder)
	if err != nil {
		return shell.Misused(cmd, err)
	}
	interrupts := cli.Interrupts()
	if err := r.app.Start(); err != nil {
		log.Line("%v", err)
		return shell.End(cmd, cli.ExitFailed)
	}
	r.app.join()
	code, err := r.follow(interrupts)
	if err != nil {
		log.Line("%v", err)
		code = cli.ExitFailed
	}
	r.close()
	return shell.End(cmd, code)
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

// follow runs the task and returns the exit code. The error means that it was not
// accepted.
func (r *run) follow(interrupts <-chan os.Signal) (code int, err error) {
	s, err := r.app.enter()
	if err != nil {
		return 0, err
	}
	out := cli.NewOutput(r.log)
	x, err := r.h.claim(s, r.callback, r.host, out, r.request)
	if err != nil {
		s.leave()
		return 0, err
	}
	job := &cli.Job{
		ID: x.rec.ID, HasCallback: r.callback != nil, Tasks: s, Quit: s.quit,
		Run: func() {
			defer s.leave()
			r.serve(x)
		},
		Cancel: func() {
			x.settle(verdict{status: task.Failed, message: engine.ReasonCanceled, cut: context.Canceled})
		},
	}
	return job.Follow(out, r.log, interrupts), nil
}

// serve runs the task until it has its verdict.
func (r *run) serve(x *execution) {
	defer func() {
		// An aborted response panics so that a server closes its client's connection.
		if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
			panic(cause)
		}
	}()
	endpoint := caddyhttp.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error {
		if err := cli.Forward(w, req, r.log); err != nil {
			return caddyhttp.Error(http.StatusBadGateway, err)
		}
		return nil
	})
	_ = x.serve(r.request, endpoint) // the verdict has the error
}

// closeTimeout bounds the wait for a program that does not read the command's standard
// output.
const closeTimeout = 5 * time.Second

// close ends the task and closes the engine. Cleanup alone would close it in the
// background.
func (r *run) close() {
	s := r.app.store.Load()
	if s == nil {
		return
	}
	s.log.Store(zap.NewNop()) // remaining tasks have been reported
	s.quitNow(errStopped)
	_ = r.app.Stop()    // it never fails
	_ = r.app.Cleanup() // it never fails
	select {
	case <-s.closed:
	case <-time.After(closeTimeout):
	}
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

// repairFolder returns the path of a store folder. "" is that of the default.
func repairFolder(name string) (string, error) {
	module := &SQLiteEngine{Folder: name}
	err := module.Provision(caddy.Context{})
	return module.Folder, err
}

// configuredStore returns the store of a configuration.
func configuredStore(file, adapter string) (*cli.Store, error) {
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
	return newStoreOf(h.app.engine, h.app.settings())
}

// namedStore returns the store of a name: "sqlite:<folder>", or the URLs of a cluster,
// separated by commas. Only the first URL needs a scheme.
func namedStore(name cli.StoreName) (*cli.Store, error) {
	if folder, ok := strings.CutPrefix(name.Name, "sqlite:"); ok {
		switch {
		case folder == "":
			return nil, errors.New(`"sqlite:" needs a folder, such as sqlite:/var/lib/caddy/callback`)
		case name.Credentials != "":
			return nil, errors.New("a folder takes no credentials")
		}
		module := &SQLiteEngine{Folder: folder}
		if err := module.Provision(caddy.Context{}); err != nil {
			return nil, err
		}
		return newStoreOf(module, engine.Settings{})
	}
	scheme, _, ok := strings.Cut(name.Name, "://")
	if !ok {
		return nil, errors.New(`expected "sqlite:<folder>" or "nats://<host>:4222"`)
	}
	module := &NATSEngine{Credentials: name.Credentials, Replicas: name.Replicas}
	for url := range strings.SplitSeq(name.Name, ",") {
		if !strings.Contains(url, "://") {
			url = scheme + "://" + url
		}
		module.URLs = append(module.URLs, url)
	}
	if err := module.Provision(caddy.Context{}); err != nil {
		return nil, err
	}
	if err := module.Validate(); err != nil {
		return nil, err
	}
	return newStoreOf(module, engine.Settings{})
}

// newStoreOf returns the store of an engine, for a command. Its log has warnings only.
func newStoreOf(module engineModule, settings engine.Settings) (*cli.Store, error) {
	if _, err := quietContext(nil); err != nil {
		return nil, err
	}
	s := &cli.Store{
		Key: module.storeKey(), Place: module.place(),
		Open: func(ctx context.Context) (engine.Engine, error) {
			return module.open(ctx, settings, caddy.Log().Named("callback"))
		},
	}
	if local, ok := module.(*SQLiteEngine); ok {
		s.Folder = local.Folder
	}
	return s, nil
}
