// Charts with axes. They are drawn from numbers only.

const svg = (name, attributes, ...content) => {
	const made = document.createElementNS("http://www.w3.org/2000/svg", name);
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
	made.append(...content);
	return made;
};

// share draws the used part of a limit.
const share = (taken, of) => {
	const part = of > 0 ? Math.min(taken / of, 1) : 0;
	return svg("svg", { class: "share", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
		svg("rect", { class: "whole", width: 100, height: 6, rx: 3 }),
		...(part ? [svg("rect", { class: "part", width: Math.max(part * 100, 3).toFixed(1), height: 6, rx: 3 })] : []));
};

// nice returns the smallest round number that is at least n.
const nice = (n) => {
	const power = 10 ** Math.floor(Math.log10(n));
	return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * power >= n * 0.999) * power;
};

const chartHeight = 168, margin = { top: 12, right: 12, bottom: 24, left: 58 };
const gridLines = 4;

const clockText = (time, seconds) => stamp(new Date(time).toISOString()).textContent.slice(11, seconds ? 19 : 16);

// newChart makes a chart. Its series are { name, tone, values } of the same times.
const newChart = (title, unit, format) => {
	const place = element("div", "plot");
	const legend = element("p", "legend");
	const heading = element("h4", "", title, " ", element("small", "", unit));
	byID("charts").append(element("figure", "chart", element("figcaption", "", heading, legend), place));
	const chart = { title, unit, format, place, legend, at: undefined, times: [], series: [] };
	scrolling(place, title);
	place.addEventListener("pointermove", (event) => point(chart, nearest(chart, event.clientX - place.getBoundingClientRect().left)));
	place.addEventListener("pointerleave", () => point(chart, undefined));
	place.addEventListener("blur", () => point(chart, undefined));
	place.addEventListener("keydown", (event) => {
		const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
		if (!by || !chart.times.length) return;
		event.preventDefault();
		const last = chart.times.length - 1;
		point(chart, Math.min(Math.max((chart.at ?? last + (by < 0 ? 1 : 0)) + by, 0), last));
	});
	new ResizeObserver(() => draw(chart)).observe(place);
	return chart;
};

const across = (chart, i) => margin.left + (chart.times.length > 1 ? i / (chart.times.length - 1) : 0) * (chart.place.clientWidth - margin.left - margin.right);

const nearest = (chart, x) => {
	if (chart.times.length < 2) return undefined;
	const inner = chart.place.clientWidth - margin.left - margin.right;
	return Math.min(Math.max(Math.round((x - margin.left) / inner * (chart.times.length - 1)), 0), chart.times.length - 1);
};

const point = (chart, i) => {
	if (chart.at === i) return;
	chart.at = i;
	draw(chart);
};

const setChart = (chart, times, series) => {
	chart.times = times;
	chart.series = series;
	if (chart.at >= times.length) chart.at = undefined;
	const key = series.map((s) => s.name).join();
	if (chart.legend.dataset.key !== key) {
		chart.legend.dataset.key = key;
		chart.legend.replaceChildren(...series.map((s) => element("span", s.tone, element("i", ""), s.name)));
	}
	draw(chart);
};

const draw = (chart) => {
	const { place, times, series, format } = chart;
	const width = place.clientWidth;
	if (!width) return; // the view is not shown
	const highest = Math.max(...series.flatMap((s) => s.values.filter((v) => v !== null)), 0);
	const step = nice((highest || gridLines) / gridLines), top = step * gridLines;
	const bottom = chartHeight - margin.bottom;
	const y = (value) => bottom - value / top * (bottom - margin.top);
	const parts = [];
	for (let i = 0; i <= gridLines; i++) {
		parts.push(svg("line", { class: "rule", x1: margin.left, x2: width - margin.right, y1: y(i * step), y2: y(i * step) }),
			svg("text", { class: "tick", x: margin.left - 8, y: y(i * step) + 4, "text-anchor": "end" }, format(i * step)));
	}
	parts.push(...timeTicks(chart, bottom));
	series.forEach((s, n) => parts.push(...lineOf(chart, s, y, bottom, n === 0)));
	if (!highest) parts.push(svg("text", { class: "quiet-note", x: (width + margin.left) / 2, y: bottom / 2 + 8, "text-anchor": "middle" }, "No data in this time"));
	if (chart.at !== undefined && times.length > 1) parts.push(...tooltip(chart, y, bottom));
	place.replaceChildren(svg("svg", { width, height: chartHeight, viewBox: `0 0 ${width} ${chartHeight}`, "aria-hidden": "true" }, ...parts));
	place.ariaLabel = spoken(chart);
};

// timeTicks writes the time below the chart, as often as there is room.
const timeTicks = ({ place, times }, bottom) => {
	if (times.length < 2) return [];
	const inner = place.clientWidth - margin.left - margin.right;
	const between = Math.max(2, Math.min(6, Math.floor(inner / 80)));
	const seconds = times.at(-1) - times[0] < 5 * 60e3;
	return Array.from({ length: between + 1 }, (_, i) => {
		const time = times[0] + (times.at(-1) - times[0]) * i / between;
		const anchor = i === 0 ? "start" : i === between ? "end" : "middle";
		return svg("text", { class: "tick", x: margin.left + inner * i / between, y: bottom + 18, "text-anchor": anchor }, clockText(time, seconds));
	});
};

// lineOf draws a series; a null is a gap.
const lineOf = (chart, { values, tone }, y, bottom, filled) => {
	const made = [];
	let run = [];
	const end = () => {
		if (run.length) {
			const line = run.map(([x, v], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${v.toFixed(1)}`).join("");
			if (filled) made.push(svg("path", { class: `area ${tone}`, d: `${line}L${run.at(-1)[0].toFixed(1)} ${bottom}L${run[0][0].toFixed(1)} ${bottom}Z` }));
			made.push(svg("path", { class: `line ${tone}`, d: line }));
		}
		run = [];
	};
	values.forEach((value, i) => {
		if (value === null) end();
		else run.push([across(chart, i), y(value)]);
	});
	end();
	return made;
};

const tooltip = (chart, y, bottom) => {
	const { at: i, times, series, place, format } = chart;
	const x = across(chart, i);
	const lines = [clockText(times[i], true), ...series.map((s) => `${s.name} ${s.values[i] === null ? "–" : format(s.values[i])}`)];
	const wide = Math.max(...lines.map((line) => line.length)) * 6.6 + 20, high = lines.length * 17 + 11;
	const left = x + 12 + wide > place.clientWidth ? x - 12 - wide : x + 12;
	return [
		svg("line", { class: "cross", x1: x, x2: x, y1: margin.top, y2: bottom }),
		...series.filter((s) => s.values[i] !== null).map((s) => svg("circle", { class: `spot ${s.tone}`, cx: x, cy: y(s.values[i]), r: 3.5 })),
		svg("g", { class: "tip" },
			svg("rect", { x: left, y: margin.top, width: wide, height: high, rx: 6 }),
			...lines.map((line, n) => svg("text", { x: left + 10, y: margin.top + 19 + n * 17, class: n ? "" : "strong" }, line))),
	];
};

// spoken is the text of a chart for screen readers: its latest values, or the selected
// ones.
const spoken = ({ title, unit, at: i, times, series, format }) => {
	const n = i ?? times.length - 1;
	if (n < 0) return `${title}: nothing yet`;
	return `${title}, ${unit}, at ${clockText(times[n], true)}: ${series.map((s) => `${s.name} ${s.values[n] === null ? "nothing" : format(s.values[n])}`).join(", ")}`;
};
