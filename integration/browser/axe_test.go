package browser

import (
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// axe is axe-core's program, which npm installs.
func axe(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Fatalf("npm ci installs it: %v", err)
	}
	return string(program)
}

// fits fails if axe-core finds a fault, or if the page is wider than the screen.
// What is meant is named in what.
func (p *tab) fits(what string) {
	p.t.Helper()
	if ready := eval[bool](p, `typeof axe === "object"`); !ready {
		p.do(chromedp.Evaluate[chromedp.Void](axe(p.t)))
	}
	faults := eval[[]string](p, `(async () => {
		// What moves has half a colour.
		await Promise.all(document.getAnimations().map((a) => a.finished.catch(() => {})));
		const found = await axe.run(document, { resultTypes: ["violations", "incomplete"] });
		const say = (kind, list) => list.flatMap((fault) => fault.nodes.map((node) =>
			kind + fault.id + ": " + node.html.slice(0, 160) + "\n\t" + (node.failureSummary ?? "").replaceAll("\n", "\n\t")));
		return say("", found.violations);
	})()`)
	for _, fault := range faults {
		p.t.Errorf("%s: axe-core finds %s", what, strings.TrimSpace(fault))
	}
	wider := eval[string](p, `(() => {
		const width = document.documentElement.clientWidth;
		if (document.documentElement.scrollWidth <= width) return "";
		const widest = [...document.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > width + 1);
		return document.documentElement.scrollWidth + " px for " + width + ": " + widest.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)).join(" ");
	})()`)
	if wider != "" {
		p.t.Errorf("%s: the page is wider than the screen, %s", what, wider)
	}
}
