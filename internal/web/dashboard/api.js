// Requests to the API.

// With the origin: a path of "//evil.example/" alone would name another host.
const api = location.origin + location.pathname.replace(/\/+$/, "") + "/api/";

const at = (...parts) => parts.map(encodeURIComponent).join("/");

// ask returns the API's answer. It throws the error in the answer.
const ask = async (path, { method = "GET", body, signal } = {}) => {
	const headers = { Accept: "application/json" };
	if (body !== undefined) headers["Content-Type"] = "application/json";
	let answer;
	try {
		answer = await fetch(api + path, { method, signal, headers, body: body === undefined ? undefined : JSON.stringify(body) });
	} catch (problem) {
		if (problem.name === "AbortError") throw problem;
		throw new Error("The server cannot be reached.");
	}
	if (answer.ok) return answer;
	const text = await answer.text();
	let detail = text.slice(0, 300) || `The server answered ${answer.status}.`;
	try {
		const parsed = JSON.parse(text);
		detail = parsed.detail ?? parsed.error ?? detail;
	} catch {
		// Not JSON: show the text unchanged.
	}
	const problem = new Error(detail);
	problem.status = answer.status;
	throw problem;
};

// call returns the JSON of the API's answer, or undefined if the answer is empty.
const call = async (path, options) => {
	const text = await (await ask(path, options)).text();
	if (!text) return undefined;
	try {
		return JSON.parse(text);
	} catch {
		throw new Error("The server's answer is not JSON.");
	}
};

const post = (path, body, signal) => call(path, { method: "POST", body, signal });

// report shows an error, or hides the last one.
const report = (text) => {
	byID("problem").replaceChildren(...(text ? [marked(text)] : []));
	byID("problem").hidden = !text;
};

// confirmDone shows the outcome of an action for some seconds.
const doneShown = 8000; // ms
let doneTimer;
const confirmDone = (text) => {
	byID("done").replaceChildren(...(text ? [marked(text)] : []));
	byID("done").hidden = !text;
	clearTimeout(doneTimer);
	if (text) doneTimer = setTimeout(() => confirmDone(""), doneShown);
};

// confirmed shows a dialog and runs the confirmed action. run may report its progress,
// and ends soon after its signal is aborted. Then the dialog closes.
const confirmed = ({ title, text, yes, grave, no = "Cancel", run }) => {
	const dialog = byID("ask");
	const ending = new AbortController();
	byID("ask-title").replaceChildren(title);
	byID("ask-text").replaceChildren(...text);
	byID("ask-yes").replaceChildren(yes);
	byID("ask-yes").className = grave ? "grave" : "sure";
	byID("ask-yes").hidden = false;
	byID("ask-no").replaceChildren(no);
	byID("ask-progress").textContent = "";
	byID("ask-no").onclick = () => dialog.close();
	dialog.onclose = () => { if (!dialog.open) ending.abort(); }; // open: it asks the next question
	dialog.firstElementChild.onsubmit = async (event) => {
		event.preventDefault();
		if (byID("ask-yes").hidden) return; // it runs
		byID("ask-no").replaceChildren("Stop");
		byID("ask-no").focus(); // before the button that has the focus goes
		byID("ask-yes").hidden = true;
		report("");
		try {
			confirmDone(await run((progress) => { byID("ask-progress").textContent = progress; }, ending.signal));
		} catch (problem) {
			if (problem.name !== "AbortError") report(problem.message);
		}
		dialog.close();
	};
	dialog.showModal();
	(byID("ask-text").querySelector("input") ?? byID("ask-no")).focus(); // a field, or the harmless button
};

const button = (text, className, press) => {
	const made = element("button", className, text);
	made.type = "button";
	made.addEventListener("click", press);
	return made;
};
