// Package callback adds callbacks to any HTTP service behind Caddy, without a change to
// the service. A client adds callback_url to its JSON request. When the service has
// responded, the gateway POSTs the response to that URL, with the task's ID and status
// in the headers.
//
//	client ── POST {…, "callback_url": …} ─▶ Handler ─▶ reverse_proxy ─▶ app
//	                                            │ claim        │
//	                                            ▼              ▼
//	                                         engine ◀── settle: the result
//	                                            │
//	receiver ◀── POST response=… ─────────── deliverer
//
// The files, in the order in which data flows through them:
//
//   - module.go: what is registered with Caddy
//   - app.go: the app's options and lifecycle; app_store.go: the store that is
//     open, across reloads, and which configuration uses it; app_routes.go: what the
//     routes say: warnings about their order, and which of them are traced
//   - engine.go: the engines as modules
//   - caddyfile.go, caddyfile_queue.go, caddyfile_values.go: the grammars
//   - intercept.go: the `callback` handler makes a request a task; callback.go
//     decides whether it is one, and finds its callback
//   - execute.go: a task's handlers run, and the task gets its verdict
//   - deliver.go: the delivery options; internal/deliver makes the attempts
//   - queue.go: the `task_queue` handler accepts a request, or takes it over from
//     `callback`; queue_worker.go runs it; queue_options.go has the options;
//     queue_poll.go polls endpoints that answer later
//   - schedule.go: schedules, which add tasks to a queue
//   - status.go: the `task_status` handler, and callbacks with a link to a result that is
//     too large to be posted; internal/taskapi answers what clients ask about tasks
//   - web.go: the operators' API, and the dashboard; internal/web has the pages
//   - inbox.go: the `callback_inbox` handler, a receiver for tests and demonstrations
//   - command.go: what the command line needs of Caddy, and the task that it runs
//     without a server; internal/cli has the commands
//   - monitoring.go: metrics, events, and alerts to the operator
//
// The package promises that a request accepted with a callback gets its callback, at
// least once, with exactly one verdict, whatever crashes, a power failure included.
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
	// Before intercept, so that a callback has the response that the client gets, but
	// after encode, so that it is not compressed. task_status is first: its requests are
	// no tasks.
	httpcaddyfile.RegisterDirectiveOrder("task_status", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterDirectiveOrder("task_queue", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterDirectiveOrder("callback", httpcaddyfile.Before, "intercept")
	httpcaddyfile.RegisterHandlerDirective("callback_inbox", parseInbox)
	httpcaddyfile.RegisterDirectiveOrder("callback_inbox", httpcaddyfile.Before, "respond")
	httpcaddyfile.RegisterHandlerDirective("task_dashboard", parseDashboard)
	httpcaddyfile.RegisterDirectiveOrder("task_dashboard", httpcaddyfile.Before, "respond")
}

// Version is the version of this module. It is part of the User-Agent of every
// callback.
const Version = "0.1.0"
