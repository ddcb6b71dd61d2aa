package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// pauseFlags are the flags of `caddy callback pause` and `resume`.
type pauseFlags struct {
	gateway       gatewayFlags
	queues, hosts []string
}

func (c *Caddy) newPauseCommand(name string) *cobra.Command {
	f := &pauseFlags{gateway: gatewayFlags{caddy: c}}
	cmd := &cobra.Command{
		Use:   name + " --queue <name> | --host <host>",
		Short: "Pauses queues and hosts",
		Long: `
Pauses queues, whose tasks then do not start, and hosts, to which no callbacks are
then delivered. What is in flight goes on. It holds on every gateway of the store,
and until they are resumed.`,
		Example: `  caddy callback pause --host c.example:443
  caddy callback pause --queue train`,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, name) },
	}
	if name == "resume" {
		cmd.Short = "Resumes paused queues and hosts"
		cmd.Long = `
Resumes queues and hosts that are paused.`
		cmd.Example = `  caddy callback resume --host c.example:443`
	}
	cmd.Long += `

Exit codes: 0 done, 1 the gateway did not answer, 2 the command line is wrong.`
	c.Flags(cmd)
	cmd.Flags().StringArrayVar(&f.queues, "queue", nil, "this queue; repeatable")
	cmd.Flags().StringArrayVar(&f.hosts, "host", nil, "this host, with its port; repeatable")
	complete(cmd, "queue", f.gateway.queueNames)
	complete(cmd, "host", f.gateway.hostNames)
	f.gateway.add(cmd)
	return cmd
}

// pauseAnswer is the API's response to pause and resume.
type pauseAnswer struct {
	Name string `json:"name"`
}

func (a *pauseAnswer) isOurs() bool { return a.Name != "" }

func (f *pauseFlags) run(cmd *cobra.Command, name string) error {
	c := f.gateway.caddy
	if len(f.queues)+len(f.hosts) == 0 {
		return c.Misused(cmd, errors.New("--queue or --host is missing"))
	}
	client, err := f.gateway.client()
	if err != nil {
		return c.Failed(cmd, err)
	}
	for _, list := range []struct {
		kind  string
		names []string
	}{{"queue", f.queues}, {"host", f.hosts}} {
		for _, item := range list.names {
			path := list.kind + "s/" + url.PathEscape(item) + "/" + name
			var answer pauseAnswer
			if err := client.do(http.MethodPost, path, nil, nil, &answer); err != nil {
				return c.Failed(cmd, fmt.Errorf("%s %s: %w", list.kind, item, err))
			}
			if f.gateway.json {
				_ = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{list.kind: item}) // the change is done, even if it cannot be printed
				continue
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s is %sd\n", list.kind, web.TerminalText(item), name)
		}
	}
	return nil
}
