// Tables, and those of queues, hosts and schedules.

const timeOf = (at) => {
	const made = element("time", "");
	made.dateTime = at;
	made.title = new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
	made.textContent = since(at);
	return made;
};

const since = (at) => {
	const ms = Date.now() - Date.parse(at);
	if (Number.isNaN(ms)) return "–";
	if (ms < -1000) return `in ${span(-ms)}`;
	return ms < 1000 ? "now" : `${span(ms)} ago`;
};

const shortly = (at) => new Date(at).toLocaleString(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });

// span is a duration to be read at a glance.
const span = (ms) => {
	const seconds = ms / 1000;
	if (seconds < 60) return `${Math.floor(seconds)} s`;
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
	if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
	return `${Math.floor(seconds / 86400)} days`;
};

setInterval(() => {
	for (const shown of document.querySelectorAll("time")) {
		const text = since(shown.dateTime);
		if (shown.textContent !== text) shown.textContent = text;
	}
}, 1000);

const link = (text, href) => {
	const made = element("a", "", text);
	made.href = href;
	return made;
};

const tasksWith = (filters) => "#/tasks?" + new URLSearchParams(filters);

// tableOf makes a table, which a phone shows as cards: each cell knows its
// column's name. A column is [name, cell of a row, class].
const tableOf = (title, columns, rows) => {
	const table = element("table", "grid");
	table.append(element("caption", "unseen", title));
	const head = table.createTHead().insertRow();
	for (const [name] of columns) {
		const made = element("th", "", name);
		made.scope = "col";
		head.append(made);
	}
	const body = table.createTBody();
	for (const row of rows) {
		const made = body.insertRow();
		columns.forEach(([name, cell, className], i) => {
			const content = cell(row) ?? "–";
			const at = element(i ? "td" : "th", className ?? "", ...(Array.isArray(content) ? content : [content]));
			if (!i) at.scope = "row";
			at.dataset.name = name;
			made.append(at);
		});
	}
	return table;
};

// replaceTable puts a table in place of the one before it. A link that has the
// focus keeps it; if it is gone, the head of its section gets it.
const replaceTable = (place, made, head) => {
	const focused = place.contains(document.activeElement) ? document.activeElement.hash : undefined;
	place.replaceChildren(made);
	if (focused) (place.querySelector(`a[href="${CSS.escape(focused)}"]`) ?? byID(head)).focus();
};

const emptyList = (title, ...hint) => element("div", "empty", element("p", "empty-title", title), element("p", "", ...hint));

const lists = {
	queues: {
		title: "Queues, with what waits and what runs",
		columns: [
			["Queue", (q) => link(marked(q.name), tasksWith({ queue: q.name })), "name"],
			["Waiting", (q) => [link(number(q.queued), tasksWith({ queue: q.name, state: "queued" })), q.max_queued ? element("small", "", ` of ${number(q.max_queued)}`) : "", q.max_queued ? share(q.queued, q.max_queued) : ""], "number"],
			["Running", (q) => number(q.running), "number"],
			["Workers here", (q) => (q.workers ? number(q.workers) : "none"), "number"],
			["Oldest", (q) => q.oldest && timeOf(q.oldest)],
			["State", (q) => (q.paused ? "paused" : "on")],
			["Starts at most", (q) => (q.attempts ? number(q.attempts) : undefined), "number"],
		],
		empty: ["No queue yet", "A queue is there when a route has ", element("code", "", "task_queue <name>"), "."],
	},
	hosts: {
		title: "Hosts with pending callbacks",
		columns: [
			["Host", (h) => link(marked(h.host), tasksWith({ host: h.host, state: "delivering" })), "name"],
			["Pending", (h) => number(h.pending), "number"],
			["In flight", (h) => number(h.in_flight), "number"],
			["Next attempt", (h) => h.next_attempt_at && timeOf(h.next_attempt_at)],
			["Failing since", (h) => h.failing_since && [timeOf(h.failing_since), element("small", "when", plural(h.failures, "attempt"))]],
			["Last error", (h) => (h.last_error || h.last_status) && marked([h.last_status, h.last_error].filter(Boolean).join(" "))],
			["Deliveries", (h) => (h.paused ? "paused" : "on")],
		],
		empty: ["No callback is pending", "A host is listed while callbacks to it are pending, while it fails, and while it is paused."],
	},
	schedules: {
		title: "Schedules, with their last and next run",
		columns: [
			["Queue", (s) => link(marked(s.queue), tasksWith({ queue: s.queue })), "name"],
			["Schedule", (s) => marked([s.schedule, s.timezone].filter(Boolean).join(" ")), "code"],
			["Request", (s) => marked(`${s.method} ${s.uri}`), "code"],
			["Last run", (s) => s.last_run && [timeOf(s.last_run), element("small", "when", shortly(s.last_run))]],
			["Next run", (s) => s.next_run && [timeOf(s.next_run), element("small", "when", shortly(s.next_run))]],
		],
		empty: ["No schedule", "A queue's option ", element("code", "", "schedule <cron>"), " makes a task at every run time."],
	},
};

// showList draws a list anew if it has changed.
const shownLists = {};
const showList = async (name, signal) => {
	const { title, columns, empty } = lists[name];
	const rows = await call(name, { signal });
	const text = JSON.stringify(rows);
	if (shownLists[name] === text) return;
	shownLists[name] = text;
	replaceTable(byID(name).querySelector(".rows"), rows.length ? tableOf(title, columns, rows) : emptyList(...empty), `${name}-title`);
};
