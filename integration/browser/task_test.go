package browser

import (
	"net/http"
	"strings"
	"testing"
)

func TestDashboardShowsOneTask(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	busy := o.task("/busy")
	o.until("delivering", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks/" + busy)
	for _, text := range []string{busy, "Retries in ", "COMPLETE", "Accepted", "Verdict", "upstream 200", "Attempt 1", "503", "Next attempt"} {
		p.shows(text)
	}
	p.is("the timeline is in order", `(() => {
		const names = [...document.querySelectorAll(".timeline strong")].map((e) => e.textContent);
		return names[0] === "Accepted" && names.indexOf("Verdict") < names.indexOf("Attempt 1") && names.at(-1) === "Next attempt";
	})()`)
	p.shows(" starts now instead.")
	p.is("the answer is shown as text", `document.querySelector(".attempts .answer").textContent.includes(%s)`, markup)
	p.shows("U+202E")
	p.unharmed()
	p.click("summary", "header")
	p.is("the sent headers are shown", `document.querySelector(".attempts .headers").innerText.toLowerCase().includes("x-beam-task-status: complete")`)
	p.is("the task has its own link", `location.hash === "#/tasks/" + %s`, busy)
	p.reload()
	p.shows(busy)
	p.click("a", "All tasks")
	p.rows(1)

	p.permit("status of 404")
	p.open(o.URL("/ops") + "#/tasks/" + escaped(markup))
	p.shows("No such task")
	p.shows(markup)
	p.unharmed()
	eval[int](p, `(location.hash = "#/tasks/%", 0)`) // an invalid escape
	p.is("the invalid ID is searched unchanged", `document.getElementById("task-title").textContent === "%"`)
	p.shows("No such task")

	// The page follows changes of the task.
	id := o.queue()
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.shows("Running for")
	p.shows("Started")
	o.release()
	p.shows("Delivered")
}

func TestDashboardShowsAttemptsSideBySide(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.task("/busy")
	o.until("delivering", "1")
	p := newPage(t, look{phone, "light"})
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.shows("Attempt 1")
	p.click("button", "Retry now")
	p.click("#ask-yes", "Retry now")
	p.shows("2 attempts")
	p.is("the latest attempt is first", `[...document.querySelectorAll(".attempts thead th")].map((e) => e.textContent).join() === "Attempt 2 ✕503,Attempt 1 ✕503"`)
	p.is("the parts of the duration are drawn", `document.querySelectorAll(".attempts .parts").length === 2 && document.querySelector(".parts-said").textContent.includes("first byte")`)
	p.is("the address is shown", `document.querySelector(".attempts").innerText.includes(%s)`, strings.TrimPrefix(o.receiver.URL, "http://"))
	p.fits("attempts side by side")
}

func TestDashboardShowsCallbackAsSent(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.task("/gone")
	o.until("dead", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.is("the body is decoded", `document.querySelector("#callback .pairs").innerText.replace(/\s+/g, " ").startsWith("response example response")`)
	p.click("#callback button", "Raw")
	p.is("the body is raw", `document.querySelector("#callback .body").textContent === "response=example+response"`)
	p.click("#callback button", "Headers")
	p.is("the headers are shown", `document.querySelector("#callback .pairs").innerText.toLowerCase().includes("x-beam-task-status")`)
	p.click("#callback button", "Copy as curl")
	p.shows("Copied")
	command := p.readClipboard()
	for _, part := range []string{"curl", "-X 'POST'", "--data-raw 'response=example+response'", id} {
		if !strings.Contains(command, part) {
			t.Errorf("the command lacks %s: %s", part, command)
		}
	}

	// The result is no longer kept.
	p.permit("status of 404")
	o.Do(http.MethodDelete, "/ops/api/tasks/"+id, "")
	p.reload()
	p.shows("No such task")
}
