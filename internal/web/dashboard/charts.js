// Small charts, drawn of numbers only.

const { byID, marked, element, duration, plural, statuses, sign, scrolling, raw, follow } = shared;

const svg = (name, attributes, ...content) => {
	const made = document.createElementNS("http://www.w3.org/2000/svg", name);
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
	made.append(...content);
	return made;
};

const chartWidth = 240, chartHeight = 44;

const fewestPoints = 24;

// sparkline draws series of numbers, the newest at the right, on one scale from 0.
// A few take their part of the width: they are of a short time.
const sparkline = (series) => {
	const chart = svg("svg", { class: "spark", viewBox: `0 0 ${chartWidth} ${chartHeight}`, preserveAspectRatio: "none", "aria-hidden": "true" });
	const highest = Math.max(...series.flatMap((s) => s.values), 0);
	series.forEach(({ values, tone }, i) => {
		if (values.length < 2) return;
		const missing = Math.max(fewestPoints - values.length, 0);
		const x = (n) => ((n + missing) / (values.length + missing - 1) * chartWidth).toFixed(1);
		const y = (value) => (chartHeight - 2 - (highest ? value / highest : 0) * (chartHeight - 6)).toFixed(1);
		const line = values.map((value, n) => `${n ? "L" : "M"}${x(n)} ${y(value)}`).join("");
		if (i === 0) chart.append(svg("path", { class: `area ${tone}`, d: `${line}L${chartWidth} ${chartHeight}L${x(0)} ${chartHeight}Z` }));
		chart.append(svg("path", { class: `line ${tone}`, d: line }));
	});
	return chart;
};

// share draws how much of something is taken.
const share = (taken, of) => {
	const part = of > 0 ? Math.min(taken / of, 1) : 0;
	return svg("svg", { class: "share", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
		svg("rect", { class: "whole", width: 100, height: 6, rx: 3 }),
		...(part ? [svg("rect", { class: "part", width: Math.max(part * 100, 3).toFixed(1), height: 6, rx: 3 })] : []));
};

// A rate is an average of the last minute: below one a second, of so many in it.
const rate = (perSecond = 0) => {
	if (perSecond < 1) return [number(Math.round(perSecond * 60)), "in the last minute"];
	return [perSecond < 10 ? String(Number(perSecond.toFixed(1))) : number(Math.round(perSecond)), "per second"];
};
const briefRate = (perSecond) => rate(perSecond).join(" ").replace(" in the last minute", "").replace(" per second", "/s");

const number = (n) => (n ?? 0).toLocaleString("en");

const milliseconds = (ms) => (ms === undefined || ms === null ? "–" : duration(ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms)));

// tile is a figure with its chart. Its parts are changed in place, so that
// nothing jumps; a screen reader that comes to it reads the figure as it is then.
const tile = (title) => {
	const figure = element("p", "figure"), notes = element("p", "under"), chart = element("div", "chart");
	byID("now").append(element("div", "tile", element("h2", "", title), figure, chart, notes));
	return ([text, unit], under, series) => {
		figure.replaceChildren(text, " ", element("small", "", unit));
		notes.textContent = under;
		chart.replaceChildren(sparkline(series));
	};
};

const tiles = {
	accepted: tile("Accepted"),
	delivered: tile("Delivered"),
	failed: tile("Failed"),
	latency: tile("Latency"),
};

// The API has no history of latencies: it is what this page has seen.
const latencies = [];
const latenciesKept = 120;

const showNow = (overview) => {
	const { rates = {}, latency = {}, history = [] } = overview;
	// A gateway that has just been started has a long line of nothing.
	const begin = history.findIndex((point) => point.accepted || point.delivered || point.failed || point.timed_out);
	const past = history.slice(Math.max(0, begin < 0 ? 0 : Math.min(begin - 1, history.length - fewestPoints)));
	const of = (name) => past.map((point) => point[name] ?? 0);
	latencies.push([latency.delivery_p50_ms ?? 0, latency.delivery_p95_ms ?? 0]);
	if (latencies.length > latenciesKept) latencies.shift();
	tiles.accepted(rate(rates.accepted), `${briefRate(rates.completed)} completed`, [{ tone: "plain", values: of("accepted") }]);
	tiles.delivered(rate(rates.delivered), `${briefRate(rates.attempts_failed)} attempts failed`, [{ tone: "good", values: of("delivered") }]);
	tiles.failed(rate((rates.failed ?? 0) + (rates.timed_out ?? 0)), `${briefRate(rates.timed_out)} timed out`,
		[{ tone: "bad", values: past.map((point) => (point.failed ?? 0) + (point.timed_out ?? 0)) }]);
	const { task_p50_ms: task, task_p95_ms: slowTask, delivery_p50_ms: callback, delivery_p95_ms: slow } = latency;
	tiles.latency([milliseconds(callback), "median of callbacks"],
		[callback != null && `p95 ${milliseconds(slow)}`, task != null && `tasks ${milliseconds(task)}, p95 ${milliseconds(slowTask)}`].filter(Boolean).join(" · ") || "none in the last minute",
		[{ tone: "late", values: latencies.map((l) => l[1]) }, { tone: "plain", values: latencies.map((l) => l[0]) }]);
};
