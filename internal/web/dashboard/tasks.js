// The list of tasks: its states, its pages and the selected tasks.

let counts; // of tasks, by state, as last heard

// listing is the list: its filters, and its tasks by ID, in order.
const listing = { filters: [], tasks: new Map(), next: "", scanned: 0, news: 0, gone: new Set(), read: "" };

// picked are the selected tasks by ID. all is set if all tasks that match are selected.
const picked = { tasks: new Map(), all: false };

// showStates draws the tabs once and then changes them in place: a replaced link loses
// the focus.
const showStates = () => {
	const nav = byID("states");
	if (!nav.hasChildNodes()) {
		for (const state of ["", ...states]) {
			const tab = element("a", "", stateNames[state] ?? "All", element("span", "badge"));
			tab.dataset.state = state;
			nav.append(tab);
		}
	}
	const others = listing.filters.filter(([key]) => key !== "state" && key !== "after");
	const current = new Map(listing.filters).get("state") ?? "";
	for (const tab of nav.children) {
		const { state } = tab.dataset;
		tab.href = tasksWith(state ? [["state", state], ...others] : others);
		tab.ariaCurrent = state === current ? "page" : null;
		const text = counts ? number(state ? counts[state] : total()) : "";
		if (tab.lastChild.textContent !== text) tab.lastChild.textContent = text;
	}
};

const total = () => states.reduce((sum, state) => sum + (counts?.[state] ?? 0), 0);

const taskColumns = [
	{
		name: "Select", className: "pick", unseen: true, head: () => {
			const box = element("input", "");
			box.type = "checkbox";
			box.id = "pick-page";
			box.ariaLabel = "Select the tasks on this page";
			box.addEventListener("change", () => {
				picked.all = false;
				picked.tasks = new Map(box.checked ? listing.tasks : []);
				showPicked();
			});
			return box;
		}, cell: (task) => {
			const box = element("input", "");
			box.type = "checkbox";
			box.ariaLabel = `Select task ${shortID(task.task_id)}`;
			box.checked = picked.all || picked.tasks.has(task.task_id);
			box.addEventListener("change", () => pick(task.task_id, box.checked));
			return box;
		},
	},
	{
		name: "Task", className: "id", cell: (task) => {
			const made = link(marked(shortID(task.task_id)), "#/tasks/" + encodeURIComponent(task.task_id));
			made.title = task.task_id;
			return [made, task.path || task.method ? element("small", "line", marked([task.method, task.path].filter(Boolean).join(" "))) : ""];
		},
	},
	{
		name: "Status", className: "doing-cell", cell: (task) => {
			const reason = reasonOf(task);
			const detail = reason ? element("small", "reason", marked(reason.slice(0, 240))) : "";
			return [phrase(task), detail];
		},
	},
	{ name: "Verdict", className: "fits", cell: verdictOf },
	{ name: "Attempts", className: "fits", cell: callbackOf },
	{
		name: "Callback host, queue", className: "name", cell: (task) => (task.callback_host || task.queue) && [
			task.callback_host ? marked(task.callback_host) : element("span", "none", "no callback"),
			task.queue ? element("small", "line", "queue ", marked(task.queue)) : "",
		],
	},
	{ name: "Accepted", className: "time", cell: (task) => timeOf(task.created_at) },
];

const pageSize = 50, mostAnswers = 10;

// readTasks reads a page. The API searches a few thousand tasks per request, of which
// few may match, so readTasks sends some more requests. Then the reader decides.
const readTasks = async (filters, signal) => {
	const query = new URLSearchParams(filters);
	const read = { tasks: [], scanned: 0, next: "" };
	for (let answers = 0; answers === 0 || (answers < mostAnswers && read.next && read.tasks.length < pageSize); answers++) {
		if (read.next) query.set("after", read.next);
		query.set("limit", String(pageSize - read.tasks.length));
		const answer = await call(`tasks?${query}`, { signal });
		read.tasks.push(...answer.tasks);
		read.scanned += answer.scanned ?? 0;
		read.next = answer.next ?? "";
		if (answers && !listing.tasks.size) byID("listed").textContent = `${number(read.scanned)} tasks searched`;
	}
	return read;
};

// showTasks reloads the list on request of the reader.
const showTasks = async (filters, signal) => {
	if (JSON.stringify(filters) !== JSON.stringify(listing.filters)) {
		clearPicked();
		listing.tasks = new Map();
	}
	listing.filters = filters;
	showStates();
	showFilters(filters);
	byID("list").ariaBusy = "true";
	const { tasks, next, scanned } = await readTasks(filters, signal);
	byID("list").ariaBusy = "false";
	listing.tasks = new Map(tasks.map((task) => [task.task_id, task]));
	Object.assign(listing, { next, scanned, news: 0, gone: new Set(), read: countsText() });
	for (const id of picked.tasks.keys()) if (!listing.tasks.has(id)) picked.tasks.delete(id);
	drawTasks();
	showPages(filters, next);
};

const countsText = () => JSON.stringify(counts);

// renewTasks updates the listed tasks in place. It only counts new ones, so that the list
// does not move under the pointer.
const renewTasks = async (signal) => {
	if (listing.read === countsText()) return; // nothing has happened
	const heard = countsText();
	const query = new URLSearchParams(listing.filters);
	query.set("limit", String(pageSize));
	const { tasks, next = "" } = await call(`tasks?${query}`, { signal });
	// Tasks older than the last one read are unknown.
	const oldest = next ? Math.min(...tasks.map((task) => Date.parse(task.created_at))) : -Infinity;
	const seen = new Set(tasks.map((task) => task.task_id));
	const paged = listing.filters.some(([key]) => key === "after");
	const news = paged ? 0 : tasks.filter((task) => !listing.tasks.has(task.task_id)).length;
	for (const task of tasks) if (listing.tasks.has(task.task_id)) listing.tasks.set(task.task_id, task);
	listing.gone = new Set([...listing.tasks].filter(([id, task]) => !seen.has(id) && Date.parse(task.created_at) > oldest).map(([id]) => id));
	listing.news = news === pageSize ? `${news} or more` : news;
	listing.read = heard;
	drawTasks();
};

const drawTasks = () => {
	const rows = [...listing.tasks.values()];
	drawTable(byID("list"), {
		title: "Tasks", columns: taskColumns, rows, keyOf: (task) => task.task_id,
		empty: noTasks(listing.filters, listing.next, listing.scanned), head: "tasks-title",
	});
	for (const row of byID("list").querySelectorAll("tbody tr")) row.classList.toggle("gone", listing.gone.has(row.dataset.key));
	byID("listed").textContent = listedText(rows.length);
	byID("refresh").textContent = listing.news ? `Show ${listing.news} new` : listing.gone.size ? "Show changes" : "Refresh";
	byID("refresh").classList.toggle("news", Boolean(listing.news || listing.gone.size));
	showPicked();
};

// A page that is not full but has a next page was not searched completely.
const listedText = (found) => {
	const { next, scanned, filters } = listing;
	if (!found) return "No task";
	if (next && found < pageSize) return `${plural(found, "task")} in ${number(scanned)} searched; the next page continues the search`;
	return `${plural(found, "task")}${next || filters.some(([key]) => key === "after") ? " on this page" : ""}`;
};

const noTasks = (filters, next, scanned) => {
	if (next) return emptyList("No match so far", `${plural(scanned ?? 0, "task")} searched. The next page continues the search.`);
	if (filters.length) return emptyList("No task matches", "Remove a filter, or choose another state.");
	return emptyList("No task yet", "Send a request with a ", element("code", "", "callback_url"), " through the gateway, or one to a queue.");
};

const showPages = (filters, next) => {
	const still = filters.filter(([key]) => key !== "after");
	const links = [];
	if (still.length < filters.length) links.push(link("First page", tasksWith(still)));
	if (next) links.push(link("Next page", tasksWith([...still, ["after", next]])));
	const leaving = byID("pages").contains(document.activeElement);
	byID("pages").replaceChildren(...links);
	byID("pages").hidden = !links.length;
	if (leaving) byID("tasks-title").focus(); // a page is read from its top
};

// The selection.

const pick = (id, on) => {
	if (picked.all) { // all but this one
		picked.all = false;
		for (const [other, task] of listing.tasks) picked.tasks.set(other, task);
	}
	if (on) picked.tasks.set(id, listing.tasks.get(id));
	else picked.tasks.delete(id);
	showPicked();
};

const clearPicked = () => {
	picked.tasks.clear();
	picked.all = false;
	showPicked();
};

const matching = () => listing.filters.filter(([key]) => key !== "after");

const showPicked = () => {
	const n = picked.tasks.size, bulk = byID("bulk");
	for (const row of byID("list").querySelectorAll("tbody tr")) {
		const on = picked.all || picked.tasks.has(row.dataset.key);
		row.classList.toggle("picked", on);
		row.querySelector("input").checked = on;
	}
	byID("select-all").hidden = !listing.tasks.size || picked.all || !matching().length;
	const page = byID("pick-page");
	if (page) {
		page.checked = picked.all || (n > 0 && n === listing.tasks.size);
		page.indeterminate = !picked.all && n > 0 && n < listing.tasks.size;
	}
	const hadFocus = bulk.contains(document.activeElement);
	bulk.hidden = !n && !picked.all;
	if (bulk.hidden) {
		bulk.replaceChildren();
		if (hadFocus) byID("tasks-title").focus();
		return;
	}
	const label = picked.all ? "All that match" : plural(n, "task");
	const able = possible();
	const key = `${label} ${able}`;
	if (bulk.dataset.key === key && bulk.hasChildNodes()) return; // its buttons may have the focus
	bulk.dataset.key = key;
	bulk.replaceChildren(
		element("p", "bulk-said", element("b", "", label), " selected"),
		...able.map((verb) => button(`${verbs[verb].many}…`, verbs[verb].grave ? "quiet grave" : "quiet", () => {
			actOnMany(verb, picked.all ? { filters: matching() } : { ids: [...picked.tasks.keys()] }, () => {
				clearPicked();
				refresh();
			});
		})),
		button("Clear", "quiet clear", clearPicked),
	);
};

// possible returns the verbs that apply to at least one selected task.
const possible = () => {
	const state = new Map(listing.filters).get("state");
	const among = picked.all ? (state ? [state] : states) : [...picked.tasks.values()].map((task) => task.state);
	return Object.keys(verbs).filter((verb) => among.some((one) => verbs[verb].from.includes(one)));
};

byID("select-all").addEventListener("click", () => {
	picked.all = true;
	showPicked();
	byID("bulk").querySelector("button")?.focus();
});
byID("refresh").addEventListener("click", () => refresh());

// A click anywhere in a row opens it, except on links, buttons and fields.
byID("list").addEventListener("click", (event) => {
	const row = event.target.closest("tbody tr");
	if (!row || event.target.closest("a, button, input, .pick") || getSelection().toString()) return;
	row.querySelector("a").click();
});
