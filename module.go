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
//     app_order.go: a warning about callbacks in front of authentication
//   - engine.go: the engines as modules
//   - caddyfile.go, caddyfile_queue.go, caddyfile_values.go: the grammars
//   - intercept.go: the `callback` handler makes a task of a request; callback.go
//     finds out what the request is owed, request.go keeps or refuses it
//   - execute.go: a task's handlers run, and the task gets its verdict
//   - deliver.go: the delivery options; internal/deliver makes the attempts
//   - queue.go: the `task_queue` handler accepts a request, or takes it over from
//     `callback`; queue_delay.go reads when it can start; queue_worker.go runs it;
//     queue_collection.go answers what is asked about it, and queue_wait.go once
//     something has changed; queue_options.go has the options
//   - status.go: the `task_status` handler answers what is asked about any task
//   - schedule.go: the schedules of a queue, and their runs
//   - admin.go, dashboard.go: the operators' API and page
//   - inbox.go: a receiver for trying things out
//   - command.go: the command line, which internal/cli has; command_load.go reads a
//     configuration for it, command_run.go runs one task without a server,
//     command_migrate.go and command_repair.go change stores
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
	caddy.RegisterModule(new(TaskStatus))
	caddy.RegisterModule(new(Inbox))
	caddy.RegisterModule(new(Dashboard))
	caddy.RegisterModule(new(AdminAPI))

	caddycmd.RegisterCommand(command)

	httpcaddyfile.RegisterGlobalOption("callback", parseApp)

	httpcaddyfile.RegisterHandlerDirective("callback", parseHandler)
	httpcaddyfile.RegisterDirective("task_queue", parseTaskQueue)
	httpcaddyfile.RegisterDirective("task_status", parseTaskStatus)
	// Outside of task_queue and callback, whose requests are tasks. These are
	// outside of what changes a response, so that a callback has what the client gets,
	// and inside of what compresses it.
	httpcaddyfile.RegisterDirectiveOrder("task_status", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterDirectiveOrder("task_queue", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterDirectiveOrder("callback", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterHandlerDirective("callback_inbox", parseInbox)
	httpcaddyfile.RegisterDirectiveOrder("callback_inbox", httpcaddyfile.Before, "respond")
	httpcaddyfile.RegisterHandlerDirective("task_dashboard", parseDashboard)
	httpcaddyfile.RegisterDirectiveOrder("task_dashboard", httpcaddyfile.Before, "respond")
}

// Version is that of this module; it goes out in the user-agent of every
// callback.
const Version = "0.1.0"
