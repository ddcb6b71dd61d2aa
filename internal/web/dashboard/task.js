// One task: what is known of it, its timeline and its attempts.

const events = {
	accepted: "Accepted", started: "Started", next_start: "Next start", verdict: "Verdict", attempt: "Attempt",
	next_attempt: "Next attempt", redelivered: "Redelivered by hand", delivered: "Delivered", dead: "Given up",
};
const eventTones = { delivered: "good", dead: "bad", next_attempt: "late", next_start: "late" };

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
		task = await call("tasks/" + encodeURIComponent(id), { signal });
	} catch (problem) {
		if (problem.status !== 404 && problem.status !== 400) throw problem;
		shownTask = undefined;
		byID("document").replaceChildren(emptyList("No such task", "Ended tasks are forgotten after a while. Look whether the ID is whole: ", marked(id)));
		return false;
	}
	const text = JSON.stringify(task);
	if (text !== shownTask) {
		shownTask = text;
		drawTask(task);
	}
	return task.state !== "done" && task.state !== "dead";
};

const sameTask = (id) => shownTask !== undefined && JSON.parse(shownTask).task_id === id;

const drawTask = (task) => {
	// What was opened stays open, and what had the focus has it.
	const open = [...byID("document").querySelectorAll("details")].map((details) => details.open);
	const focused = byID("document").contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
	const buttons = element("p", "bulk", ...buttonsFor(task.state, (name) => `${name}…`, (verb) => act(verb, task.task_id, refresh)));
	for (const button of buttons.children) button.dataset.key = button.textContent;
	byID("document").replaceChildren(
		element("div", "verdicts", chip(task), verdict(task) ?? "", buttons),
		...(task.error ? [element("p", "failure", marked(task.error))] : []),
		factsOf(task),
		element("h3", "", "Timeline"),
		timelineOf(task),
	);
	byID("document").querySelectorAll("details").forEach((details, i) => { details.open = open[i] ?? details.open; });
	if (focused) (byID("document").querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? byID("task-title")).focus();
};

const factsOf = (task) => {
	const made = element("dl", "facts");
	const fact = (name, value) => {
		if (value) made.append(element("div", "", element("dt", "", name), element("dd", "", value)));
	};
	fact("Queue", task.queue && link(marked(task.queue), tasksWith({ queue: task.queue })));
	fact("Callback host", task.callback_host && link(marked(task.callback_host), tasksWith({ host: task.callback_host })));
	fact("Upstream status", task.upstream_status && String(task.upstream_status));
	fact("Accepted", task.created_at && exactly(task.created_at));
	fact("Ran for", task.started_at && task.finished_at && duration(Date.parse(task.finished_at) - Date.parse(task.started_at)));
	fact("Attempts", String(task.attempts?.length ?? 0));
	fact("Next attempt", task.next_attempt_at && task.state === "delivering" && timeOf(task.next_attempt_at));
	return made;
};

const exactly = (at) => new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

const clock = (at) => {
	const made = element("span", "at", new Date(at).toLocaleTimeString(undefined, { hour12: false }));
	made.title = at;
	return made;
};

const day = (at) => new Date(at).toLocaleDateString(undefined, { weekday: "short", month: "short", day: "numeric" });

// timelineOf says the day wherever it is another: retries go on for days.
const timelineOf = (task) => {
	const made = element("ol", "timeline");
	let today;
	(task.timeline ?? []).forEach((happening, i) => {
		const item = happening.event === "attempt" ? attemptOf(happening, i) : eventOf(happening, task);
		if (day(happening.at) !== today) {
			today = day(happening.at);
			item.prepend(element("p", "day", today));
		}
		made.append(item);
	});
	return made;
};

const eventOf = ({ at, event, start, status, upstream_status: upstream }, task) => {
	const title = element("strong", "", events[event] ?? marked(event));
	const parts = [clock(at), title];
	if (start > 1) parts.push(element("span", "soft", `the ${start}. time`));
	if (status) parts.push(verdict({ status }));
	if (upstream) parts.push(element("span", "soft", `upstream ${upstream}`));
	if (Date.parse(at) > Date.now()) parts.push(timeOf(at));
	if (event === "delivered" && task.callback_host) parts.push(element("span", "soft", marked(task.callback_host)));
	return element("li", eventTones[event] ?? statuses[status]?.[0] ?? "", element("p", "event", ...parts));
};

const attemptOf = ({ at, attempt, status_code: code, duration_ms: ms, error, response }, i) => {
	const success = code >= 200 && code < 300;
	const tone = success ? "good" : "bad";
	const made = element("li", tone, element("p", "event",
		clock(at),
		element("strong", "", `Attempt ${attempt}`),
		element("span", `verdict ${tone}`, sign(success ? "✓" : "✕"), code ? String(code) : "no answer"),
		element("span", "soft", milliseconds(ms)),
	));
	if (error) made.append(element("p", "reason", marked(error)));
	if (response) {
		const answer = raw("Answer", "its first bytes", scrolling(element("pre", "long", marked(response)), `Answer to attempt ${attempt}`));
		answer.firstElementChild.dataset.key = `answer ${i}`;
		made.append(answer);
	}
	return made;
};
