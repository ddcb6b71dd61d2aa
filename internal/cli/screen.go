package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// screen is the output of a command: a terminal, or a file or pipe that gets whole
// lines without colors.
type screen struct {
	out io.Writer
	// width is how many characters fit in a line; 0 is unlimited.
	width int
	color bool
	// terminal is whether the output is a terminal.
	terminal bool
	now      time.Time // ages are relative to it
}

// defaultWidth is the width of a terminal if its size is unknown.
const defaultWidth = 80

// newScreen returns the screen of a command. COLUMNS overrides the width, also if the
// output is not a terminal.
func newScreen(cmd *cobra.Command) *screen {
	s := &screen{out: cmd.OutOrStdout(), now: time.Now()}
	if f, ok := s.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal, s.color, s.width = true, wantsColor(), defaultWidth
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			s.width = width
		}
	}
	if width, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && width > 0 {
		s.width = width
	}
	return s
}

// wantsColor reports whether colors are allowed, as in https://no-color.org.
func wantsColor() bool { return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" }

// color is an ANSI foreground color; 0 is the default color.
type color int

const (
	red    color = 31
	green  color = 32
	yellow color = 33
	blue   color = 34
)

// colored returns text in a color if the screen has colors.
func (s *screen) colored(c color, text string) string {
	if !s.color || c == 0 {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// clear erases a terminal.
func (s *screen) clear() {
	if s.terminal {
		fmt.Fprint(s.out, "\x1b[H\x1b[2J\x1b[3J") // go to the top left corner; erase the screen and the scrollback
	}
}

// age returns the time since t in one unit, "" if t is zero.
func (s *screen) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(s.now.Sub(t))
}

// span formats a duration in one unit.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*24*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// at formats a time with milliseconds in the local time zone, "" if it is zero.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}

// wrapped breaks text into lines of at most width characters, at spaces if possible.
func wrapped(text string, width int) (lines []string) {
	runes := []rune(text)
	for width > 0 && len(runes) > width {
		n := width
		for i := width; i > width/2; i-- {
			if runes[i] == ' ' {
				n = i
				break
			}
		}
		lines = append(lines, string(runes[:n]))
		runes = []rune(strings.TrimPrefix(string(runes[n:]), " "))
	}
	return append(lines, string(runes))
}

// watchInterval is how often a list is printed again.
const watchInterval = 2 * time.Second

// watchFlag is the flag --watch.
type watchFlag struct{ on bool }

func (f *watchFlag) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.on, "watch", false, "print the list again every two seconds until interrupted")
}

// run prints a list once, or again and again until an interrupt. It clears a terminal
// before each list.
func (f *watchFlag) run(cmd *cobra.Command, print func(s *screen) error) error {
	if !f.on {
		return print(newScreen(cmd))
	}
	interrupts, again := Interrupts(), time.NewTicker(watchInterval)
	defer again.Stop()
	for {
		s := newScreen(cmd)
		var page strings.Builder
		out := s.out
		s.out = &page
		if err := print(s); err != nil {
			return err
		}
		s.out = out
		s.clear()
		if _, err := io.WriteString(out, page.String()); err != nil {
			return err
		}
		select {
		case <-interrupts:
			return nil
		case <-again.C:
		}
	}
}

// input returns standard input if it is a terminal, nil otherwise.
func input(cmd *cobra.Command) io.Reader {
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// confirm asks a question and returns whether the answer is yes.
func confirm(cmd *cobra.Command, in io.Reader, question string) bool {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, _ := bufio.NewReader(in).ReadString('\n') // an incomplete answer counts as no
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
