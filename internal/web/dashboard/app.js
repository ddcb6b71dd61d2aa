// Where the page is: the fragment of its URL says it, so that a reload, a link
// and the browser's back button keep the view.

const sections = ["tasks", "task", "queues", "hosts", "schedules"];
const again = 2000; // ms until what changes by itself is read again

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
	if (sections.includes(name) && name !== "task") return { section: name, query };
	return { section: "tasks", query: "" };
};

// refresh reads anew what the view shows. It is for the reader, not for the
// clock: what went wrong is said.
const refresh = async () => {
	loading.abort();
	clearTimeout(timer);
	loading = new AbortController();
	const { signal } = loading;
	try {
		const goesOn = await load(route(), signal);
		tell("problem", "");
		if (goesOn) timer = setTimeout(() => { if (!signal.aborted) refresh(); }, again);
	} catch (problem) {
		if (signal.aborted) return;
		tell("problem", problem.message);
		timer = setTimeout(refresh, 3 * again);
	}
};

// load shows a view and says whether it changes by itself, cheaply enough to be
// read again and again.
const load = async ({ section, id, query }, signal) => {
	switch (section) {
	case "task":
		return showTask(id, signal);
	case "tasks":
		lastList = location.hash || "#/tasks";
		await showTasks([...new URLSearchParams(query)].filter(([key, value]) => value && (key in filterNames || key === "after")), signal);
		return false;
	default:
		await showList(section, signal);
		return true;
	}
};

const titles = { tasks: "Tasks", task: "Task", queues: "Queues", hosts: "Hosts", schedules: "Schedules" };

let before; // the section that was shown

const go = () => {
	const here = route();
	for (const name of sections) byID(name).hidden = name !== here.section;
	const view = here.section === "task" ? "tasks" : here.section;
	for (const tab of byID("views").children) tab.ariaCurrent = tab.hash === `#/${view}` ? "page" : null;
	// Only a plain ID: a title shows foreign characters as they are.
	document.title = `${titles[here.section]}${/^[\w-]+$/.test(here.id ?? "") ? " " + here.id : ""} – Callback dashboard`;
	tell("done", "");
	tell("problem", "");
	// Who goes to another view by keyboard or screen reader arrives at its head.
	if (before && before !== here.section) byID(`${here.section}-title`).focus({ preventScroll: true });
	before = here.section;
	if (byID("ask").open) byID("ask").close();
	refresh();
};

// While the engine does not answer the stream is there and says nothing.
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
		byID("connection").textContent = "The engine does not answer";
	}, patience);
};

const showOverview = (overview) => {
	heard();
	counts = overview.tasks ?? {};
	showNow(overview);
	showStates();
	byID("node").replaceChildren(...(overview.node ? [marked(overview.node)] : []));
};

// A page that nobody sees holds no stream: a browser has six connections to a
// host, and a tab in the background must not take them from the one in front.
let stop;
const watch = () => {
	if (document.hidden) {
		stop?.();
		stop = undefined;
	} else {
		stop ??= follow(() => api + "events", { overview: (event) => showOverview(JSON.parse(event.data)) });
	}
};

const loadSuggestions = async () => {
	try {
		const [queues, hosts] = await Promise.all([call("queues"), call("hosts")]);
		suggest("queue-names", queues.map((queue) => queue.name));
		suggest("host-names", hosts.map((host) => host.host));
	} catch {
		// They are a help only; whatever is wrong shows elsewhere.
	}
};
for (const name of ["queue", "host"]) byID(name).addEventListener("focus", loadSuggestions);

addEventListener("hashchange", go);
document.addEventListener("visibilitychange", watch);
go();
watch();
