package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

// gatewayFlags are the flags that select a gateway, and --json.
type gatewayFlags struct {
	caddy                    *Caddy
	address, config, adapter string
	json                     bool
}

func (f *gatewayFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	f.addAddress(cmd)
}

// addAddress adds the flags that select a gateway.
func (f *gatewayFlags) addAddress(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.address, "address", "", "the address of the gateway's admin endpoint")
	flags.StringVarP(&f.config, "config", "c", "", "the gateway's configuration, which names its admin endpoint")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
}

// client calls the API of a gateway.
type client struct {
	caddy   *Caddy
	address string
}

func (f *gatewayFlags) client() (*client, error) {
	// Caddy takes an address without a scheme; people copy the URL from a browser.
	named := f.address
	if host, ok := strings.CutPrefix(named, "http://"); ok {
		named = strings.TrimSuffix(host, "/")
	}
	address, err := f.caddy.Address(named, f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("--config: finding the admin endpoint: %w", err)
	}
	return &client{f.caddy, address}, nil
}

// apiError is an error response of the API.
type apiError struct {
	status int
	detail string
}

func (e *apiError) Error() string { return e.detail }

func isNotFound(err error) bool {
	var refused *apiError
	return errors.As(err, &refused) && refused.status == http.StatusNotFound
}

// apiAnswer is a response that can be told from that of another program. Otherwise a
// program that answers everything with 200 would look like a gateway without tasks.
type apiAnswer interface{ isOurs() bool }

// adminPath is the path of the API on the admin endpoint.
const adminPath = "/callback/"

// get sends a GET request to the API and decodes the response into v.
func (c *client) get(path string, query url.Values, v any) error {
	return c.do(http.MethodGet, path, query, nil, v)
}

// do sends a request and decodes the response into v, unless v is nil. body is sent as
// JSON, unless it is nil. If the API refuses the request, the error is an [*apiError].
func (c *client) do(method, path string, query url.Values, body, v any) error {
	resp, err := c.send(method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if v == nil {
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
			return c.notOurs()
		}
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return c.notOurs()
		}
		return fmt.Errorf("reading the response of %s: %w", c.address, err)
	}
	if answer, ok := v.(apiAnswer); ok && !answer.isOurs() {
		return c.notOurs()
	}
	return nil
}

// send sends a request and returns the response. Its status is below 400.
func (c *client) send(method, path string, query url.Values, body any) (*http.Response, error) {
	uri := adminPath + path
	if len(query) > 0 {
		uri += "?" + query.Encode()
	}
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	// Each request has its own connection, because nothing would close idle ones.
	header := http.Header{"Connection": {"close"}}
	resp, err := c.caddy.Request(c.address, method, uri, header, content)
	if err != nil {
		return nil, c.explain(err)
	}
	return resp, nil
}

func (c *client) notOurs() error {
	return fmt.Errorf("the server at %s is not a gateway's admin endpoint; set the right address with --address", c.address)
}

// explain extracts the API's message from an error of [Caddy.Request].
func (c *client) explain(err error) error {
	text := err.Error()
	var problem struct {
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Error  string `json:"error"` // Caddy's own
	}
	if i := strings.IndexByte(text, '{'); i >= 0 {
		// If the text is not a problem document, problem stays empty.
		_ = json.NewDecoder(strings.NewReader(text[i:])).Decode(&problem)
	}
	switch {
	case problem.Detail != "":
		return &apiError{problem.Status, namingFlags(problem.Detail)}
	case problem.Error != "":
		return &apiError{0, problem.Error}
	case strings.Contains(text, "HTTP 404"):
		return fmt.Errorf("the Caddy at %s has no callback module; set the right address with --address", c.address)
	case strings.Contains(text, "HTTP "):
		return fmt.Errorf("calling the admin endpoint at %s: %w", c.address, err)
	default:
		return fmt.Errorf("no gateway answers at %s: %w; "+
			"start it, or set its admin endpoint with --address or --config", c.address, err)
	}
}

// namingFlags replaces the name of a refused parameter with that of its flag.
func namingFlags(detail string) string {
	for _, f := range filters {
		if rest, ok := strings.CutPrefix(detail, f.parameter()+": "); ok {
			return "--" + f.flag + ": " + rest
		}
	}
	return detail
}

// taskPath returns the path of a task, or of a resource below it. An ID with a slash or
// a dot could lead to another resource, so it is replaced by an ID that no task has.
func taskPath(id string, below ...string) string {
	if id == "" || strings.ContainsAny(id, "./\\?#%") {
		id = " "
	}
	return strings.Join(append([]string{"tasks", url.PathEscape(id)}, below...), "/")
}

// withTask calls do with the full ID of a task. The user may give only its first
// characters. do returns an [*apiError] if there is no such task.
func (c *client) withTask(id string, do func(id string) error) error {
	id = strings.ToLower(id) // as the gateway writes IDs
	err := do(id)
	if isNotFound(err) && len(id) < minPrefix {
		return fmt.Errorf("give at least %d characters of the task's ID", minPrefix)
	}
	if !isNotFound(err) || !isPrefix(id) {
		return err
	}
	var page taskPage
	if found := c.get("tasks", url.Values{"id": {id}, "limit": {"2"}}, &page); found != nil {
		return err
	}
	tasks, unreadable := page.decode()
	switch {
	case unreadable != nil:
		return unreadable
	case len(tasks) == 0 || !strings.HasPrefix(tasks[0].ID, id):
		return err
	case len(tasks) > 1 || page.Next != "":
		return fmt.Errorf("several tasks have an ID that begins with this; give more characters")
	}
	return do(tasks[0].ID)
}

// minPrefix is the minimum length of an abbreviated ID. With fewer characters, a typing
// mistake could name another task.
const minPrefix = 4

func isPrefix(id string) bool {
	return !strings.ContainsAny(id, "./\\?#% ")
}
