package cli

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// column describes a column of a table.
type column struct {
	name string
	// usual is the widest of the usual cells of a column that has only a few words.
	usual string
	// elastic columns are cut if the screen is too narrow.
	elastic bool
	// optional columns are left out if the screen is too narrow or if they are empty.
	optional bool
}

// cell is a cell of a table.
type cell struct {
	text  string
	color color
}

// table prints rows in aligned columns. Rows come in pages; each column is as wide as
// its widest cell so far.
type table struct {
	screen  *screen
	columns []column
	widths  []int // nil before the first page
	hidden  []bool
}

// minWidth is the minimum width of an elastic column, in characters.
const minWidth = 8

// gap separates columns.
const gap = "  "

// print prints a page. The first page begins with the names of the columns.
func (t *table) print(rows [][]cell) error {
	if len(rows) == 0 {
		return nil
	}
	for _, cells := range rows {
		for i := range cells {
			cells[i].text = shownCell(cells[i].text)
		}
	}
	first := t.widths == nil
	if first {
		t.widths, t.hidden = make([]int, len(t.columns)), make([]bool, len(t.columns))
		names := make([]cell, len(t.columns))
		for i, c := range t.columns {
			names[i].text = c.name
			t.widths[i] = max(utf8.RuneCountInString(c.name), len(c.usual))
		}
		rows = append([][]cell{names}, rows...)
	}
	if first || t.screen.width == 0 {
		for _, cells := range rows {
			for i, c := range cells {
				t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c.text))
			}
		}
	}
	if first && t.screen.width > 0 {
		t.fit(rows[1:])
	}
	var b strings.Builder
	for _, cells := range rows {
		t.row(&b, cells)
	}
	_, err := io.WriteString(t.screen.out, b.String())
	return err
}

// fit makes the table as narrow as the screen if possible.
func (t *table) fit(rows [][]cell) {
	for i, c := range t.columns {
		t.hidden[i] = c.optional
		for _, cells := range rows {
			t.hidden[i] = t.hidden[i] && cells[i].text == emptyCell
		}
	}
	for i := len(t.columns) - 1; i >= 0 && t.width(minWidth) > t.screen.width; i-- {
		t.hidden[i] = t.hidden[i] || t.columns[i].optional
	}
	for t.width(0) > t.screen.width {
		widest := -1
		for i, c := range t.columns {
			if c.elastic && !t.hidden[i] && t.widths[i] > minWidth && (widest < 0 || t.widths[i] > t.widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		t.widths[widest]--
	}
}

// width returns the width of the table. If elastic is not 0, it is the maximum width of
// elastic columns.
func (t *table) width(elastic int) (width int) {
	for i, c := range t.columns {
		switch {
		case t.hidden[i]:
		case c.elastic && elastic > 0:
			width += min(t.widths[i], elastic) + len(gap)
		default:
			width += t.widths[i] + len(gap)
		}
	}
	return width - len(gap)
}

// row writes a row. The last column is not padded.
func (t *table) row(b *strings.Builder, cells []cell) {
	pad := ""
	for i, c := range cells {
		if t.hidden[i] {
			continue
		}
		b.WriteString(pad)
		text := c.text
		if t.screen.width > 0 {
			text = cutTo(text, t.widths[i])
		}
		pad = strings.Repeat(" ", max(0, t.widths[i]-utf8.RuneCountInString(text))) + gap
		b.WriteString(t.screen.colored(c.color, text))
	}
	b.WriteByte('\n')
}

// cutTo cuts text to a width in characters.
func cutTo(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// emptyCell is shown for an empty cell, so that columns can be counted.
const emptyCell = "-"

// shownCell returns the printed text of a cell.
func shownCell(s string) string {
	if s == "" {
		return emptyCell
	}
	return web.TerminalText(s)
}
