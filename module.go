// Package callback gives any HTTP service behind Caddy callbacks, without a
// line changed in it: a client adds callback_url to its JSON request, and when
// the response is there the gateway POSTs it to that URL, with the task's ID
// and status in the headers.
//
//	client ── POST {…, "callback_url": …} ─▶ Handler ─▶ reverse_proxy ─▶ app
//	                                            │ claim        │
//	                                            ▼              ▼
//	                                         engine ◀── settle: the result
//	                                            │
//	receiver ◀── POST response=… ─────────── deliverer
//
// The package reads in the order in which the data flows:
//
//   - module.go: what is registered with Caddy
//   - app.go: the app's options and life; engines.go: the engine's, across
//     reloads
//   - caddyfile.go: the grammars
//   - intercept.go: a request becomes a task; request.go reads it
//   - exchange.go: the task runs and gets its verdict; capture.go copies its
//     response
//   - deliver.go: a result becomes a callback that arrives; post.go makes the
//     attempts, hosts.go says whose turn it is, lanes.go is where the others
//     wait, delivery_options.go is what the operator says to all that
//   - queue.go: a request waits its turn; worker.go runs it, collection.go
//     answers what is asked about it, schedule.go makes tasks of a clock
//   - admin.go, dashboard.go: the API that tells of tasks and changes them;
//     overview.go is what it tells of this node
//   - command.go: the command line; run.go: one task without a server,
//     tasks_command.go: the tasks of one
//   - metrics.go
//
// What is promised: a request that was accepted with a callback gets its
// callback, at least once, with exactly one verdict, whatever crashes.
package callback

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(new(Handler))
	caddy.RegisterModule(new(TaskQueue))
	caddy.RegisterModule(new(Inbox))
	caddy.RegisterModule(new(Dashboard))
	caddy.RegisterModule(new(AdminAPI))

	caddycmd.RegisterCommand(command)

	httpcaddyfile.RegisterGlobalOption("callback", parseApp)

	httpcaddyfile.RegisterHandlerDirective("callback", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("callback", httpcaddyfile.Before, "invoke")
	httpcaddyfile.RegisterDirective("task_queue", parseTaskQueue)
	httpcaddyfile.RegisterDirectiveOrder("task_queue", httpcaddyfile.Before, "handle")
	httpcaddyfile.RegisterHandlerDirective("callback_inbox", parseInbox)
	httpcaddyfile.RegisterDirectiveOrder("callback_inbox", httpcaddyfile.Before, "respond")
	httpcaddyfile.RegisterHandlerDirective("task_dashboard", parseDashboard)
	httpcaddyfile.RegisterDirectiveOrder("task_dashboard", httpcaddyfile.Before, "respond")
}

// Version is that of this module; it goes out in the user-agent of every
// callback.
const Version = "0.1.0"
