package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/encode"
)

// Run is the task of `caddy callback run`.
type Run struct {
	Request *http.Request
	// CallbackURL is where the result is posted. It is empty without --callback-url.
	CallbackURL string
	Timeout     time.Duration
	Format      string
	// Config and Adapter name a configuration whose delivery options apply. Both are
	// empty if the flags are not given.
	Config, Adapter string
}

// runFlags are the flags of `caddy callback run`.
type runFlags struct {
	to, method, data    string
	headers             []string
	callbackURL, format string
	timeout             string
	config, adapter     string
}

// NewRunCommand returns the command that runs one task. execute runs the task and
// returns the command's error. timeout is the default timeout, and userAgent the
// default User-Agent of the request.
func (c *Caddy) NewRunCommand(timeout time.Duration, userAgent string, execute func(*cobra.Command, *Run) error) *cobra.Command {
	f := new(runFlags)
	cmd := &cobra.Command{
		Use:   "run --to <url> [--data <text>|@<file>|@-] [--callback-url <url>]",
		Short: "Runs one task and delivers its callback",
		Long: `
Sends one request, prints the response to standard output, and posts it to the
callback URL as the gateway would: with the same verdict, encoding, signature and
retries. No server is needed. Without --callback-url, the callback_url in the data
is used; without either, the task just runs.

The last line on standard error has the task's ID, and whether its callback was
delivered.

An interrupt cancels the task, and its callback says so. Another one gives up.

Exit codes: 0 the task is COMPLETE, 1 it FAILED, 2 the command line is wrong,
3 the verdict is TIMEOUT, 4 the callback could not be delivered.`,
		Example: `  caddy callback run --to http://app:9000/train --data @job.json \
      --callback-url https://c.example/hook --timeout 2h`,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			run, err := f.parse(c, userAgent)
			if err != nil {
				return c.Misused(cmd, err)
			}
			return execute(cmd, run)
		},
	}
	c.Flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.to, "to", "", "where the request goes (required)")
	flags.StringVar(&f.data, "data", "", "the request's body: text, @file, or @- for standard input")
	flags.StringVar(&f.method, "method", http.MethodPost, "the request's method")
	flags.StringArrayVarP(&f.headers, "header", "H", nil, `a header of the request, "Name: value"; repeatable`)
	flags.StringVar(&f.callbackURL, "callback-url", "", "where the result is posted")
	flags.StringVar(&f.timeout, "timeout", timeout.String(), "how long the task may take")
	flags.StringVar(&f.format, "format", encode.FormatForm, "what is posted: "+alternatives(encode.Formats()))
	flags.StringVarP(&f.config, "config", "c", "", "a configuration whose delivery options apply: retries, signing keys")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	complete(cmd, "format", encode.Formats)
	return cmd
}

// parse checks the flags. Its errors name the flag.
func (f *runFlags) parse(c *Caddy, userAgent string) (*Run, error) {
	timeout, err := c.ParseDuration(f.timeout)
	switch {
	case err != nil || timeout <= 0:
		return nil, fmt.Errorf("--timeout: %q is not a positive duration such as 90s, 10m or 1d", f.timeout)
	case !slices.Contains(encode.Formats(), f.format):
		return nil, fmt.Errorf("--format: %q is not one of %s", f.format, strings.Join(encode.Formats(), ", "))
	}
	request, err := f.request()
	if err != nil {
		return nil, err
	}
	if request.Header.Get("User-Agent") == "" {
		request.Header.Set("User-Agent", userAgent)
	}
	return &Run{request, f.callbackURL, timeout, f.format, f.config, f.adapter}, nil
}

// request returns the request of the task.
func (f *runFlags) request() (*http.Request, error) {
	u, err := url.Parse(f.to)
	switch {
	case f.to == "":
		return nil, errors.New("--to is missing; set it to the URL of the request")
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("--to: %q is not an http or https URL", f.to)
	case !httpguts.ValidHeaderFieldName(f.method): // RFC 9110 allows the same characters
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
	for _, field := range f.headers {
		name, value, ok := strings.Cut(field, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok, !httpguts.ValidHeaderFieldName(name), !httpguts.ValidHeaderFieldValue(value):
			return nil, fmt.Errorf(`--header: %q is not "Name: value"`, field)
		case strings.EqualFold(name, "Host"):
			r.Host = value
		default:
			r.Header.Add(name, value)
		}
	}
	if len(body) > 0 && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/octet-stream")
		if json.Valid(body) {
			r.Header.Set("Content-Type", "application/json")
		}
	}
	return r, nil
}

// readData returns the data of --data: a text, a file or standard input.
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
