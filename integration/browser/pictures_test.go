package browser

import (
	"bytes"
	"flag"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// pictures makes the tests rewrite the pictures of the README.
var pictures = flag.Bool("pictures", false, "rewrite the pictures in docs/images")

// maxPicture is the maximum size of a picture in the README, in bytes.
const maxPicture = 200 << 10

// picture takes a screenshot of the page. With -pictures, it writes the screenshot to
// docs/images.
func (p *tab) picture(name string, height int64) {
	p.t.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: wide, Height: height, DeviceScaleFactor: 1,
	})
	taken := call(p, page.CaptureScreenshot, page.CaptureScreenshotParams{})
	decoded, err := png.Decode(bytes.NewReader(taken.Data))
	if err != nil {
		p.t.Fatal(err)
	}
	small := reduce(decoded)
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small); err != nil {
		p.t.Fatal(err)
	}
	if size := small.Bounds().Size(); size.X != wide || out.Len() > maxPicture {
		p.t.Errorf("the picture of the %s is %d px wide and has %d bytes", name, size.X, out.Len())
	}
	if !*pictures {
		return
	}
	if err := os.WriteFile(filepath.Join("../../docs/images", name+".png"), out.Bytes(), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// reduce reduces a picture to its most frequent colours: a page has few colours, apart
// from the shades at the edges of its letters.
func reduce(from image.Image) *image.Paletted {
	count := make(map[color.RGBA]int)
	bounds := from.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, _ := from.At(x, y).RGBA()
			count[color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}]++
		}
	}
	palette := make(color.Palette, 0, 256)
	for len(palette) < cap(palette) && len(count) > 0 {
		var most color.RGBA
		for c, n := range count {
			if n > count[most] || n == count[most] && less(c, most) {
				most = c
			}
		}
		delete(count, most)
		palette = append(palette, most)
	}
	to := image.NewPaletted(bounds, palette)
	draw.Draw(to, bounds, from, bounds.Min, draw.Src)
	return to
}

// less orders colours, so that equal pictures become equal files.
func less(a, b color.RGBA) bool {
	return uint32(a.R)<<16|uint32(a.G)<<8|uint32(a.B) < uint32(b.R)<<16|uint32(b.G)<<8|uint32(b.B)
}

func TestInboxScreenshot(t *testing.T) {
	t.Parallel()
	g := startInbox(t)
	p := newPage(t, desktop)
	p.open(g.URL("/inbox"))
	p.shows("Live")
	g.Do(http.MethodPost, "/inbox", "error=the+task+was+not+done+within+10+minutes", "Content-Type", "application/x-www-form-urlencoded",
		"beam-task-id", "0b9d3f0e-7c41-4c6f-9a36-52f6c1f3a7d2", "x-beam-task-status", "TIMEOUT", "callback-attempt", "1")
	g.Do(http.MethodPost, "/inbox", "detail=out+of+memory", "Content-Type", "application/x-www-form-urlencoded",
		"beam-task-id", "3f2c9d1e-0f57-4a0b-8f43-5d3f0a4d2b11", "x-beam-task-status", "FAILED", "callback-attempt", "2", "callback-upstream-status", "500")
	p.shows("2 callbacks")
	id := g.Task(g.URL("/inbox"))
	p.shows("3 callbacks")
	eval[int](p, `document.querySelectorAll("details.card").forEach((d, i) => { d.open = i === 0; }), 0`)
	p.shows(id)
	p.shows("Upstream status")
	p.is("nothing moves", `document.getAnimations().length === 0`)
	p.picture("inbox", 860)
}

func TestDashboardScreenshots(t *testing.T) {
	t.Parallel()
	o := startOperated(t)
	p := newPage(t, desktop)
	p.open(o.URL("/ops"))
	p.shows("Nothing fails")
	work := func(n int) { o.Tasks(n, func(int) string { return o.receiver.URL + "/ok" }) }
	work(40)
	if *pictures {
		// The overview shows a gateway that has run for a while.
		for i := range 60 {
			work(15 + i%20 + 3*(i%7))
			if i%9 == 4 {
				o.Post("/broken", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
			}
			gatewaytest.Pause(time.Second)
		}
	}
	o.Post("/broken", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	for _, path := range []string{"/busy", "/away", "/busy"} {
		o.task(path)
	}
	for range 4 {
		o.queue()
	}
	o.until("dead", "1")
	o.until("running", "2")
	o.until("delivering", "2")
	// Hide the name of this machine.
	anonymous := func() {
		eval[int](p, `(() => {
			const node = document.getElementById("node");
			node.textContent = "gateway-1";
			node.replaceChildren = () => {};
			scrollTo(0, 0);
			document.activeElement.blur();
			return 0;
		})()`)
	}
	p.shows("1 dead task")
	p.figure("Retrying", "2")
	anonymous()
	p.picture("overview", 900)
	p.click("#views a", "Tasks")
	p.is("the list is loaded", `document.querySelectorAll("#list tbody tr").length >= 48 && document.getAnimations().length === 0`)
	anonymous()
	p.picture("dashboard", 900)
	p.click("#list tr:has(.bad) a", "")
	p.shows("Given up")
	p.is("the callback is loaded", `Boolean(document.querySelector("#callback .pairs"))`)
	anonymous()
	p.picture("task", 1000)
}
