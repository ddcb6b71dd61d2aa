package callback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

// command is `caddy callback`. Its subcommands are what is done with tasks from
// a shell.
var command = caddycmd.Command{
	Name:  "callback",
	Usage: "<command>",
	Short: "Runs tasks, and shows and changes those of a running gateway",
	CobraFunc: func(cmd *cobra.Command) {
		cmd.AddCommand(newRunCommand(), newTasksCommand(), newShowCommand(), newRedeliverCommand(),
			newCancelCommand(), newPurgeCommand(), newListenCommand(), newMigrateCommand(), newRepairCommand())
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usage(cmd, fmt.Errorf("there is no command %q", args[0]))
		}
	},
}

// The exit codes of `caddy callback run`.
const (
	exitComplete    = 0
	exitFailed      = 1
	exitUsage       = 2
	exitTimeout     = 3
	exitUndelivered = 4
)

// errExit ends the command line with exit code 1 and without a word more.
var errExit = errors.New("exit")

// exit makes Caddy's command line end with a code. What there is to say has
// been said.
func exit(cmd *cobra.Command, code int) error {
	cmd.SilenceErrors = true
	switch code {
	case 0:
		return nil
	case 1:
		return errExit
	default:
		// Caddy does not export the error that carries the code.
		end := func(caddycmd.Flags) (int, error) { return code, nil }
		return caddycmd.WrapCommandFuncForCobra(end)(cmd, nil)
	}
}

// usage says what is wrong with a command line.
func usage(cmd *cobra.Command, err error) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\nSee %[1]s --help.\n", cmd.CommandPath(), err)
	return exit(cmd, exitUsage)
}

// runFlags are the flags of `caddy callback run` as they are given.
type runFlags struct {
	to, method, data    string
	headers             []string
	callbackURL, format string
	timeout             string
	config, adapter     string
}

func newRunCommand() *cobra.Command {
	f := new(runFlags)
	cmd := &cobra.Command{
		Use:   "run --to <url> [--data <text>|@<file>|@-] [--callback-url <url>]",
		Short: "Runs one task and posts its callback",
		Long: `
Sends one request, writes the response to standard output, and posts it to the
callback URL as the gateway would: with the same verdict, encoding, signature
and retries. No server is needed. If --callback-url is not given, the data's own
callback_url is called; without either, the task just runs.

Interrupting cancels the task, and the callback says so. Interrupting again
gives up.

Exit codes: 0 the task is COMPLETE, 1 it FAILED, 2 the command line is wrong,
3 the task's TIMEOUT has passed, 4 the callback could not be delivered.`,
		Example: `  caddy callback run --to http://app:9000/train --data @job.json \
      --callback-url https://c.example/hook --timeout 2h`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.SetFlagErrorFunc(usage)
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.to, "to", "", "where the request goes (required)")
	flags.StringVar(&f.data, "data", "", "the request's body: text, @file, or @- for standard input")
	flags.StringVar(&f.method, "method", http.MethodPost, "the request's method")
	flags.StringArrayVarP(&f.headers, "header", "H", nil, `a header of the request, "Name: value"; repeatable`)
	flags.StringVar(&f.callbackURL, "callback-url", "", "where the result is posted")
	flags.StringVar(&f.timeout, "timeout", defaultTimeout.String(), "how long the task may take")
	flags.StringVar(&f.format, "format", formatForm, "what is posted: form, json or raw")
	flags.StringVarP(&f.config, "config", "c", "", "a configuration whose delivery options apply: retries, signing keys")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	return cmd
}

// run checks the flags and runs the task.
func (f *runFlags) run(cmd *cobra.Command) error {
	log := newProgress(os.Stderr)
	folder, err := os.MkdirTemp("", "caddy-callback-")
	if err != nil {
		log.line("making a folder for the task: %v", err)
		return exit(cmd, exitFailed)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // what is left is in a temporary folder
	r, err := f.newRun(log, folder)
	if err != nil {
		return usage(cmd, err)
	}
	interrupts := trapInterrupts()
	if err := r.app.Start(); err != nil {
		log.line("%v", err)
		return exit(cmd, exitFailed)
	}
	r.app.join()
	code := r.main(interrupts)
	r.close()
	return exit(cmd, code)
}

// newRun makes a run of the flags, with its store in a folder. Its errors name the
// flag.
func (f *runFlags) newRun(log *progress, folder string) (*run, error) {
	timeout, err := caddy.ParseDuration(f.timeout)
	if err != nil || timeout <= 0 {
		return nil, fmt.Errorf("--timeout: %q is not a positive duration such as 90s, 10m or 1d", f.timeout)
	}
	switch f.format {
	case formatForm, formatJSON, formatRaw:
	default:
		return nil, fmt.Errorf("--format: %q is none of form, json, raw", f.format)
	}
	h, err := loadQuietly(func() (*App, *Handler, error) {
		// A power failure ends the command too, so that its store needs no sync.
		store := &SQLiteEngine{Folder: folder, Sync: caddy.Duration(time.Hour)}
		app := &App{EngineRaw: caddyconfig.JSONModuleObject(store, "engine", "sqlite", nil)}
		if f.config != "" || f.adapter != "" {
			app.Delivery, err = loadDelivery(f.config, f.adapter)
		}
		return app, &Handler{Timeout: caddy.Duration(timeout), Format: f.format}, err
	})
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	r := &run{app: h.app, h: h, log: log}
	if r.request, err = f.request(); err != nil {
		return nil, err
	}
	target, flag := f.callbackURL, "--callback-url"
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
	r.callback, r.host = h.newCallback(u.String(), true, ""), safedial.HostPort(u)
	r.callback.Traceparent = r.request.Header.Get("Traceparent")
	return r, nil
}

// loadDelivery returns the delivery options of a configuration, nil if it has
// none.
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

// request makes the task's request of the flags.
func (f *runFlags) request() (*http.Request, error) {
	u, err := url.Parse(f.to)
	switch {
	case f.to == "":
		return nil, errors.New("--to is missing; it says where the request goes")
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("--to: %q is not an http or https URL", f.to)
	case !isToken(f.method):
		return nil, fmt.Errorf("--method: %q is not a method", f.method)
	}
	body, err := readData(f.data)
	if err != nil {
		return nil, fmt.Errorf("--data: %w", err)
	}
	r, err := http.NewRequest(f.method, f.to, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("--to: %w", err)
	}
	r.Header.Set("User-Agent", "caddy-callback/"+Version)
	named := make(map[string]bool)
	for _, field := range f.headers {
		name, value, ok := strings.Cut(field, ":")
		value = strings.TrimSpace(value)
		if !ok || !isToken(name) || value != fieldValue(value) {
			return nil, fmt.Errorf(`--header: %q is not "Name: value"`, field)
		}
		name = http.CanonicalHeaderKey(name)
		switch {
		case name == "Host":
			r.Host = value
		case named[name]:
			r.Header.Add(name, value)
		default:
			r.Header.Set(name, value)
		}
		named[name] = true
	}
	if len(body) > 0 && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/octet-stream")
		if json.Valid(body) {
			r.Header.Set("Content-Type", "application/json")
		}
	}
	return r, nil
}

// readData returns what --data stands for.
func readData(data string) ([]byte, error) {
	file, ok := strings.CutPrefix(data, "@")
	switch {
	case !ok:
		return []byte(data), nil
	case file == "-":
		return io.ReadAll(os.Stdin)
	default:
		return os.ReadFile(file)
	}
}

// namedIn returns the callback that the request's own body names, "" if none.
func namedIn(r *http.Request, field string) (string, error) {
	value, _, err := bodies.Find(r, bodies.Options{Field: field, Limit: r.ContentLength})
	return value, err
}
