package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Progress shows the phase of a command and its duration on a terminal, in one line
// that it overwrites. If the output is not a terminal it prints only whole lines. It is
// safe for concurrent use.
type Progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	phase string // empty before Begin and after End
	since time.Time
	shown string
}

// NewProgress returns a progress that is shown on f.
func NewProgress(f *os.File) *Progress {
	return &Progress{w: f, terminal: term.IsTerminal(int(f.Fd()))}
}

// Begin starts a phase and shows it.
func (p *Progress) Begin(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.since = phase, time.Now()
	p.show()
}

// Refresh updates the line.
func (p *Progress) Refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show()
}

// End removes the line.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
	p.phase = ""
}

// Line prints a permanent line above the progress.
func (p *Progress) Line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hide()
	fmt.Fprintf(p.w, format+"\n", args...)
	p.show()
}

// FreshLine ends a line that standard output has left unfinished on the terminal.
func (p *Progress) FreshLine() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprintln(p.w)
	}
}

// show prints the line if it has changed. The caller holds the lock.
func (p *Progress) show() {
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

// hide erases the line. The caller holds the lock.
func (p *Progress) hide() {
	if p.shown != "" {
		fmt.Fprint(p.w, "\r\x1b[K") // go to the beginning of the line and erase it
		p.shown = ""
	}
}
