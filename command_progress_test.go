package callback

import (
	"bytes"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressIsWrittenOverOnATerminal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &progress{w: &out, terminal: true}
		p.begin("running")
		time.Sleep(1500 * time.Millisecond)
		p.refresh()
		p.refresh() // nothing has changed
		p.line("attempt %d failed", 1)
		p.end()
		p.freshLine()
		p.refresh() // it has ended
		want := "running 0s" + "\r\x1b[K" + "running 1s" + "\r\x1b[K" + "attempt 1 failed\n" + "running 1s" + "\r\x1b[K" + "\n"
		if out.String() != want {
			t.Errorf("it writes %q, not %q", out.String(), want)
		}
	})
}

func TestProgressIsQuietAnywhereElse(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := newProgress(w)
	var out bytes.Buffer
	p.w = &out
	p.begin("running")
	p.refresh()
	p.line("a line")
	p.freshLine()
	p.end()
	if out.String() != "a line\n" {
		t.Errorf("it writes %q", out.String())
	}
}
