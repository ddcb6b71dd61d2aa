// Tables whose rows change in place, so that a reload of the list keeps the focus and
// the scroll position.

const link = (text, href, className = "") => {
	const made = element("a", className, text);
	made.href = href;
	return made;
};

const tasksWith = (filters) => {
	const query = new URLSearchParams(filters).toString();
	return query ? "#/tasks?" + query : "#/tasks";
};

const emptyList = (title, ...hint) => element("div", "empty", element("p", "empty-title", title), element("p", "", ...hint));

// A column is { name, cell, className, unseen, head }. cell returns the content of a
// row's cell. The first column that is not unseen is the row's header. head returns the
// header of an unseen column, in place of its name.
const headOf = (columns) => {
	const row = element("tr", "");
	for (const { name, className = "", unseen, head } of columns) {
		const made = element(unseen ? "td" : "th", className, unseen ? head?.() ?? "" : name);
		if (!unseen) made.scope = "col";
		row.append(made);
	}
	return row;
};

const cellsOf = (columns, row) => {
	const naming = columns.findIndex((column) => !column.unseen);
	return columns.map(({ name, cell, className = "", unseen }, i) => {
		const content = cell(row) ?? element("span", "none", "–");
		const made = element(i === naming ? "th" : "td", className, ...(Array.isArray(content) ? content : [content]));
		if (i === naming) made.scope = "row";
		if (!unseen) made.dataset.name = name;
		return made;
	});
};

const focusables = "a[href], button, input";

// fillRow redraws only the changed cells of a row: a button must not disappear while it
// is pressed. Then it restores the focus.
const fillRow = (made, columns, row) => {
	const focused = [...made.querySelectorAll(focusables)].indexOf(document.activeElement);
	cellsOf(columns, row).forEach((cell, i) => {
		if (!made.cells[i]) made.append(cell);
		else if (!made.cells[i].isEqualNode(cell)) made.cells[i].replaceWith(cell);
	});
	if (focused >= 0 && !made.contains(document.activeElement)) made.querySelectorAll(focusables)[focused]?.focus();
};

// drawTable shows rows in order. While the pointer or the focus is in the table, the
// listed rows keep their positions and new ones are added at the end. head gets the
// focus when the focused row is removed.
const drawTable = (place, { title, columns, rows, keyOf, empty, head }) => {
	let table = place.querySelector("table");
	const hadFocus = place.contains(document.activeElement);
	if (!rows.length) {
		if (table || !place.hasChildNodes() || place.dataset.empty !== empty.textContent) {
			place.replaceChildren(empty);
			place.dataset.empty = empty.textContent;
		}
	} else {
		if (!table) {
			table = element("table", "grid", element("caption", "unseen", title), element("thead", "", headOf(columns)), element("tbody", ""));
			place.replaceChildren(table);
		}
		const body = table.tBodies[0];
		const before = new Map([...body.rows].map((made) => [made.dataset.key, made]));
		const steady = before.size > 0 && (body.matches(":hover") || body.contains(document.activeElement));
		const made = rows.map((row) => {
			const key = keyOf(row), text = JSON.stringify(row);
			const at = before.get(key) ?? element("tr", "");
			before.delete(key);
			if (at.dataset.text !== text) {
				at.dataset.key = key;
				at.dataset.text = text;
				fillRow(at, columns, row);
			}
			return at;
		});
		for (const gone of before.values()) gone.remove();
		made.forEach((row, i) => {
			if (steady ? !row.isConnected : body.rows[i] !== row) body.insertBefore(row, steady ? null : body.rows[i] ?? null);
		});
	}
	if (hadFocus && !place.contains(document.activeElement)) byID(head).focus();
};

// suggest sets the suggestions of a field.
const suggest = (id, values) => {
	byID(id).replaceChildren(...values.map((value) => {
		const option = element("option", "");
		option.value = value;
		return option;
	}));
};
