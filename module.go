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
//   - app.go: the app's options and lifecycle; app_store.go: the store that is
//     open, across reloads; app_generations.go: which configuration is alive;
//     app_queues.go: what a configuration's queues have in common; app_order.go: a
//     warning about callbacks in front of authentication
//   - engine.go: the engines as modules
//   - caddyfile.go, caddyfile_queue.go, caddyfile_values.go: the grammars
//   - intercept.go: a request becomes a task; intercept_request.go reads it,
//     intercept_header.go guards its headers, intercept_hop.go ends loops,
//     intercept_problem.go refuses it
//   - intercept_exchange.go: the task runs and gets its verdict;
//     intercept_capture.go copies its response
//   - deliver.go: the delivery options; internal/deliver makes the attempts
//   - profiles.go: other services' ways to ask for a callback and to make it
//   - queue.go: a request waits its turn; queue_request.go stores it,
//     queue_idempotency.go stores it once, queue_worker.go runs it,
//     queue_collection.go answers what is asked about it, queue_result.go sends its
//     result, queue_options.go is what the operator says of it
//   - schedule.go: the schedules of a queue, and their runs
//   - admin.go, dashboard.go: the operators' API and page
//   - inbox.go: a receiver for trying things out
//   - command.go: the command line; command_run.go: one task without a server,
//     with command_progress.go on a terminal; command_tasks.go: the tasks of
//     one, with command_table.go, command_admin.go, command_show.go and
//     command_actions.go; command_listen.go, command_migrate.go and
//     command_repair.go
//   - metrics.go, tracing.go, events.go: what monitoring sees
//
// What is promised: a request that was accepted with a callback gets its
// callback, at least once, with exactly one verdict, whatever crashes, a power
// failure included.
package callback

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(new(SQLiteEngine))
	caddy.RegisterModule(new(NATSEngine))
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
