// The live inbox.
(() => {
	const { byID, marked, element, duration, plural, statuses, sign, scrolling, raw, follow, stamp, copy, curlCommand, indented, quoted } = shared;
	const list = byID("callbacks");
	const settings = document.body.dataset;
	// With the origin: a path of "//evil.example/" alone would name another host.
	const address = location.origin + location.pathname;
	const inbox = address.replace(/\/+$/, "");

	// --- A callback ---

	const signatures = {
		verified: ["good", "✓", "Verified"],
		failed: ["bad", "✕", "Bad signature"],
		unchecked: ["late", "?", "Unchecked"],
		unsigned: ["", "", "Unsigned"],
	};

	const show = (callback) => {
		const item = byID("callback").content.firstElementChild.cloneNode(true);
		const part = (name) => item.querySelector("." + name);
		const [tone, symbol] = statuses[callback.status] ?? ["", "•"];
		const [verdictTone, verdictSymbol, verdict] = signatures[callback.signature];
		const card = part("card");
		if (tone) card.classList.add(tone);
		part("status").append(sign(symbol), element("span", "", marked(callback.status || "NO STATUS")));
		part("task").append(callback.task_id ? marked(callback.task_id) : "no task ID");
		if (callback.attempt) part("attempt").append(`Attempt ${callback.attempt}`);
		if (callback.since_previous_ms !== undefined) {
			part("attempt").append(`${callback.attempt ? " · " : ""}+${duration(callback.since_previous_ms)}`);
		}
		if (verdictTone) part("signature").classList.add(verdictTone);
		part("signature").append(...(verdictSymbol ? [sign(verdictSymbol)] : []), verdict);
		part("time").append(stamp(callback.received_at));
		part("request").append(marked(`${callback.method} ${callback.path}${callback.query ? "?" + callback.query : ""}`));
		const glance = callback.pairs.map(({ name, value }) => `${name}=${value}`).join("  ") || callback.body || plural(callback.body_size, "byte");
		part("preview").append(marked(glance.slice(0, 200)));
		// The rest is built only when the callback is opened.
		const open = () => {
			if (card.open && !part("inside").hasChildNodes()) fill(part("inside"), callback);
		};
		card.addEventListener("toggle", open);
		return item;
	};

	const fill = (inside, callback) => {
		if (callback.pairs.length) {
			const decoded = element("div", "", table(callback.pairs, element("caption", "", "Decoded")));
			for (const note of notesOn(callback)) decoded.append(element("p", "note", note));
			inside.append(decoded);
		}
		inside.append(
			actions(callback),
			facts(callback),
			raw("Headers", plural(callback.headers.length, "header"), table(callback.headers)),
			raw("Body", plural(callback.body_size, "byte"), bodyOf(callback), !callback.pairs.length && callback.body_size > 0),
		);
	};

	const button = (text, press) => {
		const made = element("button", "quiet", text);
		made.type = "button";
		made.addEventListener("click", () => press(made));
		return made;
	};

	const actions = (callback) => element("p", "actions",
		button("Copy as curl", async (made) => copy(await commandOf(callback, here(callback)), made)),
		button("Forward…", () => forward(callback)),
	);

	// here is the URL that the callback was sent to, as seen by this page.
	const here = (callback) => location.origin + callback.path + (callback.query ? "?" + callback.query : "");

	// commandOf returns the command that sends the callback again. The list has only the
	// beginning of a long body, so the rest is fetched.
	const commandOf = async (callback, url) => {
		let { body, body_base64: base64 } = callback;
		if (callback.body_truncated) {
			const bytes = new Uint8Array(await (await fetch(`${address}?body=${callback.number}`)).arrayBuffer());
			body = "";
			base64 = bytes.toBase64?.() ?? btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));
		}
		return curlCommand({ method: callback.method, url, headers: callback.headers, body, base64 });
	};

	const facts = (callback) => {
		const made = element("dl", "facts");
		const fact = (name, value, { tone = "", wide = false } = {}) => {
			if (!value) return;
			made.append(element("div", wide ? "wide" : "", element("dt", "", name), element("dd", tone, marked(String(value)))));
		};
		const [tone, , verdict] = signatures[callback.signature];
		const since = callback.since_previous_ms;
		fact("Task", callback.task_id, { wide: true });
		fact("Signature", callback.signature_error ? `${verdict}: ${callback.signature_error}` : verdict, { tone: `tone ${tone}` });
		fact("Upstream status", callback.upstream_status);
		fact("Attempt", callback.attempt);
		fact("Since the previous attempt", since !== undefined && duration(since));
		fact("Received", stamp(callback.received_at).textContent);
		fact("From", callback.remote_addr);
		fact("Request", `${callback.method} ${callback.path}${callback.query ? "?" + callback.query : ""} ${callback.proto}`, { wide: true });
		fact("Number", callback.number);
		return made;
	};

	// The sender's notes about the pairs, and whether some are not shown.
	const notesOn = (callback) => {
		const header = (name) => callback.headers.find((h) => h.name === name)?.value;
		const notes = [];
		if (header("callback-encoding")) notes.push(element("span", "", "The response is in ", marked(header("callback-encoding")), "."));
		if (header("callback-truncated")) notes.push(element("span", "", "The sender truncated the result, which has ", marked(header("callback-truncated")), " bytes."));
		if (callback.pairs_truncated) notes.push("Only a part is shown.");
		return notes;
	};

	const table = (pairs, ...caption) => {
		const made = element("table", "", ...caption);
		const rows = made.createTBody();
		for (const { name, value } of pairs) {
			const heading = element("th", "", marked(name));
			heading.scope = "row";
			const text = /^\s*[{[]/.test(value) ? indented(value) ?? value : value; // JSON in a field
			const long = text.length > 2000 || text.split("\n").length > 20;
			const cell = element("td", "", long ? scrolling(element("div", "long", marked(text)), `Value of ${name}`) : marked(text));
			rows.append(element("tr", "", heading, cell));
		}
		return made;
	};

	const bodyOf = (callback) => {
		const made = document.createDocumentFragment();
		if (callback.body_base64) {
			made.append(scrolling(element("pre", "long", callback.body_base64), "Body in base64"),
				element("p", "note", "Not UTF-8: shown in base64."));
		} else if (callback.body) {
			const pretty = indented(callback.body);
			if (pretty !== undefined && pretty !== callback.body) {
				const shown = element("pre", "long", marked(pretty));
				made.append(scrolling(shown, "Body"));
				const toggle = button("Show as sent", () => {
					const asSent = toggle.textContent === "Show as sent";
					shown.replaceChildren(marked(asSent ? callback.body : pretty));
					toggle.textContent = asSent ? "Show indented" : "Show as sent";
				});
				made.append(element("p", "note", toggle));
			} else {
				made.append(scrolling(element("pre", "long", marked(callback.body)), "Body"));
			}
		}
		if (callback.body_truncated) made.append(element("p", "note", `Only the beginning is shown; the inbox keeps ${plural(callback.body_kept, "byte")}.`));
		if (callback.body_error) made.append(element("p", "note", "The body is incomplete: ", marked(callback.body_error)));
		if (callback.body_kept) {
			const link = element("a", "", "Download the body");
			link.href = `${address}?body=${callback.number}`;
			made.append(element("p", "note", link));
		} else if (!callback.body_size) {
			made.append(element("p", "note", "The callback has no body."));
		}
		return made;
	};

	// --- The list ---

	const shown = []; // newest first: { item, text }
	const most = Math.min(Number(settings.keep), 1000); // more would make the browser slow
	const filter = byID("filter");

	const matches = (entry) => entry.text.includes(filter.value.trim().toLowerCase());

	const count = () => {
		const visible = shown.filter((entry) => !entry.item.hidden).length;
		byID("count").textContent = !shown.length ? "" : filter.value.trim() ? `${visible} of ${shown.length}` : plural(shown.length, "callback");
		byID("empty").hidden = shown.length > 0;
		byID("nothing").hidden = !shown.length || visible > 0;
	};

	const add = (callback, isNews) => {
		const item = show(callback);
		const said = [callback.task_id, callback.status, callback.method, callback.path, callback.query, callback.remote_addr,
			signatures[callback.signature][2], callback.body, ...[...callback.pairs, ...callback.headers].flatMap((p) => [p.name, p.value])];
		const entry = { item, text: said.join("\n").toLowerCase() };
		item.hidden = !matches(entry);
		shown.unshift(entry);
		list.prepend(item);
		while (shown.length > most) shown.pop().item.remove();
		count();
		if (isNews) {
			item.firstElementChild.classList.add("arrived");
			announce(callback);
		}
	};

	const empty = () => {
		shown.length = 0;
		list.replaceChildren();
		count();
	};

	// Announce at most once a second.
	let unsaid = [];
	const announce = (callback) => {
		unsaid.push(callback);
		if (unsaid.length > 1) return;
		setTimeout(() => {
			const [one] = unsaid;
			byID("arrivals").textContent = unsaid.length > 1 ? `${unsaid.length} new callbacks`
				: `New callback: ${one.status || "no status"}, task ${one.task_id || "unknown"}`;
			unsaid = [];
		}, 1000);
	};

	filter.addEventListener("input", () => {
		for (const entry of shown) entry.item.hidden = !matches(entry);
		count();
	});

	byID("clear").addEventListener("click", async () => {
		let problem = "";
		try {
			const answer = await fetch(address, { method: "DELETE" });
			if (!answer.ok) problem = `Not cleared: ${answer.status} ${await answer.text()}`;
		} catch {
			problem = "Not cleared: the server cannot be reached.";
		}
		byID("problem").textContent = problem;
		byID("problem").hidden = !problem;
	});

	// --- The stream ---

	let after = "", last = 0;

	const listen = () => follow(() => address + (after ? "?after=" + encodeURIComponent(after) : ""), {
		reset(event) {
			after = event.lastEventId;
			last = JSON.parse(event.data).last;
			empty();
		},
		callback(event) {
			after = event.lastEventId;
			const callback = JSON.parse(event.data);
			const first = !shown.length && callback.number > last;
			add(callback, callback.number > last);
			// Open the first callback, and the latest one when the page is opened.
			if (first || callback.number === last) list.firstElementChild.firstElementChild.open = true;
		},
	});

	// --- The URL of the inbox, and the command that sends a callback to it ---

	byID("where").textContent = location.pathname;
	document.title = "Callback inbox " + location.pathname;

	byID("command").textContent = [
		"curl",
		"-H " + quoted(settings.taskHeader + ": example-1"),
		"-H " + quoted(settings.statusHeader + ": COMPLETE"),
		"-d " + quoted("response=example+response"),
		quoted(inbox === location.origin ? address : inbox),
	].join(" ");
	byID("own").href = inbox + "/" + Array.from(crypto.getRandomValues(new Uint8Array(5)), (b) => b.toString(36).padStart(2, "0")).join("");

	byID("copy").addEventListener("click", () => copy(byID("command").textContent, byID("copy")));

	// --- Forwarding by the server, if its configuration allows it ---

	const origins = settings.forwardTo.split(" ").filter(Boolean);
	let forwarding; // the callback that the dialog is about

	const forward = (callback) => {
		forwarding = callback;
		byID("forward-url").value ||= origins[0] ? origins[0] + "/" : "";
		byID("forward-outcome").replaceChildren();
		byID("forward").showModal();
	};

	const outcome = (tone, ...said) => byID("forward-outcome").replaceChildren(element("p", `outcome ${tone}`, ...said));

	byID("forward-send").disabled = !origins.length;
	byID("forward-hint").replaceChildren(...(origins.length
		? ["Any path below ", element("b", "", origins.join(", ")), ". It is sent unchanged, including the signature."]
		: ["This inbox does not forward: set the option ", element("code", "", "forward_to"), " to allow origins. The command does the same from your machine."]));
	byID("forward-origins").append(...origins.map((origin) => {
		const option = element("option", "");
		option.value = origin + "/";
		return option;
	}));
	byID("forward-close").addEventListener("click", () => byID("forward").close());
	byID("forward-copy").addEventListener("click", async () => {
		copy(await commandOf(forwarding, byID("forward-url").value || "http://localhost:3000/"), byID("forward-copy"));
	});
	byID("forward-form").addEventListener("submit", async (event) => {
		event.preventDefault();
		if (byID("forward-send").disabled) return;
		outcome("", "Sending…");
		try {
			const answer = await fetch(`${address}?forward=${forwarding.number}`, { method: "POST", body: JSON.stringify({ url: byID("forward-url").value }) });
			if (!answer.ok) {
				outcome("bad", marked(await answer.text()));
				return;
			}
			const { status_code: code, duration_ms: ms, response, error } = await answer.json();
			const good = code >= 200 && code < 300;
			outcome(good ? "good" : "bad", sign(good ? "✓" : "✕"), code ? ` ${code} in ${duration(ms)} ` : " ", marked(error ?? ""));
			if (response) byID("forward-outcome").append(scrolling(element("pre", "long", marked(indented(response) ?? response)), "Answer"));
		} catch {
			outcome("bad", "Not sent: the server cannot be reached.");
		}
	});

	listen();
})();
