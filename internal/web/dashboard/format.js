// Formats of numbers, durations and times, and the phrase for a task's state.

const {
	byID, marked, element, duration, plural, statuses, sign, scrolling, raw, follow, stamp, showTimes, zone, remembered, remember,
	copy, curlCommand, indented,
} = shared;

const number = (n) => (n ?? 0).toLocaleString("en");

const milliseconds = (ms) => (ms === undefined || ms === null ? "–" : duration(ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms)));

const bytes = (n) => {
	if (n < 1024) return plural(n, "byte");
	const unit = ["KiB", "MiB", "GiB"][Math.min(Math.floor(Math.log2(n) / 10), 3) - 1];
	const value = n / 1024 ** (["KiB", "MiB", "GiB"].indexOf(unit) + 1);
	return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
};

// span formats a duration roughly.
const span = (ms) => {
	const seconds = Math.max(ms, 0) / 1000;
	if (seconds < 60) return `${Math.floor(seconds)} s`;
	if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
	if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
	return `${Math.floor(seconds / 86400)} days`;
};

// timeOf shows a time, with the time since then below it.
const timeOf = (at) => element("span", "when", stamp(at), element("small", "", since(at)));

// since shows a relative time that is updated: "3 min ago", or "in 2 h".
const since = (at) => {
	const made = element("time", "since");
	made.dateTime = at;
	made.textContent = sinceText(at);
	return made;
};

const sinceText = (at) => {
	const ms = Date.now() - Date.parse(at);
	if (Number.isNaN(ms)) return "–";
	if (ms < -1000) return `in ${span(-ms)}`;
	return ms < 1000 ? "now" : `${span(ms)} ago`;
};

// forHow shows the time since a start, updated: "12 min".
const forHow = (at) => {
	const made = since(at);
	made.className = "for";
	made.textContent = span(Date.now() - Date.parse(at));
	return made;
};

setInterval(() => {
	for (const shown of document.querySelectorAll("time.since, time.for")) {
		const text = shown.className === "for" ? span(Date.now() - Date.parse(shown.dateTime)) : sinceText(shown.dateTime);
		if (shown.textContent !== text) shown.textContent = text;
	}
}, 1000);

const states = ["queued", "running", "delivering", "done", "dead"];
const stateNames = { __proto__: null, queued: "Queued", running: "Running", delivering: "Delivering", done: "Done", dead: "Dead" };

// The tones, by what the operator should do. bad: act. late: watch. busy: in progress.
// good: fine. plain: nothing to do.

// phraseOf returns the tone and the phrase for a task's state.
const phraseOf = (task) => {
	const tries = task.attempts?.length ?? task.attempt_count ?? 0;
	const next = task.next_attempt_at && Date.parse(task.next_attempt_at) > Date.now() ? task.next_attempt_at : undefined;
	switch (task.state) {
	case "queued":
		return next ? ["plain", "Starts", since(next)] : ["plain", "Waiting for a worker"];
	case "running":
		return ["busy", "Running for", forHow(task.started_at ?? task.created_at)];
	case "delivering":
		if (!tries) return ["busy", "Delivering"];
		return next ? ["late", "Retries", since(next)] : ["late", "Retrying now"];
	case "dead":
		return ["bad", tries ? `Given up after ${plural(tries, "attempt")}` : "Given up"];
	case "done": {
		const delivered = task.delivered_at ? ", delivered" : "";
		if (task.status === "COMPLETE") return ["good", task.delivered_at ? "Delivered" : "Complete"];
		if (task.status === "TIMEOUT") return ["plain", `Timed out${delivered}`];
		return ["plain", `${task.error === "canceled" ? "Canceled" : "Failed"}${delivered}`];
	}
	default:
		return ["plain", marked(task.state ?? "unknown")];
	}
};

const doing = (tone, ...phrase) => element("span", `doing ${tone}`, ...phrase.flatMap((part, i) => (i ? [" ", part] : [part])));

const phrase = (task) => doing(...phraseOf(task));

// verdictOf is a tag with the verdict. It has no colour, so that each row has only one.
const verdictOf = (task) => {
	if (!task.status) return undefined;
	const made = element("span", "tag", marked(task.status));
	return task.upstream_status ? element("span", "tagged", made, " ", element("small", "", String(task.upstream_status))) : made;
};

// callbackOf draws the attempts as dots, the last one on the right. A dot is filled if
// the receiver accepted.
const dotsShown = 8;
const callbackOf = (task) => {
	const attempts = task.attempts ?? [];
	if (!attempts.length) return task.callback_host && task.status ? element("small", "", "no attempt yet") : undefined;
	const dots = attempts.slice(-dotsShown).map((attempt) => element("span", accepted(attempt) ? "dot full" : "dot"));
	const strip = element("span", "dots", ...dots);
	strip.ariaHidden = "true";
	const last = attempts.at(-1);
	return element("span", "tagged", strip, element("span", "unseen", `${plural(attempts.length, "attempt")}, the last: `),
		element("small", "", last.status_code ? String(last.status_code) : "no answer"));
};

const accepted = (attempt) => attempt.status_code >= 200 && attempt.status_code < 300;

// reasonOf returns why a task is not done, or why it failed.
const reasonOf = (task) => {
	if (task.reason) return task.reason;
	if (task.last_error) return task.last_error;
	if (task.state === "delivering" || task.state === "dead") {
		const last = task.attempts?.at(-1);
		if (last && !accepted(last)) return [last.status_code, last.error].filter(Boolean).join(" ");
	}
	return task.error;
};

// shortID is the beginning of an ID. IDs begin with the time, so it is long enough to
// differ within a millisecond.
const shortID = (id) => id.slice(0, 18);
