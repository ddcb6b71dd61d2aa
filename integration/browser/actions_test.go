package browser

import (
	"net/http"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestDashboardActsOnOneTask(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	dead, busy, stopped := o.task("/gone"), o.task("/busy"), o.task("/busy")
	o.until("dead", "1")
	o.until("delivering", "2")
	running, queued := o.queue(), ""
	o.until("running", "1")
	o.queue()
	o.until("running", "2")
	queued = o.queue()
	o.until("queued", "1")
	p := newPage(t, desktop)

	p.open(o.URL("/ops") + "#/tasks/" + dead)
	p.click(".actions button", "Redeliver…")
	p.shows("Redeliver this task?")
	p.click("#ask-no", "")
	p.is("the task has no new attempt", `!document.getElementById("ask").open && document.querySelectorAll(".attempts thead th").length === 1`)
	p.click(".actions button", "Redeliver…")
	p.click("#ask-yes", "Redeliver")
	p.shows("redelivered.")
	p.shows("Redelivered manually")
	p.shows("2 attempts")

	other := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {})
	p.click(".actions button", "Redeliver…")
	p.fill("#redeliver-url", other.URL+"/elsewhere\r")
	p.is("the callback is delivered to the other URL", `document.querySelector(".verdicts .doing").textContent === "Delivered"`)

	p.open(o.URL("/ops") + "#/tasks/" + busy)
	p.click(".actions button", "Retry now")
	p.is("the cancel button has the focus", `document.activeElement.id === "ask-no"`)
	p.click("#ask-yes", "Retry now")
	p.shows("Given up after 2 attempts") // the schedule has one retry
	p.open(o.URL("/ops") + "#/tasks/" + stopped)
	p.click(".actions button", "Stop retrying")
	p.shows("Stop retrying this task?")
	p.click("#ask-yes", "Stop retrying")
	p.shows("Given up after 1 attempt")

	p.open(o.URL("/ops") + "#/tasks/" + queued)
	p.click(".actions button", "Cancel task")
	p.click("#ask-yes", "Cancel task")
	p.shows("Canceled")
	p.open(o.URL("/ops") + "#/tasks/" + running)
	p.shows("Running for")
	p.click(".actions button", "Cancel task")
	p.click("#ask-yes", "Cancel task")
	p.shows("FAILED")

	p.permit("status of 404") // the task is deleted then
	p.open(o.URL("/ops") + "#/tasks/" + busy)
	p.is("the delete button is red", `getComputedStyle(document.querySelector(".actions [data-key=delete]")).color === "rgb(176, 35, 27)"`)
	p.click(".actions button", "Delete")
	p.shows("This cannot be undone.")
	p.is("the confirm button is red", `getComputedStyle(document.getElementById("ask-yes")).backgroundColor === "rgb(176, 35, 27)"`)
	p.click("#ask-yes", "Delete")
	p.shows("No such task")
	o.until("dead", "1")
}

// pick selects the first n rows of the list.
func (p *tab) pick(n int) {
	p.t.Helper()
	p.is("enough rows can be selected", `document.querySelectorAll("#list tbody .pick input").length >= %s`, n)
	eval[int](p, `([...document.querySelectorAll("#list tbody .pick input")].slice(0, %s).forEach((box) => box.click()), 0)`, n)
}

func TestDashboardActsOnSelectedTasks(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(11)
	p.is("nothing is selected", `document.getElementById("bulk").hidden`)
	p.click("#pick-page", "")
	p.shows("11 tasks selected")
	p.click("#bulk button", "Redeliver…")
	p.shows("Redeliver 5 tasks?") // three are done and two dead
	p.shows("It does not apply to 6 of them.")
	p.click("#ask-no", "")
	p.click("#bulk button", "Clear")
	p.is("nothing is selected", `document.getElementById("bulk").hidden && !document.querySelector("#list input:checked")`)

	p.click("#states a", "Delivering")
	p.rows(1)
	p.pick(1)
	p.is("only applicable actions are offered", `[...document.querySelectorAll("#bulk button")].map((e) => e.textContent).join() === "Retry now…,Stop retrying…,Clear"`)
	p.click("#bulk button", "Stop retrying…")
	p.shows("Stop retrying 1 task?")
	p.click("#ask-yes", "Stop retrying: 1")
	p.shows("1 task stopped.")
	o.until("dead", "3")

	p.click("#states a", "Dead")
	p.rows(3)
	p.pick(2)
	p.click("#bulk button", "Delete…")
	p.shows("Delete 2 tasks?")
	p.is("the confirm button is red", `getComputedStyle(document.getElementById("ask-yes")).backgroundColor === "rgb(176, 35, 27)"`)
	p.click("#ask-yes", "Delete: 2")
	p.shows("2 tasks deleted.")
	p.rows(1)
	o.until("dead", "1")
}

func TestDashboardActsOnAllThatMatch(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, look{phone, "light"})

	p.open(o.URL("/ops") + "#/tasks?state=dead")
	p.rows(2)
	p.click("button", "Select all that match")
	p.shows("All that match selected")
	p.click("#bulk button", "Redeliver…")
	p.shows("Redeliver 2 tasks?")
	p.press(kb.Escape)
	p.is("the dialog is closed", `!document.getElementById("ask").open`)
	p.click("#bulk button", "Redeliver…")
	p.click("#ask-yes", "Redeliver: 2")
	p.shows("2 tasks redelivered.")
	o.until("dead", "2") // their receiver still answers 410

	p.open(o.URL("/ops") + "#/tasks?state=queued&queue=train")
	p.rows(3)
	p.click("button", "Select all that match")
	p.click("#bulk button", "Cancel…")
	p.shows("Cancel 3 tasks?")
	p.is("the filters are named", `document.getElementById("ask-text").innerText.replace(/\s+/g, " ").includes("State queued Queue train")`)
	p.click("#ask-yes", "Cancel: 3")
	p.shows("3 tasks canceled.")
	p.shows("No task matches")
	o.until("queued", "0")

	p.open(o.URL("/ops") + "#/tasks?state=done&status=FAILED")
	p.rows(3)
	p.click("button", "Select all that match")
	p.click("#bulk button", "Delete…")
	p.click("#ask-yes", "Delete: 3")
	p.shows("3 tasks deleted.")
	p.shows("No task matches")
	o.until("done", "3")
}

func TestDashboardShowsActionErrors(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.queue()
	o.until("running", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.click(".actions button", "Cancel task")
	p.shows("Cancel this task?")
	p.permit("status of 409") // the task finishes before the dialog is answered
	o.release()
	o.until("done", "1")
	p.click("#ask-yes", "Cancel task")
	p.shows("the task has ended")
	p.is("the dialog is closed", `!document.getElementById("ask").open`)
}

func TestDashboardWorksByKeyboard(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(11)
	p.tabTo("#states a", "Dead")
	p.press(kb.Enter)
	p.rows(2)
	p.tabTo("#select-all", "")
	p.press(kb.Enter)
	p.is("the first action has the focus", `document.activeElement.textContent === "Redeliver…"`)
	p.press(kb.Enter)
	p.shows("Redeliver 2 tasks?")
	// The focus stays in the dialog.
	for range 6 {
		p.press(kb.Tab)
		p.is("the focus is in the dialog", `document.activeElement === document.body || document.getElementById("ask").contains(document.activeElement)`)
	}
	p.press(kb.Escape)
	p.is("the focus has returned", `document.activeElement.textContent === "Redeliver…"`)
	p.press(" ")
	p.shows("Redeliver 2 tasks?")
	p.tabTo("#ask-yes", "")
	p.press(kb.Enter)
	p.shows("2 tasks redelivered.")
	o.until("dead", "2")

	p.tabTo("#list a", "")
	p.press(kb.Enter)
	p.is("the task's heading has the focus", `document.activeElement.id === "task-title"`)
	p.shows("Timeline")
	p.tabTo("summary", "header")
	p.press(kb.Enter)
	p.is("the headers are open", `Boolean(document.querySelector(".attempts details[open]"))`)
	p.tabBackTo("a", "All tasks")
	p.press(kb.Enter)
	p.is("the list is restored", `location.hash === "#/tasks?state=dead" && document.activeElement.id === "tasks-title"`)
	p.rows(2)
	p.tabBackTo("#views a", "Queues")
	p.press(kb.Enter)
	p.shows("with 2 workers here")
	p.is("the numbers of queued and running tasks are shown", `document.querySelector("#queues tbody").innerText.replace(/\s+/g, " ").includes("3 of 100,000 0 2 with 2 workers here")`)
	p.tabTo("#queues button", "Pause")
	p.press(kb.Enter)
	p.shows("Pause this queue?")
	p.tabTo("#ask-yes", "Pause")
	p.press(kb.Enter)
	p.is("the queue is paused", `document.querySelector("#queues .doing").textContent === "Paused"`)

	p.tabBackTo("#views a", "Tasks")
	p.press(kb.Enter)
	p.rows(11)
	p.tabTo("#more", "Filters")
	p.press(kb.Enter)
	p.tabTo("#queue", "")
	p.press("train" + kb.Enter)
	p.rows(5)
	p.tabTo("#status", "")
	p.press("F") // selects FAILED
	p.shows("No task matches")
	p.tabTo("#filter [type=reset]", "")
	p.press(kb.Enter)
	p.rows(11)
}

func TestDashboardHasKeyboardShortcuts(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.shows("Live")
	p.press("?")
	p.shows("Keyboard shortcuts")
	p.press(kb.Escape)
	p.press("2")
	p.rows(11)
	hash := func(n int) string {
		return eval[string](p, `document.querySelectorAll("#list tbody a")[%s].hash`, n)
	}
	p.press("j")
	p.is("the first row has the focus", `document.activeElement.hash === %s`, hash(0))
	p.press("j")
	p.press("j")
	p.press("k")
	p.is("the second row has the focus", `document.activeElement.hash === %s`, hash(1))
	p.press("x")
	p.shows("1 task selected")
	p.press(kb.Escape)
	p.is("nothing is selected", `document.getElementById("bulk").hidden`)
	second := hash(1)
	p.press(kb.Enter)
	p.is("the task is open", `location.hash === %s`, second)
	p.press("u")
	p.rows(11)
	p.press("4")
	p.shows("with 2 workers here")
	p.press("/")
	p.is("the search field has the focus", `document.activeElement.id === "search"`)
	p.press("jjj") // typed as text
	p.is("keys are typed into the field", `document.activeElement.value === "jjj"`)
	p.press(kb.Escape)

	p.press("?")
	p.click("#keys-on", "")
	p.press(kb.Escape)
	p.press("3")
	p.is("shortcuts can be switched off", `location.hash.startsWith("#/tasks")`)
}
