package browser

import (
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// figure waits until a figure of the overview has a value.
func (p *tab) figure(name, value string) {
	p.t.Helper()
	p.is(name+" is "+value, `[...document.querySelectorAll(".figure")].some((f) => f.innerText.replace(/\s+/g, " ").trim() === %s)`, name+" "+value)
}

func TestDashboardOverviewShowsProblems(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.shows("Live")
	p.shows("Nothing fails, nothing is paused, no task is dead.")
	p.figure("Dead", "0")
	p.figure("Oldest waiting", "–")
	o.task("/busy")
	o.task("/gone")
	for range 3 {
		o.queue()
	}
	p.figure("Dead", "1")
	p.figure("Retrying", "1")
	p.figure("Running", "2")
	p.figure("Waiting", "1")
	p.is("the oldest waiting task has an age", `/^Oldest waiting \d+ s$/.test(document.querySelectorAll(".figure")[1].innerText.replace(/\s+/g, " ").trim())`)
	host := strings.TrimPrefix(o.receiver.URL, "http://")
	p.is("the failing host is first, with its duration and pending callbacks",
		`document.querySelector(".alarms li").innerText.startsWith(%s) && /has failed for \d+ s, 1 callback pending/.test(document.querySelector(".alarms li").innerText)`, host)
	p.is("the reason is shown", `/503|410/.test(document.querySelector(".alarms .reason").textContent)`)
	p.click(".alarms a", "1 dead task")
	p.rows(1)
	p.click("#views a", "Overview")
	p.click(".alarms a", host)
	p.rows(1)
	p.is("the list has the delivering task", `location.hash.includes("state=delivering")`)
}

func TestDashboardChartsHaveAxesAndTooltip(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.is("there are three charts", `document.querySelectorAll(".plot svg").length === 3`)
	p.is("a chart without values says so", `document.querySelector(".plot").textContent.includes("No data in this time")`)
	o.task("/ok")
	p.is("the task is in the first chart", `!document.querySelector(".plot").textContent.includes("No data in this time")`)
	p.is("the title has the unit", `document.querySelector(".chart h4").textContent === "Tasks per second"`)
	p.is("the vertical axis has figures", `[...document.querySelectorAll(".plot .tick[text-anchor=end]")].slice(0, 5).map((e) => Number(e.textContent)).every((n, i, all) => i === 0 ? n === 0 : n > all[i - 1])`)
	p.is("the horizontal axis has times", `[...document.querySelectorAll(".plot .tick")].filter((e) => /^\d\d:\d\d$/.test(e.textContent)).length >= 4`)
	p.is("latencies have a unit", `/\d ms/.test(document.querySelectorAll(".plot")[2].textContent)`)

	at := eval[struct{ X, Y float64 }](p, `(() => {
		const box = document.querySelector(".plot").getBoundingClientRect();
		return { X: box.x + box.width / 2, Y: box.y + box.height / 2 };
	})()`)
	p.do(chromedp.MouseEvent("mouseMoved", at.X, at.Y))
	p.is("the tooltip has the time and the value", `/^\d\d:\d\d:\d\dAccepted \d/.test(document.querySelector(".tip")?.textContent)`)
	p.do(chromedp.MouseEvent("mouseMoved", 1, 1))
	p.is("the tooltip is gone", `!document.querySelector(".tip")`)
	eval[int](p, `(document.querySelector(".plot").focus(), 0)`)
	p.press(kb.ArrowLeft)
	p.is("an arrow key selects the newest value", `document.querySelector(".tip") && document.querySelector(".plot").ariaLabel.startsWith("Tasks, per second, at ")`)

	span := `new Date(JSON.parse(JSON.stringify(charts.tasks.times.at(-1) - charts.tasks.times[0]))).getTime()`
	p.is("ten minutes are shown", span+` > 9 * 60e3`)
	p.choose("#span", "Last 2 minutes")
	p.is("two minutes are shown", span+` <= 2 * 60e3`)
	p.reload()
	p.is("the span is remembered", `document.getElementById("span").value === "2"`)
	p.choose("#span", "Last 24 hours")
	p.is("a day is shown", `charts.tasks.times.length === 1440 && charts.latency.times.length === 1440`)
	p.is("it ends with the last minute", `charts.tasks.times.at(-1) - charts.tasks.times[0] === 1439 * 60e3`)
}

func TestDashboardListUpdatesInPlace(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	running := o.queue()
	o.until("running", "1")
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(1)
	p.shows("Running for")
	p.tabTo("#list a", running[:8])
	id := o.task("/ok")
	p.is("the new task is only counted", `document.getElementById("refresh").textContent === "Show 1 new" && document.querySelectorAll("#list tbody tr").length === 1`)
	o.release()
	p.is("the listed task has changed in place", `document.querySelector("#list tbody tr").innerText.includes("Delivered")`)
	p.is("the focus has not moved", `document.activeElement.hash === "#/tasks/" + %s`, running)
	p.click("button", "Show 1 new")
	p.rows(2)
	p.is("the newest is first", `document.querySelector("#list a").hash === "#/tasks/" + %s`, id)
	p.is("no more new tasks are counted", `document.getElementById("refresh").textContent === "Refresh"`)

	// What no longer matches stays where it is until the list is read again.
	p.open(o.URL("/ops") + "#/tasks?state=dead")
	p.shows("No task matches")
	dead := o.task("/gone")
	p.click("button", "Show 1 new")
	p.rows(1)
	o.Do(http.MethodDelete, "/ops/api/tasks/"+dead, "")
	p.is("the task is still listed, but faint", `Boolean(document.querySelector("#list tbody tr.gone"))`)
	p.click("button", "Show changes")
	p.shows("No task matches")
}

func TestDashboardCountsNewTasksAfterDelay(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: `
		const late = new Promise((listen) => { globalThis.listen = listen; });
		globalThis.EventSource = class extends EventSource {
			addEventListener(...its) { late.then(() => super.addEventListener(...its)); }
		};`})
	p.open(o.URL("/ops") + "#/tasks")
	p.shows("No task yet")
	id := o.task("/ok")
	o.until("done", "1")
	eval[int](p, `(listen(), 0)`)
	p.click("button", "Show 1 new")
	p.shows(id[:8])
	p.rows(1)
}

func TestDashboardShowsTaskProgress(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	o.Post("/broken", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	o.until("done", "4")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(12)
	row := func(phrase, rest string, n int) {
		t.Helper()
		p.is(phrase+" is shown for the expected number of tasks", `[...document.querySelectorAll("#list tbody tr")].filter((row) =>
			row.querySelector(".doing").textContent.startsWith(%s) && row.innerText.replace(/\s+/g, " ").includes(%s)).length === %s`, phrase, rest, n)
	}
	row("Delivered", "COMPLETE 200", 3)
	row("Given up after 1 attempt", "410", 2)
	row("Retries in ", "the receiver answered 503 Service Unavailable", 1)
	row("Running for", "queue train", 2)
	row("Waiting for a worker", "queue train", 3)
	row("Failed, delivered", "FAILED 500", 1)
	row("Given up", "the receiver answered 410 Gone", 2)
	p.is("each row has one colour", `[...document.querySelectorAll("#list tbody tr")].every((row) => row.querySelectorAll(".good, .bad, .late, .busy").length <= 1)`)
	p.is("the request is shown", `document.querySelector("#list tbody").innerText.includes("POST /train")`)
	p.is("times have milliseconds", `[...document.querySelectorAll("#list time.stamp")].every((e) => /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}$/.test(e.textContent))`)
	p.click("#zone", "Local")
	p.is("times are UTC", `[...document.querySelectorAll("#list time.stamp")].every((e) => e.textContent === e.dateTime.replace("T", " ").replace(/(\.\d{3})\d*Z$/, "$1Z"))`)
	p.reload()
	p.rows(12)
	p.is("the time zone is remembered", `document.getElementById("zone").textContent === "UTC" && document.querySelector("#list time.stamp").textContent.endsWith("Z")`)
	p.unharmed()
}

func TestDashboardFiltersTasks(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	o.Post("/broken", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	o.until("done", "4")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(12)
	for state, n := range map[string]int{"Queued": 3, "Running": 2, "Delivering": 1, "Done": 4, "Dead": 2} {
		p.click("#states a", state)
		p.rows(n)
		p.is("the current state is marked", `document.querySelector("#states [aria-current=page]").textContent.startsWith(%s)`, state)
	}
	p.click("#states a", "All")
	p.rows(12)

	p.click("#more", "Filters")
	p.choose("#status", "FAILED")
	p.rows(1)
	p.choose("#status", "Any")
	p.rows(12)
	p.fill("#queue", "train\r")
	p.rows(5)
	p.is("the link has the filter", `location.hash === "#/tasks?queue=train"`)
	p.click("#states a", "Queued") // another filter stays
	p.rows(3)
	p.choose("#age", "Before the last hour")
	p.shows("No task matches")
	p.choose("#age", "Last hour")
	p.rows(3)

	// A reload and the back button keep the view.
	p.open(o.URL("/ops") + eval[string](p, "location.hash"))
	p.reload()
	p.rows(3)
	p.is("the fields have the filters", `document.getElementById("queue").value === "train" && document.getElementById("age").value === "newer_than=1h"`)
	p.click(".chip-away", "")
	p.is("the filter of the chip is removed", `location.hash === "#/tasks?state=queued&newer_than=1h"`)
	eval[int](p, `(history.back(), 0)`)
	p.is("the filters are back", `document.getElementById("queue").value === "train"`)

	host := strings.TrimPrefix(o.receiver.URL, "http://")
	for _, search := range []struct {
		text, hash string
		n          int
	}{
		{host, "host", 12},
		{"410", "last_status_code", 2},
		{"503", "last_status_code", 1},
		{"/train", "path", 5},
		{"error: nothing like this", "last_error", 0},
		{"queue: train", "queue", 5},
	} {
		p.open(o.URL("/ops") + "#/tasks")
		p.fill("#search", search.text+"\r")
		p.is("the search is read as "+search.hash, `new URLSearchParams(location.hash.split("?")[1]).has(%s)`, search.hash)
		if search.n == 0 {
			p.shows("No task matches")
			continue
		}
		p.rows(search.n)
	}
	p.open(o.URL("/ops") + "#/tasks?host=nobody.example&newer_than=3m")
	p.shows("No task matches")
	p.is("a custom age is in the list", `document.getElementById("age").selectedOptions[0].textContent === "Accepted in the last 3m"`)
	p.permit("status of 400")
	p.open(o.URL("/ops") + "#/tasks?newer_than=soon")
	p.shows(`newer_than: "soon" is not a duration`)
}

func TestDashboardFindsTasksByIDPrefix(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.task("/ok")
	for range 3 {
		o.task("/ok")
	}
	o.until("done", "4")
	p := newPage(t, look{phone, "light"})
	p.open(o.URL("/ops") + "#/tasks")
	p.rows(4)
	p.fill("#search", id[:18]+"\r")
	p.is("the task is open", `location.hash === "#/tasks/" + %s`, id)
	p.click("a", "All tasks")
	p.fill("#search", strings.ToUpper(id)+"\r")
	p.is("a whole ID opens the task", `document.getElementById("task-title").textContent === %s`, id)
	p.click("a", "All tasks")
	p.fill("#search", "0000ffff\r")
	p.shows("No task matches")
}

func TestDashboardPagesThroughTasks(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.Tasks(120, func(int) string { return o.receiver.URL + "/ok" })
	o.until("done", "120")
	p := newPage(t, look{phone, "light"})
	p.open(o.URL("/ops") + "#/tasks?state=done")
	p.rows(50)
	p.is("the list starts near the top on a phone", `document.querySelector("#list").getBoundingClientRect().top < 360`)
	p.shows("50 tasks on this page")
	first := eval[string](p, `document.querySelector("#list a").hash`)
	p.click("#pages a", "Next page")
	p.is("another page is shown", `document.querySelector("#list a").hash !== %s`, first)
	p.rows(50)
	p.is("its heading has the focus", `document.activeElement.id === "tasks-title"`)
	p.click("#pages a", "Next page")
	p.rows(20)
	p.is("it is the last page", `![...document.querySelectorAll("#pages a")].some((a) => a.textContent === "Next page")`)
	p.reload()
	p.rows(20)
	p.click("#pages a", "First page")
	p.is("it is the first page again", `document.querySelector("#list a").hash === %s`, first)
}

func TestDashboardShowsHostsQueuesAndSchedules(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.click("#views a", "Hosts")
	p.shows("No callback is pending")
	o.fill()
	p.is("the host of the pending callback is listed", `document.querySelectorAll("#hosts tbody tr").length === 1`)
	p.shows("Fails for")
	p.is("the reason is shown", `/503|410/.test(document.querySelector("#hosts .reason").textContent)`)
	p.click("#hosts button", "Pause")
	p.shows("Pause this host?")
	p.click("#ask-yes", "Pause")
	p.shows("is paused.")
	p.is("it is shown as paused", `document.querySelector("#hosts .doing").textContent === "Paused"`)
	p.click("#hosts button", "Resume")
	p.is("it is resumed, and its failures are no longer counted", `!/Paused|Fails for/.test(document.querySelector("#hosts .doing").textContent)`)
	p.click("#hosts a", "127.0.0.1")
	p.rows(1)

	p.click("#views a", "Queues")
	p.is("the view's heading has the focus", `document.activeElement.id === "queues-title"`)
	p.is("depth, running tasks and workers are shown", `document.querySelector("#queues tbody").innerText.replace(/\s+/g, " ").includes("3 of 100,000 0 2 with 2 workers here")`)
	p.shows("Oldest waits for")
	p.click("#queues button", "Pause")
	p.click("#ask-yes", "Pause")
	p.is("it is shown as paused", `document.querySelector("#queues .doing").textContent === "Paused"`)
	p.click("#views a", "Overview")
	p.shows("Queue train is paused, 3 tasks waiting")
	p.click(".alarms a", "train")
	p.click("#queues button", "Resume")
	p.is("it is resumed", `document.querySelector("#queues .doing").textContent !== "Paused"`)

	p.click("#views a", "Schedules")
	p.shows("30 2 * * * Europe/Paris")
	p.shows("POST /train/nightly")
	p.is("the next run is in the future", `/in [0-9]+ (h|min|s)$/.test(document.querySelector("#schedules .when").textContent)`)
	p.click("#schedules button", "Run now")
	p.shows("Run this schedule now?")
	p.click("#ask-yes", "Run now")
	p.shows("was added to the queue train.")
	o.until("queued", "4")
	p.click("#views a", "Queues")
	p.click("#queues a", "train")
	p.rows(6)
	p.is("the tab has the view's title", `document.title === "Tasks – Callbacks"`)
}

func TestDashboardReconnects(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, look{phone, "dark"})
	p.open(o.URL("/ops") + "#/tasks")
	p.shows("Live")
	p.permit("net::ERR_") // expected while the server is down
	p.permit("status of 503")
	o.Kill()
	p.shows("Reconnecting")
	p.click("button", "Refresh")
	p.shows("The server cannot be reached.")
	o.Start()
	p.shows("Live")
	p.shows("No task yet")
	p.is("the problem is hidden", `document.getElementById("problem").hidden`)
}
