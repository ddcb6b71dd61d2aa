// The search field and the filters of the list of tasks.

const filterNames = {
	__proto__: null, // what is none of these in a URL is not asked for
	state: "State", id: "ID begins with", path: "Path contains", host: "Callback host", last_error: "Error contains",
	last_status_code: "Last status code", status: "Verdict", queue: "Queue", method: "Method",
	newer_than: "Accepted in the last", older_than: "Accepted before the last",
};
const fields = ["host", "path", "last_error", "last_status_code", "status", "queue", "method", "id"];

// guess returns the filter for a searched text. "host: c.example" names it.
const guess = (text) => {
	const [, name, rest] = /^(id|path|host|error|code|queue|method):\s*(.+)$/i.exec(text) ?? [];
	if (name) {
		const key = { error: "last_error", code: "last_status_code" }[name.toLowerCase()] ?? name.toLowerCase();
		return [key, key === "method" ? rest.toUpperCase() : rest];
	}
	if (text.startsWith("/")) return ["path", text];
	if (/^[1-5]\d\d$/.test(text)) return ["last_status_code", text];
	if (/^[0-9a-f]{4,}[0-9a-f-]*$/i.test(text)) return ["id", text.toLowerCase()];
	if (/^[\w-]+(\.[\w-]+)+(:\d+)?$|^localhost(:\d+)?$|^\[[0-9a-f:]+\](:\d+)?$/i.test(text)) return ["host", text];
	return ["last_error", text];
};

const wholeID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

// find filters the list, or opens the task if the text is the beginning of one ID.
const find = async (text) => {
	if (wholeID.test(text)) {
		location.hash = "#/tasks/" + encodeURIComponent(text.toLowerCase());
		return;
	}
	const [key, value] = guess(text);
	if (key === "id") {
		try {
			const { tasks, next } = await call(`tasks?${new URLSearchParams({ id: value, limit: "2" })}`);
			if (tasks.length === 1 && !next) {
				location.hash = "#/tasks/" + encodeURIComponent(tasks[0].task_id);
				return;
			}
		} catch (problem) {
			report(problem.message);
			return;
		}
	}
	location.hash = tasksWith([...listing.filters.filter(([name]) => name !== key && name !== "after"), [key, value]]);
};

// showFilters fills the fields if the filters have changed, so that a reload of the list
// does not overwrite text that is being typed.
let filtersShown;
const showFilters = (filters) => {
	const text = JSON.stringify(filters);
	if (text === filtersShown) return;
	filtersShown = text;
	const chosen = new Map(filters);
	for (const name of fields) choose(byID(name), chosen.get(name) ?? "", chosen.get(name));
	const age = ["newer_than", "older_than"].find((key) => chosen.has(key));
	choose(byID("age"), age ? `${age}=${chosen.get(age)}` : "", age && `${filterNames[age]} ${chosen.get(age)}`);
	const active = filters.filter(([key]) => fields.includes(key));
	byID("more").textContent = active.length ? `Filters (${active.length})` : "Filters";
	byID("chips").hidden = !active.length;
	byID("chips").replaceChildren(...active.map(([key, value]) => {
		const rest = filters.filter(([name]) => name !== key && name !== "after");
		const away = button("×", "chip-away", () => {
			byID("search").focus(); // the button goes
			location.hash = tasksWith(rest);
		});
		away.ariaLabel = `Remove the filter ${filterNames[key]}`;
		return element("li", "chip", element("span", "", filterNames[key], " ", element("b", "", marked(value))), away);
	}));
};

// choose sets a field. It adds an option to a select if the URL has another value.
const choose = (field, value, label) => {
	if (field.options && ![...field.options].some((option) => option.value === value)) {
		const option = element("option", "", label);
		option.value = value;
		field.append(option);
	}
	field.value = value;
};

const readFilters = () => {
	const chosen = listing.filters.filter(([key]) => key === "state");
	for (const name of fields) {
		const value = byID(name).value.trim();
		if (value) chosen.push([name, value]);
	}
	const [key, value] = byID("age").value.split("=");
	if (value) chosen.push([key, value]);
	return chosen;
};

const unfold = (open) => {
	byID("filter").hidden = !open;
	byID("more").ariaExpanded = String(open);
};

const loadSuggestions = async () => {
	try {
		const [queues, hosts] = await Promise.all([call("queues"), call("hosts")]);
		suggest("queue-names", queues.map((queue) => queue.name));
		suggest("host-names", hosts.map((host) => host.host));
	} catch {
		// Suggestions are optional; errors show elsewhere.
	}
};

byID("find").addEventListener("submit", (event) => {
	event.preventDefault();
	const text = byID("search").value.trim();
	byID("search").value = "";
	if (text) find(text);
});
byID("more").addEventListener("click", () => {
	const open = byID("filter").hidden;
	unfold(open);
	if (open) {
		loadSuggestions();
		byID("host").focus();
	}
});
byID("filter").addEventListener("submit", (event) => {
	event.preventDefault();
	location.hash = tasksWith(readFilters());
});
byID("filter").addEventListener("reset", (event) => {
	event.preventDefault();
	for (const name of [...fields, "age"]) byID(name).value = "";
	location.hash = tasksWith(readFilters());
});
for (const name of ["status", "method"]) byID(name).addEventListener("change", () => { location.hash = tasksWith(readFilters()); });
byID("age").addEventListener("change", () => { location.hash = tasksWith(readFilters()); });
