package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// terminalShown bounds the printed part of a body, and terminalValue that of a value.
const (
	terminalShown = 16 << 10
	terminalValue = 500
)

// Terminal is an inbox that prints each callback when it is received. Every request to
// it is a callback. It may be used from several goroutines at once.
type Terminal struct {
	inbox *Inbox
	// JSON prints each callback as one line of JSON, in the format of the inbox.
	JSON bool
	// Color colors status and signature with ANSI escapes.
	Color bool
	// ForwardTo is a URL that each callback is forwarded to. The sender gets the status
	// of its response. If it is nil, callbacks are only printed.
	ForwardTo *url.URL
	// Failed is called with the error if a callback could not be printed. It may be
	// nil.
	Failed func(error)

	mu  sync.Mutex
	out io.Writer
}

// NewTerminal returns a terminal that prints on out.
func NewTerminal(config InboxConfig, out io.Writer) *Terminal {
	return &Terminal{inbox: NewInbox(config), out: out}
}

func (t *Terminal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setSafeHeaders(w.Header())
	in := t.inbox
	body := in.receive(r)
	c := in.newCallback(r, body)
	in.memory.add(c)
	in.receiving.Add(-int64(len(body.kept)))
	status, answer := in.config.Respond, (*forwarded)(nil)
	if t.ForwardTo != nil {
		answer = t.passOn(r, c)
		status = cmp.Or(answer.StatusCode, http.StatusBadGateway)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "recorded as %d\n", c.Number) // an error means that the sender disconnected
	// A blocked terminal must not delay the sender.
	_ = http.NewResponseController(w).Flush()
	t.print(printedCallback{c.shown(terminalShown), answer})
}

// passOn forwards a callback if it was received completely.
func (t *Terminal) passOn(r *http.Request, c *callback) *forwarded {
	answer := forwarded{Error: c.BodyError}
	switch {
	case c.BodyError != "":
	case c.BodySize > int64(c.BodyKept):
		answer.Error = fmt.Sprintf("the body has %d bytes, of which only %d are kept", c.BodySize, c.BodyKept)
	default:
		answer = sendOn(r.Context(), c, t.ForwardTo)
	}
	return &answer
}

// printedCallback is a callback as it is printed, with the outcome of forwarding it.
type printedCallback struct {
	shownCallback
	Forwarded *forwarded `json:"forwarded,omitempty"`
}

func (t *Terminal) print(c printedCallback) {
	var b strings.Builder
	if t.JSON {
		_ = json.NewEncoder(&b).Encode(c) // all its fields can be encoded
	} else {
		t.write(&b, c.shownCallback)
		if c.Forwarded != nil {
			t.writeForwarded(&b, c.Forwarded)
		}
	}
	text := b.String()
	if t.JSON {
		text = TerminalJSON(text)
	}
	t.mu.Lock()
	_, err := io.WriteString(t.out, text)
	t.mu.Unlock()
	if err != nil && t.Failed != nil {
		t.Failed(err)
	}
}

// write writes a callback as text.
func (t *Terminal) write(b *strings.Builder, c shownCallback) {
	words := []string{c.ReceivedAt.Format("15:04:05")}
	status := c.Status
	if status == "" {
		status = c.Method
	}
	words = append(words, t.colored(statusColor(c.Status), TerminalText(status)))
	if c.TaskID != "" {
		words = append(words, TerminalText(c.TaskID))
	}
	if c.Attempt > 0 {
		words = append(words, fmt.Sprint("attempt ", c.Attempt))
	}
	words = append(words, TerminalText(c.Path), t.colored(signatureColor(c.Signature), signatureText(c.callback)))
	fmt.Fprintln(b, strings.Join(words, "  "))
	for _, p := range c.Pairs {
		fmt.Fprintf(b, "    %s = %s\n", TerminalText(p.Name), cut(p.Value))
	}
	switch {
	case len(c.Pairs) > 0:
	case len(c.BodyBase64) > 0:
		fmt.Fprintf(b, "    %d bytes that are not text\n", c.BodySize)
	case c.Body != "":
		fmt.Fprintf(b, "    %s\n", cut(c.Body))
	}
	switch {
	case c.BodyError != "":
		fmt.Fprintf(b, "    (the body is incomplete: %s)\n", TerminalText(c.BodyError))
	case c.PairsTruncated || c.BodyTruncated:
		fmt.Fprintf(b, "    (of %d bytes; the rest is not shown)\n", c.BodySize)
	}
}

// writeForwarded writes the response of the URL that the callback was forwarded to.
func (t *Terminal) writeForwarded(b *strings.Builder, f *forwarded) {
	color, what := red, f.Error
	if f.StatusCode > 0 {
		what = strings.TrimSpace(strconv.Itoa(f.StatusCode) + " " + http.StatusText(f.StatusCode))
	}
	if f.StatusCode >= 200 && f.StatusCode < 300 {
		color = green
	}
	fmt.Fprintf(b, "    %s in %d ms\n", t.colored(color, "forwarded: "+TerminalText(what)), f.DurationMS)
	if f.Response != "" {
		fmt.Fprintf(b, "    %s\n", cut(f.Response))
	}
}

func signatureText(c *callback) string {
	switch {
	case c.Signature == signatureVerified:
		return "signature verified"
	case c.SignatureError != "":
		return "signature " + c.Signature + ": " + TerminalText(c.SignatureError)
	default:
		return c.Signature
	}
}

// cut shortens a value for printing.
func cut(s string) string {
	if len(s) <= terminalValue {
		return TerminalText(s)
	}
	n := terminalValue
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d bytes)", TerminalText(s[:n]), len(s))
}

// ANSI escapes for text colors.
const (
	red    = 31
	green  = 32
	yellow = 33
)

func statusColor(status string) int {
	switch status {
	case "COMPLETE":
		return green
	case "":
		return 0
	case "TIMEOUT":
		return yellow
	default:
		return red
	}
}

func signatureColor(signature string) int {
	switch signature {
	case signatureVerified:
		return green
	case signatureFailed:
		return red
	default:
		return 0
	}
}

func (t *Terminal) colored(color int, s string) string {
	if !t.Color || color == 0 {
		return s
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, s)
}

// TerminalText escapes the characters of s that move the cursor, change a color or
// reverse the direction of the text: s may come from strangers.
func TerminalText(s string) string {
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		c, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case strconv.IsPrint(c):
			b.WriteRune(c)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		}
		i += size
	}
	return b.String()
}

// TerminalJSON returns JSON that is equal to s and safe to print on a terminal. JSON
// does not escape U+009B, which starts an escape sequence as ESC [ does. Line ends are
// kept.
func TerminalJSON(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '\n' || strconv.IsPrint(c):
			b.WriteRune(c)
		default:
			for _, unit := range utf16.AppendRune(nil, c) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
	}
	return b.String()
}

func isPlain(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
