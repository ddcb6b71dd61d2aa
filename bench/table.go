package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// row is one comparison.
type row struct {
	what     string
	measured string // of the gateway
	against  string // of the other side
	ratio    string
	target   string
	met      bool
}

// table is the output of a measurement.
type table struct {
	head []string
	rows [][]string
}

// comparison returns the table of figures that have a target.
func comparison(rows []row) table {
	t := table{head: []string{"", "here", "beside it", "ratio", "target", ""}}
	for _, r := range rows {
		met := "met"
		switch {
		case r.target == "":
			met = ""
		case !r.met:
			met = "**missed**"
		}
		t.rows = append(t.rows, []string{r.what, r.measured, r.against, r.ratio, r.target, met})
	}
	return t.withoutEmpty()
}

// withoutEmpty returns the table without the columns in which no row has a value.
func (t table) withoutEmpty() (kept table) {
	kept.rows = make([][]string, len(t.rows))
	for i, head := range t.head {
		if !slices.ContainsFunc(t.rows, func(row []string) bool { return row[i] != "" }) {
			continue
		}
		kept.head = append(kept.head, head)
		for k, row := range t.rows {
			kept.rows[k] = append(kept.rows[k], row[i])
		}
	}
	return kept
}

func (t table) markdown() string {
	if len(t.rows) == 0 {
		return ""
	}
	var b strings.Builder
	for i, line := range slices.Concat([][]string{t.head}, t.rows) {
		b.WriteString("| " + strings.Join(line, " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(t.head)) + "|\n")
		}
	}
	return b.String()
}

// pages are the pages with tables, for users and for contributors.
var pages = []string{"performance.md", "internals/performance.md"}

// endMark ends a table in a page.
const endMark = "<!-- end -->"

// writeTable writes a table between its markers in each page that has them.
func (b *bench) writeTable(name, table string) error {
	begin, end := []byte("<!-- bench:"+name+" -->\n"), []byte(endMark)
	written := false
	for _, page := range pages {
		page = filepath.Join(b.docs, page)
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		i := bytes.Index(text, begin)
		if i < 0 {
			continue
		}
		i += len(begin)
		n := bytes.Index(text[i:], end)
		if n < 0 {
			return fmt.Errorf("%s: the mark %s has no end", page, begin)
		}
		if err := os.WriteFile(page, slices.Concat(text[:i], []byte("\n"+table+"\n"), text[i+n:]), 0o644); err != nil {
			return err
		}
		written = true
	}
	if !written {
		return fmt.Errorf("no page has the mark %s", begin)
	}
	return nil
}

// machine describes the machine of the measurement.
func machine() string {
	model := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, %s, %s, %s", model, runtime.NumCPU(), runtime.GOOS, runtime.Version(),
		time.Now().UTC().Format("2006-01-02"))
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// pairs are the values of alternating rounds.
type pairs struct{ ours, theirs []float64 }

func (p *pairs) add(ours, theirs float64) {
	p.ours, p.theirs = append(p.ours, ours), append(p.theirs, theirs)
}

// ratio returns the median of the rounds' ratios, because a temporary slowdown of the
// machine affects both sides of a round.
func (p *pairs) ratio() float64 {
	ratios := make([]float64, len(p.ours))
	for i := range ratios {
		ratios[i] = p.ours[i] / p.theirs[i]
	}
	return median(ratios)
}

// atLeast returns a row whose ratio must be at least least.
func (p *pairs) atLeast(what, unit string, least float64) row {
	return row{what, number(median(p.ours)) + unit, number(median(p.theirs)) + unit,
		fmt.Sprintf("%.2f", p.ratio()), fmt.Sprintf("≥ %.2f", least), p.ratio() >= least-0.005}
}

// beside returns a row without a target.
func (p *pairs) beside(what, unit string) row {
	return row{what: what, measured: number(median(p.ours)) + unit, against: number(median(p.theirs)) + unit,
		ratio: fmt.Sprintf("%.2f", p.ratio())}
}

// atMost returns a row whose ratio must be at most most.
func (p *pairs) atMost(what, unit string, most float64) row {
	return row{what, number(median(p.ours)) + unit, number(median(p.theirs)) + unit,
		fmt.Sprintf("%.2f", p.ratio()), fmt.Sprintf("≤ %.2f", most), p.ratio() <= most+0.005}
}

// number formats a value with three digits.
func number(v float64) string {
	switch {
	case v >= 1000:
		s := fmt.Sprintf("%.0f", v)
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// writePicture writes a picture for the pages.
func (b *bench) writePicture(name string, data []byte) error {
	path := filepath.Join(b.docs, "images", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
