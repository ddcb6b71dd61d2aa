// The callback of a task, as it is sent: decoded, raw, and as a command.

const callbackSection = (task) => {
	const made = section("Callback", element("p", "note", "Loading…"));
	made.id = "callback";
	loadCallback(task.task_id).then((callback) => {
		made.replaceChildren(made.firstElementChild, ...drawCallback(callback));
	}, (problem) => {
		made.replaceChildren(made.firstElementChild, element("p", "note", problem.status === 404
			? "The result is no longer kept, so the callback cannot be shown." : marked(problem.message)));
	});
	return made;
};

// mostShown is how much of a body is shown; more makes the browser slow.
const mostShown = 64 << 10;

const loadCallback = async (id) => {
	const answer = await call(at("tasks", id, "callback"));
	const body = answer.body ?? "";
	const size = answer.body_base64 ? atob(answer.body_base64).length : new TextEncoder().encode(body).length;
	return { ...answer, id, headers: pairsOf(answer.headers), body, whole: size >= answer.body_size };
};

// wholeOf is a callback with its whole body: the API's document has only the beginning
// of a long one.
const wholeOf = async ({ id, method, url, headers, body, body_base64: base64, whole }) => {
	if (whole) return { method, url, headers, body, base64 };
	const bytes = new Uint8Array(await (await ask(at("tasks", id, "callback") + "?raw=true")).arrayBuffer());
	return { method, url, headers, base64: bytes.toBase64?.() ?? btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join("")) };
};

const typeOf = (callback) => (callback.headers.find(({ name }) => name.toLowerCase() === "content-type")?.value ?? "").split(";")[0].trim().toLowerCase();

const drawCallback = (callback) => {
	const decoded = decodedOf(callback), plain = rawOf(callback);
	const place = element("div", "");
	const choices = [["Decoded", decoded], ["Raw", plain], ["Headers", headerTable(callback.headers)]].filter(([, content]) => content);
	const buttons = choices.map(([name, content]) => {
		const made = button(name, "quiet", () => {
			for (const other of buttons) other.ariaPressed = String(other === made);
			place.replaceChildren(content);
		});
		made.dataset.key = `callback ${name}`;
		return made;
	});
	const command = button("Copy as curl", "quiet", async () => {
		try {
			copy(curlCommand(await wholeOf(callback)), command);
		} catch (problem) {
			report(problem.message);
		}
	});
	command.dataset.key = "callback curl";
	const download = link("Download", api + at("tasks", callback.id, "callback") + "?raw=true");
	buttons[0].click();
	const facts = [callback.url && marked(callback.url), typeOf(callback) && marked(typeOf(callback)), bytes(callback.body_size)].filter(Boolean);
	return [
		element("p", "note", ...facts.flatMap((fact, i) => (i ? [" · ", fact] : [fact]))),
		element("div", "choices", element("span", "group", ...buttons), element("span", "group-end", download, command)),
		place,
		...(callback.whole ? [] : [element("p", "note", "Only the beginning is shown.")]),
	];
};

const decodedOf = ({ body, body_base64: base64, ...callback }) => {
	if (base64 || !callback.whole) return undefined;
	if (typeOf(callback) === "application/x-www-form-urlencoded") {
		const pairs = [...new URLSearchParams(body)].slice(0, 1000);
		return pairs.length ? pairTable(pairs.map(([name, value]) => ({ name, value }))) : undefined;
	}
	const json = body.length <= mostShown * 4 ? indented(body) : undefined;
	return json === undefined ? undefined : scrolling(element("pre", "body", marked(cut(json))), "Body, decoded");
};

const cut = (text) => (text.length > mostShown ? `${text.slice(0, mostShown)}\n…` : text);

const rawOf = ({ body, body_base64: base64 }) => scrolling(element("pre", "body", base64 ? cut(base64) : marked(cut(body))), base64 ? "Body in base64" : "Body");

const pairTable = (pairs) => {
	const made = element("table", "pairs");
	made.ariaLabel = "Names and values";
	const rows = made.createTBody();
	for (const { name, value } of pairs) {
		const heading = element("th", "", marked(name));
		heading.scope = "row";
		const text = /^\s*[{[]/.test(value) ? indented(value) ?? value : value;
		rows.append(element("tr", "", heading, element("td", "", marked(cut(text)))));
	}
	return made;
};

const headerTable = (headers) => headers.length > 0 && pairTable(headers);
