// The actions on one task, on the selected tasks, and on all tasks that match a filter.

const verbs = {
	__proto__: null,
	retry: {
		name: "Retry now", many: "Retry now", done: "will be retried now", from: ["delivering"],
		says: "The next attempt starts now. Later attempts follow the retry schedule.",
		question: (what) => `Retry ${what} now?`,
	},
	stop: {
		name: "Stop retrying", many: "Stop retrying", done: "stopped", from: ["delivering"], grave: true,
		says: "No further attempt is made and the task is dead. It can be redelivered later.",
		question: (what) => `Stop retrying ${what}?`,
	},
	redeliver: {
		name: "Redeliver…", many: "Redeliver", done: "redelivered", from: ["done", "dead"],
		says: "The callback is sent again, to the same URL or to another one. Its attempts are counted from 1 again.",
		question: (what) => `Redeliver ${what}?`,
	},
	cancel: {
		name: "Cancel task", many: "Cancel", done: "canceled", from: ["queued", "running"], grave: true,
		says: "A queued task does not start. A running task is interrupted. The callback has the verdict FAILED.",
		question: (what) => `Cancel ${what}?`,
	},
	delete: {
		name: "Delete", many: "Delete", done: "deleted", from: ["done", "dead"], grave: true,
		says: "The task, its result and its attempts are removed. This cannot be undone.",
		question: (what) => `Delete ${what}?`,
	},
};

const verbsFor = (state) => Object.keys(verbs).filter((verb) => verbs[verb].from.includes(state));

const actOn = (verb, id, body) => (verb === "delete"
	? call(at("tasks", id), { method: "DELETE" })
	: post(at("tasks", id, verb), body));

// actOnOne confirms and runs an action on one task, then calls after.
const actOnOne = (verb, task, after) => {
	const { name, done, says, question, grave } = verbs[verb];
	const url = verb === "redeliver" ? urlField(task.callback_url ?? task.callback_host) : undefined;
	confirmed({
		title: question("this task"),
		text: [element("p", "id", marked(task.task_id)), element("p", "", says), ...(url ? [url] : [])],
		yes: name.replace("…", ""),
		no: "Not now",
		grave,
		run: async () => {
			const other = url?.querySelector("input").value.trim();
			await actOn(verb, task.task_id, other ? { url: other } : undefined);
			after();
			return `Task ${shortID(task.task_id)} ${done}.`;
		},
	});
};

// urlField asks for another callback URL. It does not show the query of the known one,
// which may contain a secret.
const urlField = (known) => {
	const field = element("input", "");
	field.id = "redeliver-url";
	field.type = "url";
	field.placeholder = "The same URL as before";
	field.autocomplete = "off";
	const label = element("label", "", "URL");
	label.htmlFor = field.id;
	return element("p", "field", label, field, element("small", "", "Leave it empty to post to ", known ? marked(known) : "the same receiver", " again."));
};

// A selection is { ids } or { filters }: [name, value] pairs of a query.
const ask1000 = 1000; // IDs in one request

// parts are the requests for a selection, each with a query and a body.
const parts = (selection) => {
	if (!selection.ids) return [{ query: new URLSearchParams(selection.filters), body: undefined }];
	const made = [];
	for (let i = 0; i < selection.ids.length; i += ask1000) {
		made.push({ query: new URLSearchParams(), body: { ids: selection.ids.slice(i, i + ask1000) } });
	}
	return made;
};

// inParts runs a verb, or with dryRun only counts. The API handles a part of the tasks
// per request. most bounds the number of requests.
const inParts = async (verb, selection, { dryRun, signal, progress, most = Infinity }) => {
	const total = { matched: 0, changed: 0, failed: 0, reason: "", whole: true };
	let answers = 0;
	for (const { query, body } of parts(selection)) {
		if (dryRun) query.set("dry_run", "true");
		for (let more = true; more && !signal?.aborted; answers++) {
			if (answers >= most) return { ...total, whole: false };
			const part = await post(`tasks/${verb}?${query}`, body, dryRun ? signal : undefined);
			total.matched += part.matched ?? 0;
			total.changed += part.changed ?? 0;
			total.failed += part.failed ?? 0;
			total.reason ||= part.reason ?? "";
			progress?.(total);
			more = Boolean(part.next);
			if (more) query.set("after", part.next);
		}
	}
	return total;
};

const mostCounted = 20; // answers that a count waits for

// actOnMany counts first, so that the question has the number of tasks.
const actOnMany = async (verb, selection, after) => {
	const { many, done, says, question, grave } = verbs[verb];
	report("");
	let count;
	try {
		count = await inParts(verb, selection, { dryRun: true, most: mostCounted });
	} catch (problem) {
		report(problem.message);
		return;
	}
	const able = count.matched - count.failed;
	const what = `${count.whole ? "" : "more than "}${plural(able, "task")}`;
	const chosen = selection.ids ? plural(selection.ids.length, "selected task") : undefined;
	if (!able) {
		report(`${many}: it applies to none of the ${chosen ?? "tasks that match"}.${count.reason ? ` ${sentence(count.reason)}` : ""}`);
		return;
	}
	const left = selection.ids ? selection.ids.length - able : count.failed;
	confirmed({
		title: question(what),
		text: [
			...(selection.ids ? [] : [element("p", "", "Every task with:"), filtersOf(selection.filters)]),
			...(left > 0 ? [element("p", "", `It does not apply to ${number(left)} of them.`)] : []),
			element("p", "", says),
		],
		yes: `${many}: ${count.whole ? number(able) : "all"}`,
		no: "Not now",
		grave,
		run: async (progress, signal) => {
			const summary = (total) => `${plural(total.changed, "task")} ${done}${total.failed ? `, ${number(total.failed)} failed: ${total.reason}` : ""}`;
			const total = await inParts(verb, selection, { signal, progress: (so) => progress(`${summary(so)} so far`) });
			after();
			return `${summary(total)}${signal.aborted ? ", then stopped" : ""}.`;
		},
	});
};

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;

const filtersOf = (filters) => element("dl", "facts", ...filters.map(([name, value]) =>
	element("div", "", element("dt", "", filterNames[name] ?? name), element("dd", "", marked(value)))));

// pausing makes the button that pauses or resumes a queue or a host.
const pausing = (kind, name, paused, after) => {
	const made = button(paused ? "Resume" : "Pause", "quiet", () => {
		const go = async () => {
			await post(at(kind, name, paused ? "resume" : "pause"));
			after();
			return `${name} is ${paused ? "resumed" : "paused"}.`;
		};
		if (paused) {
			go().then(confirmDone, (problem) => report(problem.message));
			return;
		}
		confirmed({
			title: kind === "queues" ? "Pause this queue?" : "Pause this host?",
			text: [element("p", "id", marked(name)), element("p", "", kind === "queues"
				? "No gateway starts further tasks of this queue until you resume it. Running tasks finish. New tasks are accepted."
				: "No gateway makes further attempts to this host until you resume it. Its callbacks are kept.")],
			yes: "Pause",
			no: "Not now",
			run: go,
		});
	});
	made.ariaLabel = `${paused ? "Resume" : "Pause"} ${name}`;
	return made;
};
