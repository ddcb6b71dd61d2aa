package callback

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// progress tells on a terminal what is going on and for how long, in one line
// that is written over. Anywhere else it only writes lines. Its methods may be
// called at once.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	phase string // empty if nothing is shown
	since time.Time
	shown string
}

// newProgress tells on f.
func newProgress(f *os.File) *progress {
	info, err := f.Stat()
	return &progress{w: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// begin shows a phase from now on.
func (p *progress) begin(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.since = phase, time.Now()
	p.show()
}

// refresh updates the line.
func (p *progress) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show()
}

// end takes the line away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
	p.phase = ""
}

// line writes a line that stays.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
	fmt.Fprintf(p.w, format+"\n", args...)
	p.show()
}

// freshLine leaves the line that standard output has begun on the terminal.
func (p *progress) freshLine() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprintln(p.w)
	}
}

// show writes the line if it has changed. Caller holds the lock.
func (p *progress) show() {
	if !p.terminal || p.phase == "" {
		return
	}
	text := fmt.Sprintf("%s %v", p.phase, time.Since(p.since).Truncate(time.Second))
	if text != p.shown {
		p.hide()
		fmt.Fprint(p.w, text)
		p.shown = text
	}
}

// hide takes away what is shown. Caller holds the lock.
func (p *progress) hide() {
	if p.shown != "" {
		fmt.Fprint(p.w, "\r\x1b[K") // to the line's beginning; erase it
		p.shown = ""
	}
}
