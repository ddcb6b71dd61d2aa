// The list of tasks: states, filters, pages, and what is done to all that match.

const filterNames = {
	__proto__: null, // what is none of these in a URL is not asked for
	state: "State", queue: "Queue", host: "Callback host", status: "Status",
	newer_than: "Accepted in the last", older_than: "Accepted before the last",
};
const states = ["queued", "running", "delivering", "done", "dead"];
const capital = (word) => word[0].toUpperCase() + word.slice(1);
const stateTones = { queued: ["", "◌"], running: ["", "▸"], delivering: ["late", "↗"], done: ["good", "✓"], dead: ["bad", "✕"] };

let counts; // of tasks, by state, as last heard
let listing = { filters: [], loaded: undefined }; // what is shown, and the count when it was loaded

// showStates draws the tabs once and changes them in place from then on: a link
// that is replaced loses the focus.
const showStates = () => {
	const nav = byID("states");
	if (!nav.hasChildNodes()) {
		for (const state of ["", ...states]) {
			const tab = element("a", "", state ? capital(state) : "All", element("span", "badge"));
			tab.dataset.state = state;
			nav.append(tab);
		}
	}
	const others = listing.filters.filter(([key]) => key !== "state");
	const current = new Map(listing.filters).get("state") ?? "";
	for (const tab of nav.children) {
		const state = tab.dataset.state;
		tab.href = tasksWith(state ? [["state", state], ...others] : others);
		tab.ariaCurrent = state === current ? "page" : null;
		const count = counts && (state ? counts[state] ?? 0 : Object.values(counts).reduce((a, b) => a + b, 0));
		const text = count === undefined ? "" : number(count);
		if (tab.lastChild.textContent !== text) tab.lastChild.textContent = text;
	}
	// The list itself is not read again and again: reading a long one costs the
	// engine something. It is said that there is more to see.
	const stale = listing.loaded !== undefined && counts && listing.loaded !== countOf(current);
	byID("refresh").textContent = stale ? "Show what is new" : "Refresh";
	byID("refresh").classList.toggle("news", Boolean(stale));
};

const countOf = (state) => counts && (state ? counts[state] ?? 0 : states.map((s) => counts[s] ?? 0).join());

const chip = (task) => {
	const [tone, symbol] = stateTones[task.state] ?? ["", "•"];
	return element("span", `status ${tone}`, sign(symbol), element("span", "", marked(task.state ?? "unknown")));
};

const verdict = (task) => {
	const [tone, symbol] = statuses[task.status] ?? ["", ""];
	return task.status ? element("span", `verdict ${tone}`, sign(symbol), marked(task.status)) : undefined;
};

const taskColumns = [
	["Task", (task) => link(marked(task.task_id), "#/tasks/" + encodeURIComponent(task.task_id)), "id"],
	["State", chip],
	["Status", verdict],
	["Queue", (task) => task.queue && marked(task.queue), "name"],
	["Callback host", (task) => task.callback_host && marked(task.callback_host), "name"],
	["Accepted", (task) => timeOf(task.created_at)],
	["Attempts", (task) => {
		const made = String(task.attempts?.length ?? 0);
		return task.next_attempt_at && task.state === "delivering" ? [made, element("small", "", " next ", timeOf(task.next_attempt_at))] : made;
	}, "attempts"],
];

const showTasks = async (filters, signal) => {
	listing = { filters, loaded: undefined };
	showStates();
	showFilters(new Map(filters));
	// Counted before they are read: what comes in between must be said to be new.
	counts = (await call("overview", { signal })).tasks ?? {};
	const counted = countOf(new Map(filters).get("state") ?? "");
	const { tasks, next, scanned, paged } = await readTasks(filters, signal);
	listing.loaded = counted;
	showStates();
	replaceTable(byID("list"), tasks.length ? tableOf("Tasks", taskColumns, tasks) : noTasks(filters, next, scanned), "tasks-title");
	byID("listed").textContent = listedText(tasks.length, { next, scanned, paged });
	showPages(filters, next, paged);
};

// readTasks reads a page. One answer of the API looks at a few thousand tasks, of
// which few may match: some more are asked for, then the reader decides.
const pageSize = 50, mostAnswers = 10;
const readTasks = async (filters, signal) => {
	const query = new URLSearchParams(filters);
	const read = { tasks: [], scanned: 0, next: "", paged: query.has("after") };
	byID("list").ariaBusy = "true";
	for (let answers = 0; answers === 0 || (answers < mostAnswers && read.next && read.tasks.length < pageSize); answers++) {
		if (read.next) query.set("after", read.next);
		query.set("limit", String(pageSize - read.tasks.length));
		const answer = await call(`tasks?${query}`, { signal });
		read.tasks.push(...answer.tasks);
		read.scanned += answer.scanned;
		read.next = answer.next;
		if (answers) byID("listed").textContent = `${number(read.scanned)} tasks looked at`;
	}
	byID("list").ariaBusy = "false";
	return read;
};

// A page that is not full and has a next one is one that was not read to its end.
const listedText = (found, { next, scanned, paged }) => {
	if (!found) return "No task";
	if (next && found < pageSize) return `${plural(found, "task")} among ${number(scanned)} looked at; the next page looks further`;
	return `${plural(found, "task")}${next || paged ? " on this page" : ""}`;
};

const noTasks = (filters, next, scanned) => {
	if (next) return emptyList("No match so far", `${plural(scanned ?? 0, "task")} looked at. The next page looks further.`);
	if (filters.length) return emptyList("No task matches", "Take a filter away, or choose another state.");
	return emptyList("No task yet", "Send a request with a ", element("code", "", "callback_url"), " through the gateway, or one to a queue.");
};

const showPages = (filters, next, paged) => {
	const still = filters.filter(([key]) => key !== "after");
	const links = [];
	if (paged) links.push(link("First page", tasksWith(still)));
	if (next) links.push(link("Next page", tasksWith([...still, ["after", next]])));
	const leaving = byID("pages").contains(document.activeElement);
	byID("pages").replaceChildren(...links);
	byID("pages").hidden = !links.length;
	if (leaving) byID("tasks-title").focus(); // a page is read from its top
};

// showFilters fills the fields if the filters have changed: what is being typed
// while the list is read again is left alone.
let filtersShown;
const showFilters = (filters) => {
	const text = JSON.stringify([...filters]);
	if (text === filtersShown) return;
	filtersShown = text;
	for (const name of ["queue", "host", "status"]) byID(name).value = filters.get(name) ?? "";
	const age = ["newer_than", "older_than"].find((key) => filters.has(key));
	showAge(age ? `${age}=${filters.get(age)}` : "", age && `${filterNames[age].toLowerCase()} ${filters.get(age)}`);
	byID("reset").hidden = ![...filters.keys()].some((key) => key !== "state" && key !== "after");
	const matching = [...filters].filter(([key]) => key !== "after");
	const state = filters.get("state");
	byID("bulk").replaceChildren(...buttonsFor(state, (name) => `${name} all…`, (verb) => {
		actOnAll(verb, matching, matching.length === 1 ? counts?.[state] : undefined, refresh);
	}));
};

// showAge selects an age, one that was written into the URL too.
const showAge = (value, label) => {
	const select = byID("age");
	if (![...select.options].some((option) => option.value === value)) {
		const option = element("option", "", label);
		option.value = value;
		select.append(option);
	}
	select.value = value;
};

const readFilters = () => {
	const chosen = [];
	const state = new Map(listing.filters).get("state");
	if (state) chosen.push(["state", state]);
	for (const name of ["queue", "host", "status"]) {
		const value = byID(name).value.trim();
		if (value) chosen.push([name, value]);
	}
	const [key, value] = byID("age").value.split("=");
	if (value) chosen.push([key, value]);
	return chosen;
};

const suggest = (id, values) => {
	byID(id).replaceChildren(...values.map((value) => {
		const option = element("option", "");
		option.value = value;
		return option;
	}));
};

byID("filter").addEventListener("change", () => { location.hash = tasksWith(readFilters()); });
byID("filter").addEventListener("submit", (event) => {
	event.preventDefault();
	location.hash = tasksWith(readFilters());
});
byID("filter").addEventListener("reset", (event) => {
	event.preventDefault();
	for (const name of ["queue", "host", "status", "age"]) byID(name).value = "";
	byID("queue").focus(); // the button goes
	location.hash = tasksWith(readFilters());
});
byID("find").addEventListener("submit", (event) => {
	event.preventDefault();
	const id = byID("id").value.trim();
	if (!id) return;
	byID("id").value = "";
	location.hash = "#/tasks/" + encodeURIComponent(id);
});
byID("refresh").addEventListener("click", () => refresh());
