// The view is in the fragment of the URL, so that a reload, a link and the browser's
// back button keep it.

const sections = [...views, "task"];
const again = 2000; // ms until a view is read again

let lastList = "#/tasks"; // to go back to from one task
let loading = new AbortController();
let timer;

const route = () => {
	const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
	const [name, id] = path.split("/", 2);
	if (name === "tasks" && id) {
		try {
			return { section: "task", id: decodeURIComponent(id) };
		} catch {
			return { section: "task", id }; // a percent sign that begins no escape
		}
	}
	return views.includes(name) ? { section: name, query } : { section: "overview" };
};

// refresh loads the data of the view now and then periodically.
const refresh = async () => {
	loading.abort();
	clearTimeout(timer);
	loading = new AbortController();
	const { signal } = loading;
	let fresh = true; // read from its beginning, not renewed in place
	for (let goesOn = true; goesOn && !signal.aborted;) {
		let pause = again;
		try {
			if (fresh || !document.hidden) goesOn = await load(route(), signal, fresh);
			if (signal.aborted) return;
			report("");
			fresh = false;
		} catch (problem) {
			if (signal.aborted) return;
			report(problem.message);
			pause = 3 * again;
		}
		await new Promise((next) => { timer = setTimeout(next, pause); });
	}
};

// load shows a view and returns whether it changes by itself.
const load = async ({ section, id, query }, signal, fresh) => {
	switch (section) {
	case "overview":
		await showNow(signal);
		return true;
	case "task":
		return showTask(id, signal);
	case "tasks":
		lastList = location.hash || "#/tasks";
		if (fresh) await showTasks([...new URLSearchParams(query)].filter(([key, value]) => value && (key in filterNames || key === "after")), signal);
		else await renewTasks(signal);
		return true;
	default:
		await showList(section, signal);
		return true;
	}
};

const titles = { overview: "Overview", tasks: "Tasks", task: "Task", queues: "Queues", hosts: "Hosts", schedules: "Schedules" };

let before; // the section that was shown

const go = () => {
	const here = route();
	for (const name of sections) byID(name).hidden = name !== here.section;
	const view = here.section === "task" ? "tasks" : here.section;
	for (const tab of byID("views").children) tab.ariaCurrent = tab.hash === `#/${view}` ? "page" : null;
	// Only a plain ID: a title cannot mark unsafe characters.
	document.title = `${titles[here.section]}${/^[\w-]+$/.test(here.id ?? "") ? " " + shortID(here.id) : ""} – Callbacks`;
	confirmDone("");
	report("");
	// For keyboards and screen readers, move the focus to the heading of the new view.
	if (before && before !== here.section) byID(`${here.section}-title`).focus({ preventScroll: true });
	before = here.section;
	if (byID("ask").open) byID("ask").close();
	if (here.section !== "tasks") unfold(false);
	showCharts();
	refresh();
};

// While the engine does not answer, the stream is open but sends no overview.
const patience = 6000;
let silence;
const heard = () => {
	const { dataset } = byID("connection");
	if (dataset.state === "mute") {
		dataset.state = "live";
		byID("connection").textContent = "Live";
	}
	clearTimeout(silence);
	silence = setTimeout(() => {
		if (dataset.state !== "live") return;
		dataset.state = "mute";
		byID("connection").textContent = "The store does not answer";
	}, patience);
};

const showOverview = (overview) => {
	heard();
	counts = overview.tasks ?? {};
	latest = overview;
	hearLatency(overview);
	showStates();
	if (!byID("overview").hidden) showFigures(hostsNow, queuesNow);
	showCharts();
	byID("node").replaceChildren(...(overview.node ? [marked(overview.node)] : []));
};

// A hidden page closes its stream: a browser has six connections to a host, and tabs in
// the background must not use them up.
let stop;
const watch = () => {
	if (document.hidden) {
		stop?.();
		stop = undefined;
	} else {
		stop ??= follow(() => api + "events", { overview: (event) => showOverview(JSON.parse(event.data)) });
	}
};

const showZone = () => {
	byID("zone").textContent = zone();
	showCharts();
};
byID("zone").addEventListener("click", () => {
	showTimes(zone() !== "UTC");
	showZone();
});

addEventListener("hashchange", go);
document.addEventListener("visibilitychange", watch);
showZone();
go();
watch();
