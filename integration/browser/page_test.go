package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// look is the screen and colour scheme of a page.
type look struct {
	width  int64
	scheme string
}

func (l look) String() string { return fmt.Sprintf("%d px, %s", l.width, l.scheme) }

const (
	wide  = 1280
	phone = 375
)

var (
	desktop = look{wide, "light"}
	looks   = []look{desktop, {wide, "dark"}, {phone, "light"}, {phone, "dark"}}
)

// turns bounds the browsers that run at once: more would only slow down a machine
// with two cores.
var turns = make(chan struct{}, 2)

// tab is a tab in its own browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu        sync.Mutex
	home      string   // the only host to which requests are allowed
	faults    []string // errors that the browser reported
	permitted []string // parts of errors that the test provokes
}

// newPage starts a browser. Every error that it reports until the test ends fails the
// test, unless the test permits it.
func newPage(t *testing.T, at look) *tab {
	t.Helper()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true))
	p := &tab{t: t}
	ctx, endBrowser := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, endTab := chromedp.NewContext(ctx, chromedp.WithListener(p.listen))
	p.ctx = ctx
	t.Cleanup(func() {
		if t.Failed() {
			p.keepPicture()
		}
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Logf("closing the browser: %v", err)
		}
		endTab()
		endBrowser()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, fault := range p.faults {
			t.Errorf("the browser reported: %s", fault)
		}
	})
	p.do(chromedp.Navigate("about:blank")) // starts it
	call(p, log.Enable, cdp.Empty{})
	call(p, network.Enable, network.EnableParams{})
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: at.width, Height: 900, DeviceScaleFactor: 1, Mobile: at.width == phone,
	})
	p.emulate("prefers-color-scheme", at.scheme)
	return p
}

// emulate sets a preference of the reader.
func (p *tab) emulate(feature, value string) {
	p.t.Helper()
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: feature, Value: value}},
	})
}

// call sends a command to the browser.
func call[P, R any](p *tab, command cdp.Command[P, R], params P) R {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, gatewaytest.Patience)
	defer cancel()
	result, err := chromedp.Call(ctx, command, params)
	if err != nil {
		p.t.Fatal(err)
	}
	return result
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	// The first one starts the browser, which would end with a shorter context.
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// listen records the errors that the browser reports.
func (p *tab) listen(event any) {
	switch event := event.(type) {
	case *runtime.EventExceptionThrown:
		details := event.ExceptionDetails
		text := details.Text
		if details.Exception != nil {
			text += " " + details.Exception.Description
		}
		p.fault("exception: %s", text)
	case *runtime.EventConsoleAPICalled:
		var texts []string
		for _, arg := range event.Args {
			texts = append(texts, string(arg.Value)+arg.Description)
		}
		p.fault("console.%s: %s", event.Type, strings.Join(texts, " "))
	case *log.EventEntryAdded:
		p.fault("%s, %s: %s %s", event.Entry.Source, event.Entry.Level, event.Entry.Text, event.Entry.URL)
	case *network.EventLoadingFailed:
		if event.BlockedReason != "" {
			p.fault("blocked: %s %s", event.BlockedReason, event.ErrorText)
		}
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(event.Request.URL)
		p.mu.Lock()
		home := p.home
		p.mu.Unlock()
		if err != nil || u.Scheme != "data" && u.Scheme != "about" && u.Host != home {
			p.fault("request to %s", event.Request.URL)
		}
	}
}

func (p *tab) fault(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, permitted := range p.permitted {
		if strings.Contains(text, permitted) {
			return
		}
	}
	p.faults = append(p.faults, text)
}

// permit names part of an error that the test provokes.
func (p *tab) permit(message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.permitted = append(p.permitted, message)
}

// open goes to a URL.
func (p *tab) open(address string) {
	p.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.home = u.Host
	p.mu.Unlock()
	p.do(chromedp.Navigate(address))
}

// reload loads the page again, like its reader, and waits until it is loaded.
func (p *tab) reload() {
	p.t.Helper()
	p.do(chromedp.Reload())
}

// eval returns the value of a JavaScript expression, after awaiting a promise.
func eval[T any](p *tab, expression string, args ...any) T {
	p.t.Helper()
	value, err := tryEval[T](p, expression, args...)
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// tryEval is eval that returns an error. It inserts the arguments as JSON for each %s.
func tryEval[T any](p *tab, expression string, args ...any) (value T, err error) {
	for i, arg := range args {
		encoded, err := json.Marshal(arg)
		if err != nil {
			return value, err
		}
		args[i] = string(encoded)
	}
	if len(args) > 0 {
		expression = fmt.Sprintf(expression, args...)
	}
	ctx, cancel := context.WithTimeout(p.ctx, gatewaytest.Patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// is waits until an expression is true.
func (p *tab) is(what, expression string, args ...any) {
	p.t.Helper()
	gatewaytest.Eventually(p.t, what, func() error {
		if ok, err := tryEval[bool](p, expression, append([]any(nil), args...)...); err != nil || !ok {
			return fmt.Errorf("the expression is false: %v", err)
		}
		return nil
	})
}

// shows waits until the text is visible on the page.
func (p *tab) shows(text string) {
	p.t.Helper()
	p.is(fmt.Sprintf("the page shows %q", text), `document.body.innerText.includes(%s)`, text)
}

// element finds the first visible element with a selector and text.
const element = `[...document.querySelectorAll(%s)].find((e) => e.checkVisibility() && e.innerText.includes(%s))`

// click clicks into the middle of an element with the text. Like a real click, it hits
// whatever covers the element.
func (p *tab) click(selector, text string) {
	p.t.Helper()
	p.is(fmt.Sprintf("the page has %s %q", selector, text), "Boolean("+element+")", selector, text)
	at := eval[struct{ X, Y float64 }](p, `(async () => {
		const find = () => `+element+`;
		let e = find();
		e.scrollIntoView({ block: "center", behavior: "instant" });
		// A click would miss an element that still moves.
		let box;
		for (let before; !before || !box || before.x !== box.x || before.y !== box.y;) {
			before = box;
			await new Promise((next) => setTimeout(next, 50));
			if (!e.isConnected) e = find() ?? e; // the page has redrawn it
			box = e.getClientRects()[0];
		}
		const X = box.x + box.width / 2, Y = box.y + box.height / 2;
		const hit = document.elementFromPoint(X, Y);
		if (!e.contains(hit)) throw new Error("covered by " + hit?.outerHTML.slice(0, 200));
		return { X, Y };
	})()`, selector, text)
	p.do(chromedp.MouseClickXY(at.X, at.Y))
}

// fill replaces the text of a field by typing.
func (p *tab) fill(selector, text string) {
	p.t.Helper()
	p.click(selector, "")
	eval[bool](p, `(document.activeElement.select?.(), true)`)
	p.do(chromedp.KeyEvent(text))
}

// choose selects an option and fires the events of a real selection.
func (p *tab) choose(selector, option string) {
	p.t.Helper()
	chosen := eval[bool](p, `(() => {
		const select = document.querySelector(%s);
		const option = [...select.options].find((o) => o.text === %s);
		select.value = option.value;
		select.dispatchEvent(new Event("change", { bubbles: true }));
		return option.selected;
	})()`, selector, option)
	if !chosen {
		p.t.Fatalf("%s has no option %q", selector, option)
	}
}

// press presses keys.
func (p *tab) press(keys string, options ...chromedp.KeyOption) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys, options...))
}

// keepPicture saves a screenshot of the page when the test failed, in a folder that CI
// may keep.
func (p *tab) keepPicture() {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		return // the browser itself failed
	}
	file, err := os.CreateTemp("", "browser-*.png")
	if err != nil {
		p.t.Log(err)
		return
	}
	_, err = io.Copy(file, strings.NewReader(string(picture)))
	p.t.Logf("screenshot: %s %v", file.Name(), errors.Join(err, file.Close()))
}
