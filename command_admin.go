package callback

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// adminFlags say which gateway is asked, and how its answer is shown.
type adminFlags struct {
	address, config, adapter string
	json                     bool
}

func (f *adminFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.json, "json", false, "write JSON")
	flags.StringVar(&f.address, "address", "", "the address of the gateway's admin endpoint")
	flags.StringVarP(&f.config, "config", "c", "", "the gateway's configuration, which says where its admin endpoint is")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
}

// adminClient asks a gateway's admin endpoint.
type adminClient struct{ address string }

func (f *adminFlags) client() (*adminClient, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(f.address, nil, f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("finding the admin endpoint: %w", err)
	}
	return &adminClient{address}, nil
}

// adminError is what a gateway refused, or had no answer for.
type adminError struct {
	status int // 0 if it said none
	detail string
}

func (e *adminError) Error() string { return e.detail }

// adminAnswer is an answer that tells whether it is one of the API's.
type adminAnswer interface{ isOurs() bool }

// do asks for a path of the API and decodes the answer into v, unless that is
// nil. What else stands at the address may answer anything with 200: that must
// not be taken for a gateway without tasks.
func (c *adminClient) do(method, path string, query url.Values, v any) error {
	uri := adminPath + path
	if len(query) > 0 {
		uri += "?" + query.Encode()
	}
	// Each request has a connection of its own; kept open they would pile up.
	header := http.Header{"Connection": {"close"}}
	resp, err := caddycmd.AdminAPIRequest(c.address, method, uri, header, nil)
	if err != nil {
		return toldBy(c.address, err)
	}
	defer resp.Body.Close()
	if v == nil {
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent {
			return c.notOurs()
		}
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("reading the answer from %s: %w", c.address, err)
	}
	if answer, ok := v.(adminAnswer); ok && !answer.isOurs() {
		return c.notOurs()
	}
	return nil
}

func (c *adminClient) notOurs() error {
	return fmt.Errorf("what answers at %s is not a gateway's admin endpoint", c.address)
}

// toldBy takes out of the error of Caddy's client what the gateway said.
func toldBy(address string, err error) error {
	text := err.Error()
	var problem struct {
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Error  string `json:"error"` // Caddy's own
	}
	i := strings.IndexByte(text, '{')
	switch {
	case i >= 0 && json.Unmarshal([]byte(text[i:]), &problem) == nil && problem.Detail != "":
		return &adminError{problem.Status, problem.Detail}
	case problem.Error != "":
		return &adminError{0, problem.Error}
	case strings.Contains(text, "HTTP 404"):
		return &adminError{http.StatusNotFound, "the Caddy at " + address + " has no callback module"}
	default:
		return fmt.Errorf("asking the admin endpoint at %s: %w", address, err)
	}
}

// queueNames are those of the gateway, for the completion of a command line.
func (f *adminFlags) queueNames() (names []string) {
	var queues []struct {
		Name string `json:"name"`
	}
	client, err := f.client()
	if err != nil || client.do(http.MethodGet, "queues", nil, &queues) != nil {
		return nil
	}
	for _, q := range queues {
		names = append(names, q.Name)
	}
	return names
}

// taskIDs are the latest, for the completion of a command line.
func (f *adminFlags) taskIDs(states ...string) (ids []string) {
	var page struct {
		Tasks []struct {
			ID string `json:"task_id"`
		} `json:"tasks"`
	}
	client, err := f.client()
	if err != nil || client.do(http.MethodGet, "tasks", url.Values{"state": states}, &page) != nil {
		return nil
	}
	for _, t := range page.Tasks {
		ids = append(ids, t.ID)
	}
	return ids
}

// complete makes the shell offer values for a flag.
func complete(cmd *cobra.Command, flag string, values func() []string) {
	offer := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values(), cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, offer); err != nil {
		cmd.PrintErrln(err) // there is no such flag
	}
}
