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

// gatewayFlags say which gateway is asked, and whether its answer is printed as
// JSON.
type gatewayFlags struct {
	caddy                    *Caddy
	address, config, adapter string
	json                     bool
}

func (f *gatewayFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	f.addAddress(cmd)
}

// addAddress adds the flags that say which gateway is asked.
func (f *gatewayFlags) addAddress(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.address, "address", "", "the address of the gateway's admin endpoint")
	flags.StringVarP(&f.config, "config", "c", "", "the gateway's configuration, which names its admin endpoint")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
}

// client asks the API of a gateway.
type client struct {
	caddy   *Caddy
	address string
}

func (f *gatewayFlags) client() (*client, error) {
	address, err := f.caddy.Address(f.address, f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("--config: finding the admin endpoint: %w", err)
	}
	return &client{f.caddy, address}, nil
}

// apiError is an answer of the API that is no success.
type apiError struct {
	status int
	detail string
}

func (e *apiError) Error() string { return e.detail }

func isNotFound(err error) bool {
	var refused *apiError
	return errors.As(err, &refused) && refused.status == http.StatusNotFound
}

// apiAnswer is an answer that can tell whether the API gave it. Another program at
// the address may answer anything with 200, which must not pass for a gateway
// without tasks.
type apiAnswer interface{ isOurs() bool }

// adminPath is where the API is on the admin endpoint.
const adminPath = "/callback/"

// get asks for a path of the API and decodes the answer into v.
func (c *client) get(path string, query url.Values, v any) error {
	return c.do(http.MethodGet, path, query, nil, v)
}

// do sends a request with a JSON body, unless that is nil, and decodes the answer
// into v, unless that is nil. It returns an [*apiError] if the API refuses.
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
		return fmt.Errorf("reading the answer from %s: %w", c.address, err)
	}
	if answer, ok := v.(apiAnswer); ok && !answer.isOurs() {
		return c.notOurs()
	}
	return nil
}

// send sends a request and returns its answer, whose status is below 400.
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
	// Each request has a connection of its own; open ones would pile up.
	header := http.Header{"Connection": {"close"}}
	resp, err := c.caddy.Request(c.address, method, uri, header, content)
	if err != nil {
		return nil, c.explain(err)
	}
	return resp, nil
}

func (c *client) notOurs() error {
	return fmt.Errorf("what answers at %s is not a gateway's admin endpoint; --address names another", c.address)
}

// explain takes the API's own words out of an error of [Caddy.Request].
func (c *client) explain(err error) error {
	text := err.Error()
	var problem struct {
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Error  string `json:"error"` // Caddy's own
	}
	if i := strings.IndexByte(text, '{'); i >= 0 {
		// Anything else than a problem document leaves it empty.
		_ = json.NewDecoder(strings.NewReader(text[i:])).Decode(&problem)
	}
	switch {
	case problem.Detail != "":
		return &apiError{problem.Status, namingFlags(problem.Detail)}
	case problem.Error != "":
		return &apiError{0, problem.Error}
	case strings.Contains(text, "HTTP 404"):
		return fmt.Errorf("the Caddy at %s has no callback module; --address names another", c.address)
	case strings.Contains(text, "HTTP "):
		return fmt.Errorf("asking the admin endpoint at %s: %w", c.address, err)
	default:
		return fmt.Errorf("no gateway answers at %s: %w; "+
			"start it, or name its admin endpoint with --address or --config", c.address, err)
	}
}

// namingFlags says of a parameter that the API refuses which flag it comes from.
func namingFlags(detail string) string {
	for _, f := range filters {
		if rest, ok := strings.CutPrefix(detail, f.parameter()+": "); ok {
			return "--" + f.flag + ": " + rest
		}
	}
	return detail
}

// taskPath is the path of a task, or of something below it. An ID that cannot be a
// segment of a path would name another path; it becomes one that no task has.
func taskPath(id string, below ...string) string {
	if id == "" || strings.ContainsAny(id, "./\\?#%") {
		id = " "
	}
	return strings.Join(append([]string{"tasks", url.PathEscape(id)}, below...), "/")
}

// withTask calls do with the ID of a task that the user names by its ID or by the
// first characters of it. do returns an [*apiError] if there is no such task.
func (c *client) withTask(id string, do func(id string) error) error {
	err := do(id)
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
		return fmt.Errorf("the IDs of several tasks begin with it; type more of it")
	}
	return do(tasks[0].ID)
}

// minPrefix is the length of the shortest beginning of an ID that stands for a
// task: with fewer characters, a slip of the finger would name one.
const minPrefix = 4

func isPrefix(id string) bool {
	return len(id) >= minPrefix && !strings.ContainsAny(id, "./\\?#% ")
}
