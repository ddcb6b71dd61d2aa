package browser

import "testing"

func TestDashboardFitsEveryScreenAndEverybody(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	for _, at := range looks {
		t.Run(at.String(), func(t *testing.T) {
			t.Parallel()
			p := newPage(t, at)
			p.open(o.URL("/ops"))
			p.shows("Live")
			p.rows(11)
			p.fits("all tasks")
			p.open(o.URL("/ops") + "#/tasks?state=dead")
			p.rows(2)
			p.click("button", "Purge all…")
			p.shows("Purge 2 tasks?")
			p.fits("the dialog")
			p.click("#ask-no", "")
			p.click("#list a", "")
			p.click("summary", "Answer")
			p.shows(markup)
			p.fits("a task")
			p.permit("status of 404")
			p.open(o.URL("/ops") + "#/tasks/" + escaped(hostileAnswer))
			p.shows("No such task")
			p.unharmed()
			p.fits("no task")
			p.open(o.URL("/ops") + "#/tasks?queue=" + escaped(markup+turned) + "&host=" + escaped(longWord+longWord))
			p.shows("No task matches")
			p.unharmed()
			p.fits("filters that match nothing")
			for _, view := range []string{"queues", "hosts", "schedules"} {
				p.open(o.URL("/ops") + "#/" + view)
				p.is(view+" are shown", `Boolean(document.querySelector(%s + " .grid, " + %s + " .empty"))`, "#"+view, "#"+view)
				p.fits(view)
			}
		})
	}
}

func TestWhoPrefersNoMotionSeesNone(t *testing.T) {
	t.Parallel()
	o := startInbox(t)
	p := newPage(t, desktop)
	p.emulate("prefers-reduced-motion", "reduce")
	p.open(o.URL("/inbox"))
	p.shows("Live")
	o.Task(o.URL("/inbox"))
	p.is("the callback is there", `Boolean(document.querySelector(".arrived"))`)
	moving := eval[int](p, `document.getAnimations().length`)
	p.emulate("prefers-reduced-motion", "no-preference")
	if moving > 0 {
		t.Errorf("%d things move", moving)
	}
	o.Task(o.URL("/inbox"))
	p.is("for others the newest is marked by a movement", `document.getAnimations().length > 0`)
}
