package browser

import (
	"context"
	"os/exec"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// tabTo presses Tab until the element with the selector and text has the focus. Every
// element on the way must show its focus.
func (p *tab) tabTo(selector, text string) {
	p.t.Helper()
	p.tab(selector, text)
}

// tabBackTo is tabTo with Shift and Tab.
func (p *tab) tabBackTo(selector, text string) {
	p.t.Helper()
	p.tab(selector, text, chromedp.KeyModifiers(chromedp.ModifierShift))
}

func (p *tab) tab(selector, text string, options ...chromedp.KeyOption) {
	p.t.Helper()
	const stops = 200 // more than any page has
	for range stops {
		p.press(kb.Tab, options...)
		seen := eval[struct {
			There   bool
			What    string
			Outline string
			Visible bool
		}](p, `(() => {
			const e = document.activeElement, style = getComputedStyle(e);
			return {
				There: e.matches(%s) && e.innerText.includes(%s), What: e.outerHTML.slice(0, 120),
				Outline: style.outlineStyle, Visible: e === document.body || e.checkVisibility(),
			};
		})()`, selector, text)
		if !seen.Visible || seen.Outline == "none" && seen.What[:5] != "<body" {
			p.t.Errorf("the focus cannot be seen (visible: %v, outline: %s) on %s", seen.Visible, seen.Outline, seen.What)
		}
		if seen.There {
			return
		}
	}
	p.t.Fatalf("%s %q cannot be reached with Tab", selector, text)
}

// runShell runs a command as a person pastes it into a terminal.
func runShell(t *testing.T, command string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), gatewaytest.Patience)
	defer cancel()
	if output, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, output)
	}
}
