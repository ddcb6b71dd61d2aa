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
		const said = [...document.querySelectorAll(".timeline strong")].map((e) => e.textContent);
		return said[0] === "Accepted" && said.indexOf("Verdict") < said.indexOf("Attempt 1") && said.at(-1) === "Next attempt";
	})()`)
	p.shows(" is made at once instead.")
	p.is("the answer is there as text", `document.querySelector(".attempts .answer").textContent.includes(%s)`, markup)
	p.shows("U+202E")
	p.unharmed()
	p.click("summary", "header")
	p.is("a header that was sent is there", `document.querySelector(".attempts .headers").innerText.toLowerCase().includes("x-beam-task-status: complete")`)
	p.is("its link is its own", `location.hash === "#/tasks/" + %s`, busy)
	p.reload()
	p.shows(busy)
	p.click("a", "All tasks")
	p.rows(1)

	p.permit("status of 404")
	p.open(o.URL("/ops") + "#/tasks/" + escaped(markup))
	p.shows("No such task")
	p.shows(markup)
	p.unharmed()
	eval[int](p, `(location.hash = "#/tasks/%", 0)`) // no escape at all
	p.is("that is looked for as it is", `document.getElementById("task-title").textContent === "%"`)
	p.shows("No such task")

	// A task that changes is shown as it is.
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
	p.is("the latest comes first", `[...document.querySelectorAll(".attempts thead th")].map((e) => e.textContent).join() === "Attempt 2 ✕503,Attempt 1 ✕503"`)
	p.is("the parts of the duration are drawn", `document.querySelectorAll(".attempts .parts").length === 2 && document.querySelector(".parts-said").textContent.includes("first byte")`)
	p.is("the address is there", `document.querySelector(".attempts").innerText.includes(%s)`, strings.TrimPrefix(o.receiver.URL, "http://"))
	p.fits("attempts side by side")
}

func TestDashboardShowsTheCallbackAsItIsSent(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	id := o.task("/gone")
	o.until("dead", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.is("it is decoded", `document.querySelector("#callback .pairs").innerText.replace(/\s+/g, " ").startsWith("response example response")`)
	p.click("#callback button", "Raw")
	p.is("it is raw", `document.querySelector("#callback .body").textContent === "response=example+response"`)
	p.click("#callback button", "Headers")
	p.is("its headers are there", `document.querySelector("#callback .pairs").innerText.toLowerCase().includes("x-beam-task-status")`)
	p.click("#callback button", "Copy as curl")
	p.shows("Copied")
	command := p.readClipboard()
	for _, part := range []string{"curl", "-X 'POST'", "--data-raw 'response=example+response'", id} {
		if !strings.Contains(command, part) {
			t.Errorf("the command lacks %s: %s", part, command)
		}
	}

	// The result is kept no more.
	p.permit("status of 404")
	o.Do(http.MethodDelete, "/ops/api/tasks/"+id, "")
	p.reload()
	p.shows("No such task")
}
