package browser

import "testing"

func TestDashboardFitsScreensAndIsAccessible(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	for _, at := range looks {
		t.Run(at.String(), func(t *testing.T) {
			t.Parallel()
			p := newPage(t, at)
			p.open(o.URL("/ops"))
			p.shows("Live")
			p.shows("2 dead tasks")
			p.is("the charts are drawn", `document.querySelectorAll(".plot svg").length === 3`)
			p.fits("the overview")
			p.open(o.URL("/ops") + "#/tasks")
			p.rows(11)
			p.fits("all tasks")
			p.click("#more", "Filters")
			p.fits("the filters")
			p.open(o.URL("/ops") + "#/tasks?state=dead")
			p.rows(2)
			p.pick(2)
			p.shows("2 tasks selected")
			p.fits("selected tasks")
			p.click("#bulk button", "Delete…")
			p.shows("Delete 2 tasks?")
			p.fits("the dialog")
			p.click("#ask-no", "")
			p.click("#list a", "")
			p.shows(markup)
			p.is("the callback is loaded", `Boolean(document.querySelector("#callback .pairs"))`)
			eval[int](p, `(document.querySelectorAll("#document details").forEach((d) => { d.open = true; }), 0)`)
			p.fits("a task")
			p.click(".actions button", "Redeliver…")
			p.fits("the dialog with a field")
			p.click("#ask-no", "")
			p.permit("status of 404")
			p.open(o.URL("/ops") + "#/tasks/" + escaped(hostileAnswer))
			p.shows("No such task")
			p.unharmed()
			p.fits("no task")
			p.open(o.URL("/ops") + "#/tasks?queue=" + escaped(markup+turned) + "&host=" + escaped(longWord+longWord))
			p.shows("No task matches")
			p.unharmed()
			p.fits("filters that match nothing")
			for _, view := range []string{"hosts", "queues", "schedules"} {
				p.open(o.URL("/ops") + "#/" + view)
				p.is(view+" are shown", `Boolean(document.querySelector(%s + " .grid, " + %s + " .empty"))`, "#"+view, "#"+view)
				p.fits(view)
			}
			eval[int](p, `(document.getElementById("help").showModal(), 0)`)
			p.fits("the help")
		})
	}
}

func TestReducedMotionIsRespected(t *testing.T) {
	t.Parallel()
	o := startInbox(t)
	p := newPage(t, desktop)
	p.emulate("prefers-reduced-motion", "reduce")
	p.open(o.URL("/inbox"))
	p.shows("Live")
	o.Task(o.URL("/inbox"))
	p.is("the callback is shown", `Boolean(document.querySelector(".arrived"))`)
	moving := eval[int](p, `document.getAnimations().length`)
	p.emulate("prefers-reduced-motion", "no-preference")
	if moving > 0 {
		t.Errorf("%d animations run", moving)
	}
	o.Task(o.URL("/inbox"))
	p.is("without the preference, the newest callback is animated", `document.getAnimations().length > 0`)
}
