// The overview: figures, problems and charts.

const figures = {};

// figure shows a number. It changes in place, so that the page does not jump.
const figure = (key, title, href, value, { tone = "", unit = "" } = {}) => {
	figures[key] ??= (() => {
		const shown = element("b", ""), made = link("", href, "figure");
		made.replaceChildren(element("span", "", title), shown);
		byID("figures").append(element("li", "", made));
		return { made, shown };
	})();
	const { made, shown } = figures[key];
	made.className = `figure ${tone}`;
	const text = JSON.stringify([value.dateTime ?? value, unit]);
	if (shown.dataset.text === text) return;
	shown.dataset.text = text;
	shown.replaceChildren(value, unit && element("small", "", ` ${unit}`));
};

const none = "–";

const showFigures = (hosts, queues) => {
	const failing = hosts.filter((host) => host.failures > 0);
	const retrying = failing.reduce((sum, host) => sum + host.pending, 0);
	const waits = queues.map((queue) => queue.oldest).filter(Boolean).sort();
	figure("queued", "Waiting", "#/tasks?state=queued", number(counts?.queued));
	figure("oldest", "Oldest waiting", "#/queues", waits.length ? forHow(waits[0]) : none);
	figure("running", "Running", "#/tasks?state=running", number(counts?.running));
	figure("delivering", "Delivering", "#/tasks?state=delivering", number(counts?.delivering));
	figure("retrying", "Retrying", "#/hosts", number(retrying), { tone: retrying ? "late" : "" });
	figure("dead", "Dead", "#/tasks?state=dead", number(counts?.dead), { tone: counts?.dead ? "bad" : "" });
};

// attention lists problems for the operator, the worst first.
const attention = (hosts, queues) => {
	const found = [];
	for (const host of [...hosts].sort(worseHost)) {
		if (host.failures > 0) {
			found.push(["bad", [link(marked(host.host), tasksWith({ host: host.host, state: "delivering" })), " has failed for ", forHow(host.failing_since ?? new Date().toISOString()),
				`, ${plural(host.pending, "callback")} pending`], hostReason(host), `host ${host.host}`]);
		}
		if (host.paused) found.push(["late", ["Deliveries to ", link(marked(host.host), "#/hosts"), ` are paused, ${plural(host.pending, "callback")} pending`], "", `paused ${host.host}`]);
	}
	for (const queue of queues) {
		if (queue.paused) found.push(["late", ["Queue ", link(marked(queue.name), "#/queues"), ` is paused, ${plural(queue.queued, "task")} waiting`], "", `queue ${queue.name}`]);
		else if (queue.max_queued && queue.queued > queue.max_queued * 0.9) found.push(["late", ["Queue ", link(marked(queue.name), "#/queues"), " is nearly full"], `${number(queue.queued)} of ${number(queue.max_queued)}`, `full ${queue.name}`]);
	}
	if (counts?.dead) found.push(["bad", [link(plural(counts.dead, "dead task"), "#/tasks?state=dead"), " can be redelivered"], "", "dead"]);
	return found;
};

const attentionShown = 10;
let attentionText;
const showAttention = (hosts, queues) => {
	const found = attention(hosts, queues);
	const text = JSON.stringify(found.map(([tone, phrase, reason]) => [tone, phrase.map((part) => part.dateTime ?? part.textContent ?? part).join(""), reason]));
	if (text === attentionText) return;
	attentionText = text;
	const place = byID("attention");
	const focused = place.contains(document.activeElement) ? document.activeElement.hash : undefined;
	if (!found.length) {
		place.replaceChildren(element("p", "well", sign("✓"), "Nothing fails, nothing is paused, no task is dead."));
	} else {
		place.replaceChildren(element("ul", "alarms", ...found.slice(0, attentionShown).map(([tone, phrase, reason]) =>
			element("li", tone, element("p", "", ...phrase), reason ? element("p", "reason", marked(reason)) : ""))));
		if (found.length > attentionShown) place.append(element("p", "note", link(`${number(found.length - attentionShown)} more`, "#/hosts")));
	}
	if (focused) (place.querySelector(`a[href="${CSS.escape(focused)}"]`) ?? byID("overview-title")).focus();
};

let hostsNow = [], queuesNow = [];
const showNow = async (signal) => {
	[hostsNow, queuesNow] = await Promise.all([call("hosts", { signal }), call("queues", { signal })]);
	showFigures(hostsNow, queuesNow);
	showAttention(hostsNow, queuesNow);
};

// The charts.

const perSecond = (n) => (n >= 1000 ? number(Math.round(n)) : String(Number(n.toFixed(n < 1 ? 2 : 1))));

let charts; // they are made once they are shown
const spans = [["2", "Last 2 minutes"], ["5", "Last 5 minutes"], ["10", "Last 10 minutes"],
	["60", "Last hour"], ["360", "Last 6 hours"], ["1440", "Last 24 hours"]];
const finest = 10; // minutes; the overview has no more
let latest; // the overview as last heard

// latencyHeard are the latencies that this page has received, by time: the overview has
// no history of them.
const latencyHeard = [];
const mostHeard = 600;

const hearLatency = ({ at: time, latency = {} }) => {
	latencyHeard.push({ time: Date.parse(time), task: latency.task_p95_ms ?? null, callback: latency.delivery_p50_ms ?? null, slow: latency.delivery_p95_ms ?? null });
	if (latencyHeard.length > mostHeard) latencyHeard.shift();
};

// lately returns the counts of the last minutes from the overview, with the seconds that
// each covers.
const lately = (minutes) => {
	const { history = [] } = latest;
	const begin = Date.parse(history.at(-1)?.at) - minutes * 60e3;
	return {
		past: history.filter((one) => Date.parse(one.at) >= begin), heard: latencyHeard.filter((one) => one.time >= begin),
		step: history.length > 1 ? (Date.parse(history[1].at) - Date.parse(history[0].at)) / 1000 : 1,
	};
};

// byMinute returns the counts of a longer time. It fetches them once a minute, and draws the
// charts again when they are there.
let fetched = {}, fetching = false;
const byMinute = (minutes) => {
	if (!fetching && (fetched.minutes !== minutes || Date.now() - fetched.at >= 60e3)) {
		fetching = true;
		call(`history?minutes=${minutes}`).then(({ points }) => {
			fetched = { minutes, at: Date.now(), points };
		}, () => {
			fetched = { minutes, at: Date.now(), points: fetched.minutes === minutes ? fetched.points : [] };
		}).finally(() => {
			fetching = false;
			showCharts();
		});
	}
	const past = fetched.minutes === minutes ? fetched.points : [];
	return {
		past, step: 60,
		heard: past.map((one) => ({ time: Date.parse(one.at), task: one.task_p95_ms, callback: one.delivery_p50_ms, slow: one.delivery_p95_ms })),
	};
};

const showCharts = () => {
	if (!latest || byID("overview").hidden) return;
	charts ??= {
		tasks: newChart("Tasks", "per second", perSecond),
		callbacks: newChart("Callbacks", "per second", perSecond),
		latency: newChart("Latency", "of a minute", milliseconds),
	};
	const minutes = Number(byID("span").value);
	const { past, step, heard } = minutes > finest ? byMinute(minutes) : lately(minutes);
	if (!past.length) return;
	const times = past.map((one) => Date.parse(one.at));
	const of = (...names) => past.map((one) => names.reduce((sum, name) => sum + (one[name] ?? 0), 0) / step);
	setChart(charts.tasks, times, [
		{ name: "Accepted", tone: "info", values: of("accepted") },
		{ name: "Completed", tone: "good", values: of("completed") },
		{ name: "Failed or timed out", tone: "bad", values: of("failed", "timed_out") },
	]);
	setChart(charts.callbacks, times, [
		{ name: "Delivered", tone: "good", values: of("delivered") },
		{ name: "Failed attempts", tone: "bad", values: of("attempts_failed") },
	]);
	setChart(charts.latency, heard.map((one) => one.time), [
		{ name: "Callbacks p50", tone: "info", values: heard.map((one) => one.callback) },
		{ name: "Callbacks p95", tone: "late", values: heard.map((one) => one.slow) },
		{ name: "Tasks p95", tone: "plain", values: heard.map((one) => one.task) },
	]);
};

byID("span").append(...spans.map(([minutes, name]) => {
	const option = element("option", "", name);
	option.value = minutes;
	return option;
}));
byID("span").value = spans.some(([minutes]) => minutes === remembered("callback-span")) ? remembered("callback-span") : "10";
byID("span").addEventListener("change", () => {
	remember("callback-span", byID("span").value);
	showCharts();
});
