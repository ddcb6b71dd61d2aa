"use strict";
// Functions of both pages. The pages show untrusted data: it is inserted as text
// (textContent, text nodes), never as HTML, and invisible characters and direction
// marks are shown as numbers.
const shared = (() => {
	const byID = (id) => document.getElementById(id);

	// Control characters except tab and line feed, and Unicode's invisible marks: a name
	// with U+202E would read backwards, one with U+200B would look like another.
	const unseen = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}]/gu;

	// marked makes untrusted text safe. Text from right to left is in a bdi, so that it
	// does not affect its surroundings.
	const marked = (text) => {
		const parts = document.createElement("bdi");
		let end = 0;
		for (const found of text.matchAll(unseen)) {
			const number = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
			parts.append(text.slice(end, found.index), element("span", "mark", "U+" + number));
			end = found.index + found[0].length;
		}
		parts.append(text.slice(end));
		return parts;
	};

	// element makes an element from texts, which marked makes safe if they are untrusted,
	// and from other elements.
	const element = (name, className, ...content) => {
		const made = document.createElement(name);
		if (className) made.className = className;
		made.append(...content);
		return made;
	};

	const duration = (ms) => {
		if (ms < 1000) return `${ms} ms`;
		if (ms < 60e3) return `${(ms / 1000).toFixed(1)} s`;
		const minutes = Math.floor(ms / 60e3);
		if (minutes < 60) return `${minutes} min ${Math.floor(ms / 1000) % 60} s`;
		if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
		return `${Math.floor(minutes / 60 / 24)} days`;
	};

	const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

	// The colour of a status, and a sign for people who do not see it. The object has no
	// prototype, because a status may be "constructor".
	const statuses = {
		__proto__: null,
		COMPLETE: ["good", "✓"],
		FAILED: ["bad", "✕"],
		TIMEOUT: ["late", "◷"],
	};

	const sign = (symbol) => {
		const made = element("span", "", symbol);
		made.ariaHidden = "true";
		return made;
	};

	// A scrolling element must be focusable, or the keyboard cannot scroll it.
	const scrolling = (made, label) => {
		made.tabIndex = 0;
		made.role = "group";
		made.ariaLabel = label;
		return made;
	};

	const raw = (title, size, content, open = false) => {
		const made = element("details", "raw", element("summary", "", title, element("small", "", size)), element("div", "", content));
		made.open = open;
		return made;
	};

	// follow reads server-sent events. address returns the URL, and listeners has a
	// function for each event name. follow returns a function that stops it.
	//
	// A failed EventSource reconnects by itself after a constant time, or never, for
	// example after a 503. So follow closes it at the first failure and waits longer each
	// time: not all open pages should reconnect at once when a server restarts.
	const follow = (address, listeners) => {
		const firstWait = 500, longestWait = 30000;
		const settled = 5000; // how long a connection must last to count as a good one
		let wait = firstWait, source, timer;

		const say = (state, text) => {
			byID("connection").dataset.state = state;
			byID("connection").textContent = text;
		};
		const connect = () => {
			let opened = Infinity;
			source = new EventSource(address());
			source.onopen = () => {
				opened = performance.now();
				say("live", "Live");
			};
			for (const [name, listener] of Object.entries(listeners)) source.addEventListener(name, listener);
			source.onerror = () => {
				source.close();
				say("waiting", "Reconnecting");
				if (performance.now() - opened > settled) wait = firstWait;
				timer = setTimeout(connect, wait * (1 + Math.random() / 2));
				wait = Math.min(wait * 2, longestWait);
			};
		};
		connect();
		return () => {
			source.close();
			clearTimeout(timer);
		};
	};

	// Preferences of this browser. They are not stored if the browser forbids it.
	const remembered = (name) => {
		try {
			return localStorage.getItem(name);
		} catch {
			return null;
		}
	};
	const remember = (name, value) => {
		try {
			localStorage.setItem(name, value);
		} catch {
			// The preference applies until the page is closed.
		}
	};

	// Times have one format with milliseconds: local, or UTC with a Z.
	let utc = remembered("callback-zone") === "utc";
	const stampText = (at, inUTC = utc) => {
		const time = new Date(at);
		if (Number.isNaN(time.getTime())) return "–";
		const shown = inUTC ? time : new Date(time.getTime() - time.getTimezoneOffset() * 60e3);
		return shown.toISOString().replace("T", " ").replace("Z", inUTC ? "Z" : "");
	};
	const stamp = (at) => {
		const made = element("time", "stamp", stampText(at));
		made.dateTime = at;
		made.title = stampText(at, !utc) + (utc ? " local time" : "");
		return made;
	};
	const zone = () => (utc ? "UTC" : "Local");
	const showTimes = (inUTC) => {
		utc = inUTC;
		remember("callback-zone", utc ? "utc" : "local");
		for (const shown of document.querySelectorAll("time.stamp")) {
			shown.textContent = stampText(shown.dateTime);
			shown.title = stampText(shown.dateTime, !utc) + (utc ? " local time" : "");
		}
	};

	// copy copies text to the clipboard and confirms it on the button.
	const copy = async (text, button) => {
		const before = button.textContent;
		let copied = true;
		try {
			await navigator.clipboard.writeText(text);
		} catch { // not there without HTTPS, or not permitted
			const field = element("textarea", "unseen");
			field.value = text;
			button.after(field); // in the dialog that is open, if there is one
			field.select();
			copied = document.execCommand("copy");
			field.remove();
			button.focus();
		}
		button.textContent = copied ? "Copied" : "Not copied";
		setTimeout(() => { button.textContent = before; }, 2000);
	};

	const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

	// Headers that curl sets by itself, or that belong to the connection.
	const ownHeaders = ["accept-encoding", "connection", "content-length", "host", "transfer-encoding"];

	// curl returns a shell command that sends the request. A body that is not text is in
	// base64.
	const curlCommand = ({ method, url, headers, body = "", base64 = "" }) => {
		const coded = base64 || (body.includes("\0") ? btoa(String.fromCharCode(...new TextEncoder().encode(body))) : "");
		const parts = ["curl", "-X " + quoted(method)];
		for (const { name, value } of headers) {
			if (!ownHeaders.includes(name.toLowerCase())) parts.push("-H " + quoted(`${name}: ${value}`));
		}
		if (coded) parts.push("--data-binary @-");
		else if (body) parts.push("--data-raw " + quoted(body));
		parts.push(quoted(url));
		return (coded ? `printf %s ${quoted(coded)} | base64 -d | ` : "") + parts.join(" \\\n  ");
	};

	// indented formats JSON with one value per line, and keeps numbers and strings as
	// written. It returns undefined if the text is not JSON.
	const deepest = 40; // levels that are indented: of very deep ones the text would grow with the square
	const indented = (text) => {
		try {
			JSON.parse(text);
		} catch {
			return undefined;
		}
		const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g) ?? [];
		const parts = [];
		let depth = 0;
		const line = () => "\n" + "  ".repeat(Math.min(depth, deepest));
		tokens.forEach((token, i) => {
			if (token === "{" || token === "[") {
				depth++;
				parts.push(token, "}]".includes(tokens[i + 1]) ? "" : line());
			} else if (token === "}" || token === "]") {
				depth--;
				parts.push("{[".includes(tokens[i - 1]) ? "" : line(), token);
			} else {
				parts.push(token, token === "," ? line() : token === ":" ? " " : "");
			}
		});
		return parts.join("");
	};

	return {
		byID, marked, element, duration, plural, statuses, sign, scrolling, raw, follow, stamp, showTimes, zone, remembered, remember,
		copy, curlCommand, indented, quoted,
	};
})();
