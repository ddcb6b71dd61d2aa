package browser

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// operated is a gateway with a dashboard at /ops, an app and a receiver.
type operated struct {
	*gatewaytest.Gateway
	receiver *gatewaytest.Receiver
	// release lets the app answer what was sent to /train.
	release context.CancelFunc
}

// hostileAnswer is what the receiver answers when it refuses.
const hostileAnswer = markup + endings + ansi + turned + unseen + longWord + longWord

// startOperated starts them. The receiver accepts what comes to /ok, answers 503
// to /busy, and 410 to /gone, which ends a callback at once; the next attempt
// after a 503 is an hour away.
func startOperated(t *testing.T) *operated {
	t.Helper()
	held, release := context.WithCancel(context.Background())
	o := &operated{release: release}
	o.receiver = gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, hostileAnswer)
		case "/gone":
			w.WriteHeader(http.StatusGone)
			_, _ = io.WriteString(w, hostileAnswer)
		}
	})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server sees that a client leaves
		switch r.URL.Path {
		case "/train":
			select {
			case <-held.Done():
			case <-r.Context().Done():
			}
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	t.Cleanup(release) // or the app would wait for its last request
	o.Gateway = gatewaytest.Start(t, gatewaytest.Delivering("retry 1h")+`
	queue train {
		workers 2
		schedule "30 2 * * *" Europe/Paris {
			uri "/train/nightly"
		}
	}`, `
	handle /ops* {
		task_dashboard
	}
	handle /train* {
		callback
		task_queue train {
			rewrite /train
			reverse_proxy `+app+`
		}
	}
	handle {
		callback
		reverse_proxy `+app+`
	}`)
	return o
}

// task sends a task whose callback goes to a path of the receiver.
func (o *operated) task(path string) (id string) {
	o.T.Helper()
	return o.Task(o.receiver.URL + path)
}

// queue sends a task to the queue.
func (o *operated) queue() (id string) {
	o.T.Helper()
	resp, body := o.Post("/train", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	if resp.StatusCode != http.StatusAccepted {
		o.T.Fatalf("the queue answered %s %s", resp.Status, body)
	}
	return resp.Header.Get("beam-task-id")
}

// until waits until the tasks of a state are so many.
func (o *operated) until(state, number string) {
	o.T.Helper()
	o.Eventually(number+" are "+state, func() error {
		_, body := o.Do(http.MethodGet, "/ops/api/overview", "")
		if !strings.Contains(body, `"`+state+`":`+number+`,`) && !strings.Contains(body, `"`+state+`":`+number+`}`) {
			return io.EOF
		}
		return nil
	})
}

// fill makes tasks of every state: three are done, two dead, one is delivering,
// two are running and three queued.
func (o *operated) fill() {
	o.T.Helper()
	for range 3 {
		o.task("/ok")
	}
	for range 2 {
		o.task("/gone")
	}
	o.task("/busy")
	for range 5 {
		o.queue()
	}
	o.until("done", "3")
	o.until("dead", "2")
	o.until("running", "2")
	o.until("queued", "3")
	o.until("delivering", "1")
}

// rows waits until the list has so many tasks.
func (p *tab) rows(n int) {
	p.t.Helper()
	p.is("the list is as long as it should be", `document.querySelectorAll("#list tbody tr").length === %s`, n)
}

func TestDashboardCountsTasksAsTheyCome(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.shows("No task yet")
	p.shows("Live")
	p.is("the counts are zero", `[...document.querySelectorAll(".badge")].every((e) => e.textContent === "0")`)

	id := o.task("/ok")
	badge := func(state, number string) {
		t.Helper()
		p.is(state+" counts "+number, `document.querySelector("#states a[data-state=" + %s + "] .badge").textContent === %s`, state, number)
	}
	badge("done", "1")
	p.is("the figures have moved", `document.querySelector("#now .figure").textContent.startsWith("1 in the last minute")`)
	p.is("the charts are drawn", `[...document.querySelectorAll("#now .tile")].slice(0, 3).every((t) => t.querySelectorAll("path.line").length === 1)`)
	p.is("the highest point of the first chart is the task", `document.querySelector("#now .line").getAttribute("d").includes(" 4.0")`)
	p.is("the latency is known", `/^[0-9.]+ ms/.test(document.querySelector("#now .tile:last-child .figure").textContent)`)
	p.click("button", "Show what is new")
	p.shows(id)
	p.rows(1)
	p.is("there is no more that is new", `document.getElementById("refresh").textContent === "Refresh"`)
	o.task("/gone")
	badge("dead", "1")
	o.queue()
	badge("running", "1")
}

func TestDashboardSaysWhatIsNewThoughItHearsOfItLate(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: `
		const late = new Promise((listen) => { globalThis.listen = listen; });
		globalThis.EventSource = class extends EventSource {
			addEventListener(...its) { late.then(() => super.addEventListener(...its)); }
		};`})
	p.open(o.URL("/ops"))
	p.shows("No task yet")
	id := o.task("/ok")
	o.until("done", "1")
	eval[int](p, `(listen(), 0)`)
	p.click("button", "Show what is new")
	p.shows(id)
	p.rows(1)
}

func TestDashboardFiltersTasks(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.fill()
	o.Post("/broken", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	o.until("done", "4")
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.rows(12)
	for state, n := range map[string]int{"Queued": 3, "Running": 2, "Delivering": 1, "Done": 4, "Dead": 2} {
		p.click("#states a", state)
		p.rows(n)
		p.is("it is said where one is", `document.querySelector("#states [aria-current=page]").textContent.startsWith(%s)`, state)
	}
	p.click("#states a", "All")
	p.rows(12)
	p.choose("#status", "FAILED")
	p.rows(1)
	p.choose("#status", "any")
	p.fill("#queue", "train\r")
	p.rows(5)
	p.is("the link says it", `location.hash === "#/tasks?queue=train"`)
	p.click("#states a", "Queued") // another filter stays
	p.rows(3)
	p.choose("#age", "more than an hour ago")
	p.shows("No task matches")
	p.choose("#age", "in the last hour")
	p.rows(3)

	// A reload and the back button keep the view.
	p.open(o.URL("/ops") + eval[string](p, "location.hash"))
	p.reload()
	p.rows(3)
	p.is("the fields say it", `document.getElementById("queue").value === "train" && document.getElementById("age").value === "newer_than=1h"`)
	p.click("button", "Reset")
	p.is("only the state is left", `location.hash === "#/tasks?state=queued"`)
	eval[int](p, `(history.back(), 0)`)
	p.is("the filters are back", `document.getElementById("queue").value === "train"`)

	host := strings.TrimPrefix(o.receiver.URL, "http://")
	p.open(o.URL("/ops") + "#/tasks?state=dead&host=" + host)
	p.rows(2)
	p.open(o.URL("/ops") + "#/tasks?host=nobody.example&newer_than=3m")
	p.shows("No task matches")
	p.is("an age of one's own stands in the list", `document.getElementById("age").selectedOptions[0].textContent === "accepted in the last 3m"`)
	p.permit("status of 400")
	p.open(o.URL("/ops") + "#/tasks?newer_than=soon")
	p.shows(`newer_than: "soon" is not a duration`)
}

func TestDashboardPagesThroughTasks(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	o.Tasks(120, func(int) string { return o.receiver.URL + "/ok" })
	o.until("done", "120")
	p := newPage(t, look{phone, "light"})
	p.open(o.URL("/ops") + "#/tasks?state=done")
	p.rows(50)
	p.shows("50 tasks on this page")
	first := eval[string](p, `document.querySelector("#list a").textContent`)
	p.click("#pages a", "Next page")
	p.is("another page is shown", `document.querySelector("#list a").textContent !== %s`, first)
	p.rows(50)
	p.is("the focus is at its head", `document.activeElement.id === "tasks-title"`)
	p.click("#pages a", "Next page")
	p.rows(20)
	p.is("it is the last", `![...document.querySelectorAll("#pages a")].some((a) => a.textContent === "Next page")`)
	p.reload()
	p.rows(20)
	p.click("#pages a", "First page")
	p.is("it is the first page again", `document.querySelector("#list a").textContent === %s`, first)
}

func TestDashboardShowsOneTask(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	busy := o.task("/busy")
	o.until("delivering", "1")
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.fill("#id", busy+"\r")
	for _, text := range []string{busy, "delivering", "COMPLETE", "Accepted", "Verdict", "upstream 200", "Attempt 1", "503", "Next attempt", "in 1 h"} {
		p.shows(text)
	}
	p.is("the timeline is in order", `(() => {
		const said = [...document.querySelectorAll(".timeline strong")].map((e) => e.textContent);
		return said[0] === "Accepted" && said.indexOf("Verdict") < said.indexOf("Attempt 1") && said.at(-1) === "Next attempt";
	})()`)
	p.click("summary", "Answer")
	p.shows(markup)
	p.shows("U+202E")
	p.unharmed()
	p.is("the link is its own", `location.hash === "#/tasks/" + %s`, busy)
	p.reload()
	p.shows(busy)
	p.click("a", "All tasks")
	p.rows(1)

	p.permit("status of 404")
	p.fill("#id", markup+"\r")
	p.shows("No such task")
	p.shows(markup)
	p.unharmed()
	eval[int](p, `(location.hash = "#/tasks/%", 0)`) // no escape at all
	p.is("that is looked for as it stands", `document.getElementById("task-title").textContent === "%"`)
	p.shows("No such task")

	// A task that changes is shown as it is.
	id := o.queue()
	p.open(o.URL("/ops") + "#/tasks/" + id)
	p.shows("running")
	p.shows("Started")
	p.is("the day is said", `document.querySelector(".timeline li").firstElementChild.textContent === new Date().toLocaleDateString(undefined, { weekday: "short", month: "short", day: "numeric" })`)
	o.release()
	p.shows("Delivered")
	p.shows("done")
}

func TestDashboardShowsQueuesHostsAndSchedules(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.shows("No task yet")
	p.click("#views a", "Hosts")
	p.shows("No callback is pending")
	o.fill()
	p.is("the host of the pending callback is listed", `document.querySelectorAll("#hosts tbody tr").length === 1`)
	p.click("#hosts a", "127.0.0.1")
	p.rows(1)
	p.click("#views a", "Queues")
	p.is("the focus is at the view's head", `document.activeElement.id === "queues-title"`)
	p.shows("train")
	p.is("depth, running tasks and workers are shown", `document.querySelector("#queues tbody").innerText.replace(/\s+/g, " ").includes("3 of 100,000 2 2")`)
	p.click("#views a", "Schedules")
	p.shows("30 2 * * * Europe/Paris")
	p.shows("POST /train/nightly")
	p.is("the next run is in the future", `/^in [0-9]+ (h|min|s)$/.test(document.querySelector("#schedules time").textContent)`)
	p.click("#views a", "Queues")
	p.click("#queues a", "train")
	p.rows(5)
	p.is("the tab says so", `document.title === "Tasks – Callback dashboard"`)
}

func TestDashboardSaysThatTheConnectionIsLostAndConnectsAgain(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, look{phone, "dark"})
	p.open(o.URL("/ops"))
	p.shows("Live")
	p.permit("net::ERR_") // it is provoked
	p.permit("status of 503")
	o.Kill()
	p.shows("Reconnecting")
	p.click("button", "Refresh")
	p.shows("The server cannot be reached.")
	o.Start()
	p.shows("Live")
	p.shows("No task yet")
	p.is("the problem is gone", `document.getElementById("problem").hidden`)
}
