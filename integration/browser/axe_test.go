package browser

import (
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// axe returns the source of axe-core, which npm installs.
func axe(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Fatalf("reading axe-core: %v; run: npm ci", err)
	}
	return string(program)
}

// fits fails if axe-core finds a fault or if the page is wider than the screen. what
// names the page in messages.
func (p *tab) fits(what string) {
	p.t.Helper()
	if ready := eval[bool](p, `typeof axe === "object"`); !ready {
		p.do(chromedp.Evaluate[chromedp.Void](axe(p.t)))
	}
	faults := eval[[]string](p, `(async () => {
		// Animations have intermediate colours.
		await Promise.all(document.getAnimations().map((a) => a.finished.catch(() => {})));
		const found = await axe.run(document, { resultTypes: ["violations", "incomplete"] });
		const say = (kind, list) => list.flatMap((fault) => fault.nodes.map((node) =>
			kind + fault.id + ": " + node.html.slice(0, 160) + "\n\t" + (node.failureSummary ?? "").replaceAll("\n", "\n\t")));
		return say("", found.violations);
	})()`)
	for _, fault := range faults {
		p.t.Errorf("%s: axe-core reports %s", what, strings.TrimSpace(fault))
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
