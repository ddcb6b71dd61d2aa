// Keyboard shortcuts. They can be switched off, because dictation or accidental typing
// must not trigger them.

const views = ["overview", "tasks", "hosts", "queues", "schedules"];

const shortcutsOn = () => byID("keys-on").checked;

// step moves the focus to the link of the next or previous row.
const step = (by) => {
	const rows = [...document.querySelectorAll("main > section:not([hidden]) .grid tbody tr")];
	if (!rows.length) return;
	const now = rows.findIndex((row) => row.contains(document.activeElement));
	const row = rows[now < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(now + by, 0), rows.length - 1)];
	row.querySelector("a").focus({ preventScroll: true });
	row.scrollIntoView({ block: "nearest" });
};

const shortcuts = {
	__proto__: null,
	"/": () => {
		if (byID("tasks").hidden) location.hash = lastList;
		requestAnimationFrame(() => setTimeout(() => byID("search").focus())); // after the view is shown
	},
	j: () => step(1),
	k: () => step(-1),
	x: () => document.activeElement.closest("tr")?.querySelector("input[type=checkbox]")?.click(),
	u: () => { if (!byID("task").hidden) location.hash = byID("back").hash; },
	r: () => refresh(),
	"?": () => byID("help").showModal(),
};
views.forEach((view, i) => { shortcuts[i + 1] = () => { location.hash = `#/${view}`; }; });

document.addEventListener("keydown", (event) => {
	const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
	if (event.key === "Escape" && typing && event.target.id === "search") event.target.blur();
	if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
	if (event.key === "Escape" && !byID("bulk").hidden) clearPicked();
	const run = shortcuts[event.key];
	if (!run || !shortcutsOn()) return;
	event.preventDefault();
	run();
});

byID("keys-on").checked = remembered("callback-keys") !== "off";
byID("keys-on").addEventListener("change", () => remember("callback-keys", shortcutsOn() ? "on" : "off"));
byID("help-open").addEventListener("click", () => byID("help").showModal());
byID("help-close").addEventListener("click", () => byID("help").close());
