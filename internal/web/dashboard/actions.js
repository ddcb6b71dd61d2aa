// What the page asks of the API, and what it asks before.

// With the origin: a path of "//evil.example/" alone would name another host.
const api = location.origin + location.pathname.replace(/\/+$/, "") + "/api/";

// call returns what the API answers, and throws what it says went wrong.
const call = async (path, { method = "GET", signal } = {}) => {
	let answer;
	try {
		answer = await fetch(api + path, { method, signal, headers: { Accept: "application/json" } });
	} catch (problem) {
		if (problem.name === "AbortError") throw problem;
		throw new Error("The server cannot be reached.");
	}
	const text = await answer.text();
	let said;
	try {
		said = JSON.parse(text);
	} catch {
		if (answer.ok && text) throw new Error("The server's answer is no JSON.");
	}
	if (!answer.ok) {
		const problem = new Error(said?.detail ?? said?.error ?? (text.slice(0, 300) || `The server answered ${answer.status}.`));
		problem.status = answer.status;
		throw problem;
	}
	return said;
};

// tell shows the outcome of something, or takes it away.
const tell = (id, text) => {
	byID(id).replaceChildren(...(text ? [marked(text)] : []));
	byID(id).hidden = !text;
};

const verbs = {
	redeliver: { name: "Redeliver", done: "redelivered", keep: "Not now", from: ["dead", "done"] },
	cancel: { name: "Cancel", done: "canceled", keep: "Keep", from: ["queued", "running"] },
	purge: { name: "Purge", done: "purged", keep: "Keep", from: ["done", "dead"] },
};

const consequences = {
	redeliver: "The callback is posted again, with its attempts counted anew.",
	cancel: "What waits is not run, what runs is stopped. The callback says FAILED.",
	purge: "Nothing of it is left. This cannot be undone.",
};

// ask shows a dialog and runs what was confirmed, which may say how far it is and
// must end soon when its signal is aborted. The dialog closes when that has ended.
const ask = ({ title, text, yes, no, run }) => {
	const dialog = byID("ask");
	const ending = new AbortController();
	byID("ask-title").replaceChildren(title);
	byID("ask-text").replaceChildren(...text);
	byID("ask-yes").replaceChildren(yes);
	byID("ask-yes").hidden = false;
	byID("ask-no").replaceChildren(no);
	byID("ask-progress").textContent = "";
	byID("ask-no").onclick = () => dialog.close();
	dialog.onclose = () => { if (!dialog.open) ending.abort(); }; // open: it is about a question before
	byID("ask-yes").onclick = async () => {
		byID("ask-no").replaceChildren("Stop");
		byID("ask-no").focus(); // before the button that has the focus goes
		byID("ask-yes").hidden = true;
		tell("problem", "");
		try {
			tell("done", await run((progress) => { byID("ask-progress").textContent = progress; }, ending.signal));
		} catch (problem) {
			if (problem.name !== "AbortError") tell("problem", problem.message);
		}
		dialog.close();
	};
	dialog.showModal();
	byID("ask-no").focus(); // the harmless one
};

// act asks for one task and does it. after is called when it is done.
const act = (verb, id, after) => {
	const { name, done, keep } = verbs[verb];
	ask({
		title: `${name} this task?`,
		text: [element("p", "id", marked(id)), element("p", "", consequences[verb])],
		yes: name,
		no: keep,
		run: async () => {
			const task = `tasks/${encodeURIComponent(id)}`;
			await (verb === "purge" ? call(task, { method: "DELETE" }) : call(`${task}/${verb}`, { method: "POST" }));
			after();
			return `Task ${id} was ${done}.`;
		},
	});
};

// actOnAll does it for every task that matches. The API takes them in parts.
const actOnAll = (verb, filters, number, after) => {
	const { name, done, keep } = verbs[verb];
	const said = filters.map(([key, value]) => [filterNames[key] ?? key, value]);
	ask({
		title: number === undefined ? `${name} every task that matches?` : `${name} ${plural(number, "task")}?`,
		text: [
			element("p", "", "Every task with:"),
			element("dl", "facts", ...said.map(([key, value]) => element("div", "", element("dt", "", key), element("dd", "", marked(value))))),
			element("p", "", consequences[verb]),
		],
		yes: number === undefined ? `${name} all` : `${name} ${number.toLocaleString("en")}`,
		no: keep,
		run: async (progress, signal) => {
			const total = { changed: 0, failed: 0, reason: "" };
			const query = new URLSearchParams(filters);
			const outcome = () => `${plural(total.changed, "task")} ${done}${total.failed ? `, ${total.failed.toLocaleString("en")} not: ${total.reason}` : ""}`;
			for (let more = true; more && !signal.aborted;) {
				const part = await call(`tasks/${verb === "purge" ? "delete" : verb}?${query}`, { method: "POST" });
				total.changed += part.changed ?? 0;
				total.failed += part.failed ?? 0;
				total.reason ||= part.reason;
				progress(`${outcome()} so far`);
				more = Boolean(part.next);
				if (more) query.set("after", part.next);
			}
			after();
			return `${outcome()}${signal.aborted ? ", then stopped" : ""}.`;
		},
	});
};

// buttonsFor makes a button for each verb that fits a state.
const buttonsFor = (state, label, press) => Object.keys(verbs)
	.filter((verb) => verbs[verb].from.includes(state))
	.map((verb) => {
		const made = element("button", verb === "purge" || verb === "cancel" ? "quiet grave" : "quiet", label(verbs[verb].name));
		made.type = "button";
		made.addEventListener("click", () => press(verb));
		return made;
	});
