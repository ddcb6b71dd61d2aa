// A task's attempts, side by side, so that differences are easy to see.

// The parts of an attempt's duration, in order.
const durationParts = [
	["dns_ms", "DNS", "one"], ["connect_ms", "connect", "two"], ["tls_ms", "TLS", "three"], ["first_byte_ms", "first byte", "four"],
];

// partsOf draws the parts of an attempt's duration, with the numbers below.
const partsOf = (attempt) => {
	const timing = attempt.timing ?? attempt;
	const parts = durationParts.filter(([key]) => timing[key] > 0);
	if (!parts.length) return "";
	const whole = Math.max(attempt.duration_ms ?? 0, parts.reduce((sum, [key]) => sum + timing[key], 0), 1);
	let x = 0;
	const bars = parts.map(([key, , tone]) => {
		const width = Math.max(timing[key] / whole * 100, 1);
		const bar = svg("rect", { class: tone, x: x.toFixed(2), width: width.toFixed(2), height: 6 });
		x += width;
		return bar;
	});
	return element("div", "",
		svg("svg", { class: "parts", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "whole", width: 100, height: 6 }), ...bars),
		element("ul", "parts-said", ...parts.map(([key, name, tone]) => element("li", "", element("i", tone), `${name} ${milliseconds(timing[key])}`))));
};

const outcome = (attempt) => {
	const good = accepted(attempt);
	return element("span", `outcome ${good ? "good" : "bad"}`, sign(good ? "✓" : "✕"), attempt.status_code ? String(attempt.status_code) : "No answer");
};

// headersOf shows headers in a closed section: attempts mostly differ elsewhere.
const headersOf = (headers, label) => {
	const list = pairsOf(headers);
	if (!list.length) return undefined;
	const lines = element("dl", "headers", ...list.map(({ name, value }) => element("div", "", element("dt", "", marked(name), ": "), element("dd", "", marked(value)))));
	const made = raw(plural(list.length, "header"), "", lines);
	made.firstElementChild.dataset.key = label;
	return made;
};

// pairsOf returns headers as { name, value }, from either JSON form.
const pairsOf = (headers) => {
	if (!headers) return [];
	if (Array.isArray(headers)) return headers.map((one) => (Array.isArray(one) ? { name: one[0], value: one[1] } : one));
	return Object.entries(headers).flatMap(([name, values]) => [values].flat().map((value) => ({ name, value })));
};

const answerOf = (attempt, n) => {
	if (!attempt.response) return undefined;
	const text = indented(attempt.response) ?? attempt.response;
	return scrolling(element("pre", "answer", marked(text)), `Answer to attempt ${n}`);
};

const attemptRows = [
	["Time", ({ at: time }) => timeOf(time)],
	["Duration", (attempt) => element("div", "", milliseconds(attempt.duration_ms), partsOf(attempt))],
	["Connected to", (attempt) => attempt.remote_addr && element("span", "code", marked(attempt.remote_addr))],
	["Error", (attempt) => attempt.error && element("span", "wrong", marked(attempt.error))],
	["Answer", answerOf],
	["Headers sent", (attempt, n) => headersOf(attempt.request_headers, `sent ${n}`)],
	["Headers received", (attempt, n) => headersOf(attempt.response_headers, `received ${n}`)],
];

// attemptsOf makes the table, the latest attempt first. first is the number of the
// oldest one: earlier ones are not kept.
const attemptsOf = (attempts) => {
	const columns = attempts.map((attempt, i) => [attempt, attempt.attempt ?? i + 1]).reverse();
	const table = element("table", "attempts", element("caption", "unseen", "Attempts, the latest first"));
	const head = element("tr", "", element("td", ""));
	for (const [attempt, n] of columns) {
		const made = element("th", "", `Attempt ${n} `, outcome(attempt));
		made.scope = "col";
		head.append(made);
	}
	table.append(element("thead", "", head));
	const body = table.createTBody();
	for (const [name, cell] of attemptRows) {
		const cells = columns.map(([attempt, n]) => cell(attempt, n));
		if (!cells.some(Boolean)) continue;
		const title = element("th", "", name);
		title.scope = "row";
		body.append(element("tr", "", title, ...cells.map((content) => element("td", "", content || element("span", "none", "–")))));
	}
	return scrolling(element("div", "sideways", table), "Attempts, the latest first");
};
