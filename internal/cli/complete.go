package cli

import (
	"net/url"

	"github.com/spf13/cobra"
)

// complete makes the shell offer values for a flag.
func complete(cmd *cobra.Command, flag string, values func() []string) {
	offer := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values(), cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, offer); err != nil {
		cmd.PrintErrln(err) // a bug: the flag does not exist
	}
}

// completeOne makes the shell offer values for the one argument of a command.
func completeOne(values func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return values(), cobra.ShellCompDirectiveNoFileComp
	}
}

// named has the names of an item of a list of the API.
type named struct {
	Name string `json:"name"`
	Host string `json:"host"`
	ID   string `json:"id"`
}

// listed returns the names of the items of a list of the API. If the API cannot be
// called it returns none, because a shell completion cannot report errors.
func (f *gatewayFlags) listed(path string, name func(named) string) (names []string) {
	var items []named
	client, err := f.client()
	if err != nil || client.get(path, nil, &items) != nil {
		return nil
	}
	for _, item := range items {
		names = append(names, name(item))
	}
	return names
}

func (f *gatewayFlags) queueNames() []string {
	return f.listed("queues", func(n named) string { return n.Name })
}

func (f *gatewayFlags) hostNames() []string {
	return f.listed("hosts", func(n named) string { return n.Host })
}

func (f *gatewayFlags) scheduleIDs() []string {
	return f.listed("schedules", func(n named) string { return n.ID })
}

// taskIDs returns the IDs of the latest tasks in the given states.
func (f *gatewayFlags) taskIDs(states ...string) (ids []string) {
	var page taskPage
	client, err := f.client()
	if err != nil || client.get("tasks", url.Values{"state": states}, &page) != nil {
		return nil
	}
	tasks, err := page.decode()
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		ids = append(ids, t.ID)
	}
	return ids
}
