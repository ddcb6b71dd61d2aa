package browser

import (
	"testing"

	"github.com/chromedp/chromedp/kb"
)

func TestDashboardActsOnOneTask(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	dead := o.task("/gone")
	o.until("dead", "1")
	running, queued := o.queue(), ""
	o.until("running", "1")
	o.queue()
	o.until("running", "2")
	queued = o.queue()
	o.until("queued", "1")
	p := newPage(t, desktop)

	p.open(o.URL("/ops") + "#/tasks/" + dead)
	p.click("button", "Redeliver…")
	p.shows("Redeliver this task?")
	p.is("the harmless button has the focus", `document.activeElement.id === "ask-no"`)
	p.click("#ask-no", "")
	p.is("nothing has happened", `!document.getElementById("ask").open && document.querySelectorAll(".timeline li").length === 5`)
	p.click("button", "Redeliver…")
	p.click("#ask-yes", "Redeliver")
	p.shows("Task " + dead + " was redelivered.")
	p.shows("Redelivered by hand")
	p.is("there is a second attempt", `document.querySelectorAll(".timeline details").length === 2`)

	p.open(o.URL("/ops") + "#/tasks/" + queued)
	p.click("button", "Cancel…")
	p.click("#ask-yes", "Cancel")
	p.shows("Task " + queued + " was canceled.")
	p.shows("FAILED")
	p.shows("canceled")
	p.open(o.URL("/ops") + "#/tasks/" + running)
	p.shows("running")
	p.click("button", "Cancel…")
	p.click("#ask-yes", "Cancel")
	p.shows("FAILED")

	p.permit("status of 404") // it is gone then
	p.open(o.URL("/ops") + "#/tasks/" + dead)
	p.click("button", "Purge…")
	p.shows("This cannot be undone.")
	p.click("#ask-yes", "Purge")
	p.shows("No such task")
	o.until("dead", "0")
}

func TestDashboardActsOnAllThatMatch(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, look{phone, "light"})

	p.open(o.URL("/ops") + "#/tasks?state=dead")
	p.rows(2)
	p.is("the count is known", `document.querySelector("#states a[data-state=dead] .badge").textContent === "2"`)
	p.click("button", "Redeliver all…")
	p.shows("Redeliver 2 tasks?") // the number, for nothing but the state is named
	p.press(kb.Escape)
	p.is("the dialog is closed", `!document.getElementById("ask").open`)
	p.click("button", "Redeliver all…")
	p.click("#ask-yes", "Redeliver 2")
	p.shows("2 tasks redelivered.")
	o.until("dead", "2") // their receiver is gone still

	p.open(o.URL("/ops") + "#/tasks?state=queued&queue=train")
	p.rows(3)
	p.click("button", "Cancel all…")
	p.shows("Cancel every task that matches?") // the filters, for the number is not known
	p.is("the filters are named", `document.getElementById("ask-text").innerText.replace(/\s+/g, " ").includes("State queued Queue train")`)
	p.click("#ask-yes", "Cancel all")
	p.shows("3 tasks canceled.")
	p.shows("No task matches")
	o.until("queued", "0")

	p.open(o.URL("/ops") + "#/tasks?state=done&status=FAILED")
	p.rows(3)
	p.click("button", "Purge all…")
	p.click("#ask-yes", "Purge all")
	p.shows("3 tasks purged.")
	p.shows("No task matches")
	o.until("done", "3")
}

func TestDashboardSaysWhyAnActionFailed(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.queue()
	o.until("running", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.click("button", "Cancel…")
	p.shows("Cancel this task?")
	p.permit("status of 409") // it ends before the answer is given
	o.release()
	o.until("done", "1")
	p.click("#ask-yes", "Cancel")
	p.shows("the task has ended")
	p.is("the dialog is closed", `!document.getElementById("ask").open`)
}

func TestDashboardLeavesTheFocusInAListThatIsReadAnew(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.task("/ok")
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.rows(1)
	p.tabTo("#list a", id)
	eval[int](p, `(document.activeElement.drawnBefore = true, dispatchEvent(new Event("hashchange")), 0)`)
	p.is("the focus is at the same task, drawn anew", `document.activeElement.hash === "#/tasks/" + %s && !document.activeElement.drawnBefore`, id)
}

func TestDashboardIsUsedByKeyboardAlone(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.rows(11)
	p.tabTo("#states a", "Dead")
	p.press(kb.Enter)
	p.rows(2)
	p.tabTo("button", "Redeliver all…")
	p.press(kb.Enter)
	p.shows("Redeliver 2 tasks?")
	// The focus stays in the dialog.
	for range 6 {
		p.press(kb.Tab)
		p.is("the focus is in the dialog", `document.activeElement === document.body || document.getElementById("ask").contains(document.activeElement)`)
	}
	p.press(kb.Escape)
	p.is("the focus is where it was", `document.activeElement.textContent === "Redeliver all…"`)
	p.press(" ")
	p.shows("Redeliver 2 tasks?")
	p.tabTo("#ask-yes", "")
	p.press(kb.Enter)
	p.shows("2 tasks redelivered.")
	p.is("the focus is where it was", `document.activeElement.textContent === "Redeliver all…"`)
	o.until("dead", "2")

	p.tabTo("#list a", "")
	p.press(kb.Enter)
	p.is("the focus is at the task's head", `document.activeElement.id === "task-title"`)
	p.shows("Timeline")
	p.tabTo("summary", "Answer")
	p.press(kb.Enter)
	p.shows(markup)
	p.tabBackTo("a", "All tasks")
	p.press(kb.Enter)
	p.is("the list is as it was", `location.hash === "#/tasks?state=dead" && document.activeElement.id === "tasks-title"`)
	p.rows(2)
	p.tabBackTo("#views a", "Queues")
	p.press(kb.Enter)
	p.shows("Workers here")

	p.tabBackTo("#views a", "Tasks")
	p.press(kb.Enter)
	p.rows(11)
	p.tabTo("#queue", "")
	p.press("train" + kb.Enter)
	p.rows(5)
	p.tabTo("#status", "")
	p.press("F") // selects FAILED
	p.shows("No task matches")
	p.tabTo("#reset", "")
	p.press(kb.Enter)
	p.rows(11)
	p.tabBackTo("#id", "")
	p.permit("status of 404")
	p.press("nothing" + kb.Enter)
	p.shows("No such task")
}
