// Hosts, queues and schedules, the worst first.

// worseHost orders hosts: failing ones first, by pending deliveries, then paused ones.
const worseHost = (a, b) => rankOf(b) - rankOf(a) || b.pending - a.pending || a.host.localeCompare(b.host);
const rankOf = (host) => (host.failures > 0 ? 2 : 0) + (host.paused ? 1 : 0);

const hostReason = ({ last_status: code, last_error: error = "" }) => (code && !error.includes(String(code)) ? `${code} ${error}` : error);

const hostPhrase = (host) => {
	if (host.paused) return doing("late", "Paused");
	if (host.failures > 0) return host.failing_since ? doing("bad", "Fails for", forHow(host.failing_since)) : doing("bad", "Fails");
	if (host.rate_limited) return doing("busy", "Waiting for the rate limit");
	return host.in_flight > 0 ? doing("busy", "Delivering") : doing("good", "Works");
};

const queuePhrase = (queue) => {
	if (queue.paused) return doing("late", "Paused");
	if (queue.max_queued && queue.queued >= queue.max_queued) return doing("bad", "Full");
	if (queue.rate_limited) return doing("busy", `Waiting for the rate limit, ${queue.rate}`);
	if (!queue.queued) return queue.running ? doing("busy", "Running") : doing("good", "Idle");
	return queue.oldest ? doing("busy", "Oldest waits for", forHow(queue.oldest)) : doing("busy", "Waiting");
};

const lists = {
	hosts: {
		title: "Hosts of receivers, the worst first",
		order: worseHost,
		keyOf: (host) => host.host,
		columns: [
			{ name: "Host", className: "name", cell: (h) => link(marked(h.host), tasksWith({ host: h.host, state: "delivering" })) },
			{ name: "Status", className: "doing-cell", cell: (h) => [hostPhrase(h), hostReason(h) && h.failures > 0 ? element("small", "reason", marked(hostReason(h))) : ""] },
			{ name: "Pending", className: "number", cell: (h) => number(h.pending) },
			{ name: "In flight", className: "number", cell: (h) => number(h.in_flight) },
			{ name: "Failed attempts in a row", className: "number", cell: (h) => number(h.failures) },
			{ name: "Failing since", className: "time", cell: (h) => h.failing_since && timeOf(h.failing_since) },
			{ name: "Next attempt", className: "time", cell: (h) => h.next_attempt_at && timeOf(h.next_attempt_at) },
			{ name: "Action", className: "act", unseen: true, cell: (h) => pausing("hosts", h.host, h.paused, refresh) },
		],
		empty: ["No callback is pending", "A host is listed while callbacks to it are pending, while it fails, and while it is paused."],
	},
	queues: {
		title: "Queues, the longest wait first",
		order: (a, b) => Number(b.paused) - Number(a.paused) || (a.oldest ?? "z").localeCompare(b.oldest ?? "z") || a.name.localeCompare(b.name),
		keyOf: (queue) => queue.name,
		columns: [
			{ name: "Queue", className: "name", cell: (q) => link(marked(q.name), tasksWith({ queue: q.name })) },
			{ name: "Status", className: "doing-cell", cell: queuePhrase },
			{
				name: "Waiting", className: "number", cell: (q) => [link(number(q.queued), tasksWith({ queue: q.name, state: "queued" })),
					q.max_queued ? element("small", "", ` of ${number(q.max_queued)}`) : "", q.max_queued ? share(q.queued, q.max_queued) : ""],
			},
			{ name: "Delayed", className: "number", cell: (q) => number(q.delayed) },
			{ name: "Running", className: "number", cell: (q) => [number(q.running), element("small", "", ` ${q.workers ? `with ${plural(q.workers, "worker")} here` : "no worker here"}`)] },
			{ name: "Oldest", className: "time", cell: (q) => q.oldest && timeOf(q.oldest) },
			{ name: "Action", className: "act", unseen: true, cell: (q) => pausing("queues", q.name, q.paused, refresh) },
		],
		empty: ["No queue yet", "Add ", element("code", "", "task_queue <name>"), " to a route to create a queue."],
	},
	schedules: {
		title: "Schedules, the next run first",
		order: (a, b) => (a.next_run ?? "z").localeCompare(b.next_run ?? "z"),
		keyOf: (schedule) => schedule.id ?? JSON.stringify([schedule.queue, schedule.schedule, schedule.timezone, schedule.uri]),
		columns: [
			{ name: "Schedule", className: "code", cell: (s) => marked([s.schedule, s.timezone].filter(Boolean).join(" ")) },
			{ name: "Queue", className: "name", cell: (s) => link(marked(s.queue), tasksWith({ queue: s.queue })) },
			{ name: "Request", className: "code", cell: (s) => marked(`${s.method} ${s.uri}`) },
			{ name: "Last run", className: "time", cell: (s) => s.last_run && timeOf(s.last_run) },
			{ name: "Next run", className: "time", cell: (s) => s.next_run && timeOf(s.next_run) },
			{ name: "Action", className: "act", unseen: true, cell: (s) => s.id && runNow(s) },
		],
		empty: ["No schedule", "The option ", element("code", "", "schedule <cron>"), " of a queue creates a task at every run time."],
	},
};

// runNow makes the button that runs a schedule now.
const runNow = (schedule) => {
	const made = button("Run now", "quiet", () => confirmed({
		title: "Run this schedule now?",
		text: [element("p", "id", marked(`${schedule.method} ${schedule.uri}`)), element("p", "", "A task is added to the queue ", marked(schedule.queue), ". The next run is not changed.")],
		yes: "Run now",
		no: "Not now",
		run: async () => {
			const { task_id: id } = await post(at("schedules", schedule.id, "run"));
			refresh();
			return `Task ${id} was added to the queue ${schedule.queue}.`;
		},
	}));
	made.ariaLabel = `Run now: ${schedule.method} ${schedule.uri}`;
	return made;
};

const showList = async (name, signal) => {
	const { title, columns, empty, order, keyOf } = lists[name];
	const rows = (await call(name, { signal })).sort(order);
	drawTable(byID(name).querySelector(".rows"), { title, columns, rows, keyOf, empty: emptyList(...empty), head: `${name}-title` });
};
