package browser

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp/kb"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// startInbox starts a gateway with an inbox at /inbox, whose callbacks are signed.
func startInbox(t *testing.T) *gatewaytest.Gateway {
	t.Helper()
	return gatewaytest.Start(t, gatewaytest.Delivering("secret "+secret), `
	handle /inbox* {
		callback_inbox {
			secret `+secret+`
		}
	}
	handle {
		callback
		respond `+"`"+`{"response":"example response","tokens":12345678901234567890}`+"`"+`
	}`)
}

// Strings that would do harm if the page did not treat them as text: markup, the end
// of the page's own style and script, terminal escapes, marks that change the text
// direction, and an invisible name.
const (
	markup    = `<script>document.title="taken"</script><img src=x onerror=document.title="taken">`
	endings   = `</style></script></template><style>*{display:none}</style>`
	ansi      = "\x1b[31mred\x1b[0m"
	turned    = "\u202egnp.exe\u2066"
	unseen    = "a\u200bb"
	longWord  = "wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww"
	bigNumber = "12345678901234567890"
)

// sendHostile sends an inbox a callback with all of these strings.
func sendHostile(t *testing.T, g *gatewaytest.Gateway) {
	t.Helper()
	form := "markup=" + escaped(markup) + "&endings=" + escaped(endings) + "&ansi=" + escaped(ansi) +
		"&turned=" + escaped(turned) + "&" + escaped(markup) + "=" + escaped(unseen) + "&long=" + longWord + longWord
	g.Do(http.MethodPost, "/inbox/"+escaped(markup), form,
		"Content-Type", "application/x-www-form-urlencoded",
		"beam-task-id", markup+endings, "x-beam-task-status", endings, "x-hostile", markup,
		"webhook-id", markup, "webhook-timestamp", "1", "webhook-signature", "v1,"+markup)
}

// escaped percent-encodes every byte.
func escaped(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// unharmed fails if the page treated a string of sendHostile as more than text.
func (p *tab) unharmed() {
	p.t.Helper()
	if title := eval[string](p, "document.title"); strings.Contains(title, "taken") {
		p.t.Error("a script in a callback has run")
	}
	if n := eval[int](p, `document.querySelectorAll("img, body script:not(:last-of-type), body style").length`); n > 0 {
		p.t.Errorf("the page has %d elements from a callback", n)
	}
	if turn := eval[bool](p, `/[\u202a-\u202e\u2066-\u2069\u200b\u001b]/.test(document.body.textContent)`); turn {
		p.t.Error("the page has an unescaped direction mark or invisible character")
	}
}

func TestInboxShowsNewCallbacks(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	p.shows("Waiting for the first callback")
	p.shows("Live")

	id := g.Task(g.URL("/inbox"))
	p.shows(id)
	for _, text := range []string{
		"COMPLETE", "Attempt 1", "Verified", // at a glance
		"Decoded", "response", "example response", "tokens", bigNumber, // its pairs; the first is open
		"Upstream status", "POST /inbox HTTP/1.1",
	} {
		p.shows(text)
	}
	p.is("the status is green", `getComputedStyle(document.querySelector(".status")).color === "rgb(10, 102, 56)"`)
	p.is("the callback is announced", `document.getElementById("arrivals").textContent === %s`, "New callback: COMPLETE, task "+id)
	p.click("summary", "Headers")
	p.shows("x-beam-task-status")
	p.click("summary", "Body")
	p.shows("response=example+response&tokens=" + bigNumber)

	// A second callback of the same task shows the time since the first.
	g.Do(http.MethodPost, "/inbox", "again", "beam-task-id", id, "x-beam-task-status", "FAILED", "callback-attempt", "2",
		"webhook-id", id, "webhook-timestamp", "1", "webhook-signature", "v1,bm90IHRoaXM=")
	p.shows("Attempt 2 · +")
	p.shows("Bad signature")
	p.is("the repeated callback is announced", `document.getElementById("arrivals").textContent.startsWith("New callback: FAILED")`)
	p.shows("2 callbacks")
}

func TestInboxFiltersAndClears(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, look{phone, "dark"})
	for _, id := range []string{"first", "second", "third"} {
		g.Do(http.MethodPost, "/inbox", "word="+id+"-word", "Content-Type", "application/x-www-form-urlencoded", "beam-task-id", id)
	}
	p.open(g.URL("/inbox"))
	p.shows("3 callbacks")
	for _, query := range []string{"SECOND", "second-word"} {
		p.fill("#filter", query)
		p.shows("1 of 3")
		p.is("one callback is shown", `[...document.querySelectorAll(".callback")].filter((e) => e.checkVisibility()).length === 1`)
	}
	p.fill("#filter", "neither")
	p.shows("No callback matches the filter.")
	p.fill("#filter", " ")
	p.shows("3 callbacks")
	p.click("button", "Clear")
	p.shows("Waiting for the first callback")
	if _, list := g.Do(http.MethodGet, "/inbox", "", "Accept", "application/json"); strings.Contains(list, "word") {
		t.Errorf("the inbox still has %s", list)
	}
}

func TestInboxPathsAreSeparate(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	p.click("a", "Open a new one")
	p.is("the new inbox has its own path", `/^\/inbox\/[0-9a-z]{10}$/.test(location.pathname)`)
	p.shows("Waiting for the first callback")
	own := eval[string](p, "location.pathname")
	p.shows("'" + g.URL(own) + "'") // in the command
	g.Do(http.MethodPost, "/inbox", "not here", "beam-task-id", "elsewhere")
	g.Do(http.MethodPost, own+"/below", "here", "beam-task-id", "mine")
	p.shows("mine")
	p.is("callbacks of other inboxes are not shown", `!document.body.innerText.includes("elsewhere")`)
	p.open(g.URL("/inbox"))
	p.shows("mine")
	p.shows("elsewhere")
}

// readClipboard returns what a button has copied.
func (p *tab) readClipboard() string {
	p.t.Helper()
	call(p, browser.SetPermission, browser.SetPermissionParams{
		Permission: &browser.PermissionDescriptor{Name: "clipboard-read"}, Setting: browser.PermissionSettingGranted,
	})
	return eval[string](p, "navigator.clipboard.readText()")
}

func TestInboxCommandIsCopiedAndWorks(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox/o'clock"))
	p.click("button", "Copy")
	p.shows("Copied")
	copied := p.readClipboard()
	if shown := eval[string](p, `document.getElementById("command").textContent`); copied != shown {
		t.Errorf("copied %q, shown %q", copied, shown)
	}
	runShell(t, copied)
	p.shows("example-1")
	p.shows("example response")
}

func TestInboxReconnects(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	g.Do(http.MethodPost, "/inbox", "", "beam-task-id", "before")
	p.shows("before")
	p.permit("net::ERR_") // expected while the server is down
	g.Kill()
	p.shows("Reconnecting")
	p.click("button", "Clear")
	p.shows("Not cleared: the server cannot be reached.")
	g.Start()
	p.shows("Live")
	g.Do(http.MethodPost, "/inbox", "", "beam-task-id", "after")
	p.shows("after")
	p.is("callbacks that the server no longer has are removed", `!document.body.innerText.includes("before")`)
}

func TestInboxShowsHostileCallbacksAsText(t *testing.T) {
	t.Parallel()
	for _, at := range looks {
		t.Run(at.String(), func(t *testing.T) {
			t.Parallel()
			g := startInbox(t)
			p := newPage(t, at)
			p.open(g.URL("/inbox"))
			p.shows("Live")
			p.fits("an empty inbox")
			sendHostile(t, g)
			g.Do(http.MethodPost, "/inbox", "\xff\xfe\x00\x01", "Content-Type", "application/octet-stream", "x-beam-task-status", "TIMEOUT")
			g.Task(g.URL("/inbox"))
			p.shows("3 callbacks")
			eval[int](p, `(() => {
				for (const details of document.querySelectorAll("details.card")) details.open = true;
				return 0;
			})()`)
			p.is("all are open", `document.querySelectorAll("details.raw").length === 6`)
			eval[int](p, `document.querySelectorAll("details.raw").forEach((d) => { d.open = true; }), 0`)
			p.shows(markup)
			p.shows(endings)
			p.shows("U+001B")
			p.shows("U+202E")
			p.shows("U+200B")
			p.shows("Not UTF-8: shown in base64.")
			p.shows("Bad signature")
			p.unharmed()
			p.fits("an inbox with callbacks")
		})
	}
}

func TestInboxShowsStatusNamedLikeJavaScriptProperty(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	p.shows("Live")
	for _, status := range []string{"constructor", "__proto__", "toString"} {
		g.Do(http.MethodPost, "/inbox", "", "x-beam-task-status", status)
		p.shows(status)
	}
	p.shows("3 callbacks")
}

func TestInboxWorksByKeyboard(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	g.Do(http.MethodPost, "/inbox", "", "beam-task-id", "first")
	g.Do(http.MethodPost, "/inbox", "x=1", "Content-Type", "application/x-www-form-urlencoded", "beam-task-id", "latest")
	p.open(g.URL("/inbox"))
	p.shows("2 callbacks")
	p.is("the newest is open", `document.querySelector(".card").open`)
	p.tabTo("summary", "latest")
	p.press(kb.Enter)
	p.is("it is closed", `!document.querySelector(".card").open`)
	p.press(" ")
	p.is("it is open", `document.querySelector(".card").open`)
	p.tabTo("summary", "Headers")
	p.press(kb.Enter)
	p.shows("beam-task-id")
	p.tabTo("#filter", "")
	p.press("latest")
	p.shows("1 of 2")
	p.tabTo("button", "Clear")
	p.press(kb.Enter)
	p.shows("Waiting for the first callback")
}

func TestInboxCopiesCallbackAsCommand(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	for name, body := range map[string]string{
		"text": "a=o'clock&b=%0A", "bytes": "\xff\x00\xfe", "long": strings.Repeat("0123456789", 10_000), // the page has 64 KiB of it
	} {
		g.Do(http.MethodPost, "/inbox/"+name+"?x='y'", body, "Content-Type", "application/octet-stream", "beam-task-id", name, "x-beam-task-status", "COMPLETE")
		p.open(g.URL("/inbox/" + name))
		p.shows("1 callback")
		p.click("button", "Copy as curl")
		p.shows("Copied")
		if name == "long" { // too long for an argument of a shell
			if !strings.Contains(p.readClipboard(), base64.StdEncoding.EncodeToString([]byte(body))) {
				t.Error("a long body is not copied whole")
			}
			continue
		}
		runShell(t, p.readClipboard())
		p.shows("2 callbacks")
		for _, number := range eval[[]int](p, `fetch(location.href, { headers: { Accept: "application/json" } }).then((r) => r.json()).then((all) => all.callbacks.map((c) => c.number))`) {
			if _, got := g.Do(http.MethodGet, fmt.Sprintf("/inbox/%s?body=%d", name, number), ""); got != body {
				t.Errorf("%s: callback %d has the body %q, want %q", name, number, got, body)
			}
		}
	}
}

func TestInboxFormatsNestedJSON(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	g.Do(http.MethodPost, "/inbox", `{"user":{"name":"`+`\u003cb\u003e","id":`+bigNumber+`},"list":[]}`, "Content-Type", "application/json", "beam-task-id", "json")
	p.shows("1 callback")
	p.is("a nested value is indented", `[...document.querySelectorAll("td")].some((e) => e.textContent === %s)`,
		"{\n  \"name\": \"\\u003cb\\u003e\",\n  \"id\": "+bigNumber+"\n}")
	p.click("summary", "Body")
	p.is("the body is indented", `document.querySelector(".raw pre").textContent.includes(%s)`, "\n  \"list\": []\n}")
	p.click("button", "Show as sent")
	p.is("the body is unchanged", `document.querySelector(".raw pre").textContent.endsWith(%s)`, `,"list":[]}`)
}

func TestInboxForwardsCallbacks(t *testing.T) {
	t.Parallel()
	receiver := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, markup) })
	g := gatewaytest.Start(t, "", `
	handle /inbox* {
		callback_inbox {
			forward_to `+receiver.URL+`
		}
	}
	handle /closed* {
		callback_inbox
	}`)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	g.Do(http.MethodPost, "/inbox", "a=1", "Content-Type", "application/x-www-form-urlencoded", "beam-task-id", "first")
	p.click("button", "Forward…")
	p.fill("#forward-url", receiver.URL+"/hook\r")
	p.shows("200 in")
	if c := receiver.Next(t); c.Path != "/hook" || c.TaskID() != "first" || c.Body != "a=1" {
		t.Errorf("the receiver got %+v", c)
	}
	p.shows(markup)
	p.unharmed()
	p.fits("the outcome of a forwarded callback")
	p.permit("status of 403")
	p.fill("#forward-url", "http://169.254.169.254/latest\r")
	p.shows("the URL is not below one that forward_to allows")

	p.open(g.URL("/closed"))
	g.Do(http.MethodPost, "/closed", "a=1", "beam-task-id", "second")
	p.click("button", "Forward…")
	p.is("nothing can be forwarded", `document.getElementById("forward-send").disabled`)
	p.shows("This inbox does not forward")
	p.fill("#forward-url", receiver.URL+"/by-hand")
	p.click("#forward-copy", "")
	p.shows("Copied")
	runShell(t, p.readClipboard())
	if c := receiver.Next(t); c.Path != "/by-hand" || c.TaskID() != "second" || c.Body != "a=1" {
		t.Errorf("the receiver got %+v", c)
	}
}
