package cli

import (
	"bytes"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressOverwritesLineOnTerminal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &Progress{w: &out, terminal: true}
		p.Begin("running")
		<-time.After(1500 * time.Millisecond)
		p.Refresh()
		p.Refresh() // the text has not changed
		p.Line("attempt %d failed", 1)
		p.End()
		p.FreshLine()
		p.Refresh() // no phase is shown
		want := "running 0s" + "\r\x1b[K" + "running 1s" + "\r\x1b[K" + "attempt 1 failed\n" + "running 1s" + "\r\x1b[K" + "\n"
		if out.String() != want {
			t.Errorf("wrote %q, want %q", out.String(), want)
		}
	})
}

func TestProgressWithoutTerminalPrintsOnlyLines(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := NewProgress(w)
	var out bytes.Buffer
	p.w = &out
	p.Begin("running")
	p.Refresh()
	p.Line("a line")
	p.FreshLine()
	p.End()
	if out.String() != "a line\n" {
		t.Errorf("wrote %q", out.String())
	}
}
