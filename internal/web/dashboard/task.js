// One task: its state, its actions, its attempts and its callback.

let shownTask; // the document on the page, as text: it is drawn anew only if it has changed

const showTask = async (id, signal) => {
	if (!sameTask(id)) {
		byID("task-title").replaceChildren(marked(id));
		byID("document").replaceChildren();
		shownTask = undefined;
	}
	byID("back").href = lastList;
	let task;
	try {
		task = await call(at("tasks", id), { signal });
	} catch (problem) {
		if (problem.status !== 404 && problem.status !== 400) throw problem;
		shownTask = undefined;
		byID("copy-id").hidden = true;
		byID("document").replaceChildren(emptyList("No such task", "Finished tasks are removed after a while. Check that the ID is complete: ", marked(id)));
		return false;
	}
	byID("copy-id").hidden = false;
	const text = JSON.stringify(task);
	if (text !== shownTask) {
		shownTask = text;
		drawTask(task);
	}
	return task.state !== "done" && task.state !== "dead";
};

const sameTask = (id) => shownTask !== undefined && JSON.parse(shownTask).task_id === id;

const drawTask = (task) => {
	// Keep open sections open, and keep the focus.
	const place = byID("document");
	const open = new Set([...place.querySelectorAll("details[open] > summary")].map((summary) => summary.dataset.key));
	const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
	const scrolled = place.querySelector(".sideways")?.scrollLeft;
	const callback = place.querySelector("#callback");
	const reason = reasonOf(task);
	const attempts = task.attempts ?? [];
	place.replaceChildren(
		element("div", "verdicts", phrase(task), ...(task.status ? [verdictOf(task)] : []), ...(reason ? [element("p", "wrong", marked(reason))] : [])),
		actionsOf(task),
		section("Task", factsOf(task)),
		...(attempts.length ? [section(plural(attempts.length, "attempt"), attemptsOf(attempts))] : []),
		...(task.callback_host && task.status ? [callback ?? callbackSection(task)] : []),
		section("Timeline", timelineOf(task)),
	);
	for (const summary of place.querySelectorAll("details > summary")) if (open.has(summary.dataset.key)) summary.parentElement.open = true;
	if (scrolled) place.querySelector(".sideways").scrollLeft = scrolled;
	if (focused) (place.querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? byID("task-title")).focus({ preventScroll: true });
};

const section = (title, ...content) => element("section", "part", element("h3", "", title), ...content);

// actionsOf returns the buttons of the actions, each with a description.
const actionsOf = (task) => element("ul", "actions", ...verbsFor(task.state).filter((verb) => verb !== "redeliver" || task.callback_host).map((verb) => {
	const { name, says, grave } = verbs[verb];
	const made = button(name, grave ? "grave" : "", () => actOnOne(verb, task, refresh));
	made.dataset.key = verb;
	const exact = verb === "retry" && task.next_attempt_at && Date.parse(task.next_attempt_at) > Date.now()
		? ["The next attempt, ", since(task.next_attempt_at), ", starts now instead."] : [says];
	return element("li", "", made, element("span", "", ...exact));
}));

const factsOf = (task) => {
	const made = element("dl", "facts");
	const fact = (name, value, wide) => {
		if (value) made.append(element("div", wide ? "wide" : "", element("dt", "", name), element("dd", "", ...[value].flat())));
	};
	fact("Request", task.path && marked([task.method, task.path].filter(Boolean).join(" ")), true);
	fact("Callback URL", task.callback_url && marked(task.callback_url), true);
	fact("Result", task.result && [`${bytes(task.result.size)} `, link("Download", api + at("tasks", task.task_id, "result"))]);
	fact("Request body", task.request_size > 0 && bytes(task.request_size));
	fact("Route", task.route && marked(task.route));
	fact("Queue", task.queue && link(marked(task.queue), tasksWith({ queue: task.queue })));
	fact("Callback host", task.callback_host && link(marked(task.callback_host), tasksWith({ host: task.callback_host })));
	fact("Upstream status", task.upstream_status && String(task.upstream_status));
	fact("Ran for", task.started_at && task.finished_at && duration(Date.parse(task.finished_at) - Date.parse(task.started_at)));
	fact("Accepted", task.created_at && stamp(task.created_at));
	fact("Verdict at", task.finished_at && stamp(task.finished_at));
	fact("Delivered", task.delivered_at && stamp(task.delivered_at));
	fact("Next attempt", task.next_attempt_at && task.state === "delivering" && [stamp(task.next_attempt_at), ", ", since(task.next_attempt_at)], true);
	fact("Error", task.error && marked(task.error), true);
	return made;
};

const happenings = {
	__proto__: null,
	accepted: "Accepted", started: "Started", next_start: "Next start", next_poll: "Next poll", verdict: "Verdict", attempt: "Attempt",
	next_attempt: "Next attempt", redelivered: "Redelivered manually", delivered: "Delivered", dead: "Given up",
};
const happeningTones = { __proto__: null, delivered: "good", dead: "bad", next_attempt: "late", next_start: "late" };

const timelineOf = (task) => element("ol", "timeline", ...(task.timeline ?? []).map((happening) => {
	const { at: time, event, start, attempt, status, upstream_status: upstream, duration_ms: ms } = happening;
	const said = [stamp(time), element("strong", "", happenings[event] ?? marked(event), event === "attempt" ? ` ${attempt}` : "")];
	const soft = (...text) => said.push(element("span", "soft", ...text));
	if (start > 1) soft(`start ${start}`);
	if (status) said.push(element("span", "tag", marked(status)));
	if (upstream) soft(`upstream ${upstream}`);
	if (event === "attempt") said.push(outcome(happening), element("span", "soft", milliseconds(ms)));
	if (Date.parse(time) > Date.now()) said.push(since(time));
	if (event === "delivered" && task.callback_host) soft(marked(task.callback_host));
	const tone = event === "attempt" ? (accepted(happening) ? "good" : "bad") : happeningTones[event] ?? "";
	return element("li", tone, element("p", "event", ...said));
}));

byID("copy-id").addEventListener("click", () => copy(JSON.parse(shownTask).task_id, byID("copy-id")));
