package web

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// printed returns what a terminal prints for a callback.
func printed(t *testing.T, terminal *Terminal, out *bytes.Buffer, body string, header ...string) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/hook", strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header[http.CanonicalHeaderKey(header[i])] = []string{header[i+1]}
	}
	w := httptest.NewRecorder()
	terminal.ServeHTTP(w, r)
	if w.Code != terminal.inbox.config.Respond {
		t.Errorf("the sender got %d", w.Code)
	}
	text := out.String()
	out.Reset()
	return text
}

func TestCallbackIsPrinted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	terminal := NewTerminal(InboxConfig{Respond: 503}, &out)
	got := printed(t, terminal, &out, "response=example+response&n=1", "content-type", "application/x-www-form-urlencoded",
		"beam-task-id", "the-id", "x-beam-task-status", "COMPLETE", "callback-attempt", "3")
	for _, want := range []string{"COMPLETE", "the-id", "attempt 3", "/hook", "unsigned", "response = example response\n", "n = 1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not have %q", got, want)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Errorf("%q has a color", got)
	}
	terminal.Color = true
	if got := printed(t, terminal, &out, "", "x-beam-task-status", "FAILED"); !strings.Contains(got, "\x1b[31mFAILED\x1b[0m") {
		t.Errorf("%q has no color", got)
	}
	terminal.JSON = true
	var c map[string]any
	if err := json.Unmarshal([]byte(printed(t, terminal, &out, "x")), &c); err != nil || c["body"] != "x" {
		t.Errorf("as JSON it is %v: %v", c, err)
	}
}

func TestPrintedSignatureVerdict(t *testing.T) {
	t.Parallel()
	key, err := webhook.ParseKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	verify, err := webhook.ParseVerifyKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	terminal := NewTerminal(InboxConfig{Keys: []webhook.Key{verify}}, &out)
	now := time.Now()
	for body, want := range map[string]string{"a=1": "signature verified", "a=2": "signature failed"} {
		signed := webhook.Sign([]webhook.Key{key}, "id", now, []byte("a=1"))
		got := printed(t, terminal, &out, body, webhook.HeaderID, "id", webhook.HeaderSignature, signed,
			webhook.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10))
		if !strings.Contains(got, want) {
			t.Errorf("of %s: %q does not say %q", body, got, want)
		}
	}
}

func TestPrintedCallbackEscapesControlCharacters(t *testing.T) {
	t.Parallel()
	hostile := "\x1b[2J\x1b]0;title\x07\r\n\t\x00\x7f\u0085\u202eevil\u2066\u200f\u2028\xff<script>"
	var out bytes.Buffer
	terminal := NewTerminal(InboxConfig{}, &out)
	got := printed(t, terminal, &out, `{"`+"n\u202e"+`":"\u001b[31m\u202e"}`, "content-type", "application/json",
		"beam-task-id", hostile, "x-beam-task-status", hostile, "webhook-signature", hostile)
	got += printed(t, terminal, &out, hostile)
	terminal.JSON = true
	asJSON := printed(t, terminal, &out, "\u009b2J\u202e\U000e0001", "x-beam-task-status", hostile)
	var c struct{ Body string }
	if err := json.Unmarshal([]byte(asJSON), &c); err != nil || c.Body != "\u009b2J\u202e\U000e0001" {
		t.Errorf("as JSON it is %q: %v", c.Body, err)
	}
	got += asJSON
	for _, c := range got {
		if c != '\n' && (c < ' ' || c >= 0x7f && c < 0xa0 || strings.ContainsRune("\u202e\u2066\u200f\u2028\ufffd", c)) {
			t.Errorf("%q has %U", got, c)
		}
	}
	if want := `\x1b[2J\x1b]0;title\a\r\n\t\x00\x7f\u0085\u202eevil\u2066\u200f\u2028\xff<script>`; TerminalText(hostile) != want {
		t.Errorf("it becomes %s", TerminalText(hostile))
	}
	if long := cut(strings.Repeat("ü", 400)); !strings.HasSuffix(long, "… (800 bytes)") {
		t.Errorf("it ends with %q", long[len(long)-20:])
	}
}
