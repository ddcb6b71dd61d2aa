package send

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	// The clock of synctest does not advance here, so the wait until a date is exact.
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		in := func(d time.Duration, layout string) string { return now.Add(d).UTC().Format(layout) }
		for value, want := range map[string]time.Duration{
			"120":   120 * time.Second,
			" 120 ": 120 * time.Second,
			"007":   7 * time.Second,
			"0":     0,
			"":      0,
			"-1":    0,
			"+1":    0,
			"1.5":   0,
			"0x10":  0,
			"1e3":   0,
			"soon":  0,
			"120 s": 0,
			"1, 2":  0,
			"٣":     0, // a digit, in Arabic

			"86400":                         24 * time.Hour,
			"86401":                         24 * time.Hour,
			"31536000":                      24 * time.Hour,
			"18446744073709551615":          24 * time.Hour,
			"18446744073709551616":          24 * time.Hour,
			strings.Repeat("9", 4000):       24 * time.Hour,
			"-" + strings.Repeat("9", 4000): 0,

			in(90*time.Second, http.TimeFormat):       90 * time.Second,
			in(90*time.Second, time.RFC850):           90 * time.Second,
			in(90*time.Second, time.ANSIC):            90 * time.Second,
			in(-90*time.Second, http.TimeFormat):      0,
			in(0, http.TimeFormat):                    0,
			in(90*time.Second, time.RFC3339):          0, // no HTTP date
			"Mon, 32 Jan 2035 25:61:61 GMT":           0,
			"Fri, 31 Dec 9999 23:59:59 GMT":           24 * time.Hour,
			"Thu, 01 Jan 1970 00:00:00 GMT":           0,
			in(365*24*time.Hour, http.TimeFormat):     24 * time.Hour,
			in(90*time.Second, http.TimeFormat) + "x": 0,
		} {
			if got := ParseRetryAfter(value, now); got != want {
				t.Errorf("%.40q is %v, want %v", value, got, want)
			}
		}
	})
}

func TestErrorHasNoAnswerData(t *testing.T) {
	t.Parallel()
	const secret = "token=hunter2"
	for _, err := range []error{
		errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "POST /hook?token=hunter2 HTTP/1.1"`),
		errors.New("malformed MIME header line: token=hunter2"),
		errors.New(`http: message cannot contain multiple Content-Length headers; got ["token=hunter2" "2"]`),
		errors.New(`http2: server sent GOAWAY and closed the connection; ErrCode=NO_ERROR, debug="token=hunter2"`),
	} {
		a := Answer{Err: err}
		if got := a.Message(); got == "" || strings.Contains(got, secret) {
			t.Errorf("%q", got)
		}
	}
	a := Answer{Err: errors.New(strings.Repeat("é", 1000) + "\xff")}
	if got := a.Message(); len(got) > maxMessage || strings.ContainsRune(got, '\uFFFD') || got == "" {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestErrorHasNoAddress(t *testing.T) {
	t.Parallel()
	here, there := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 4711}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8), Port: 80}
	for want, err := range map[string]error{
		"read: connection reset by peer": &net.OpError{Op: "read", Net: "tcp", Source: here, Addr: there, Err: syscall.ECONNRESET},
		"no such host": &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{
			Err: "no such host", Name: "c.example", Server: "10.0.0.9:53", IsNotFound: true,
		}},
		"the resolver gave no answer": &net.DNSError{Err: "read udp 10.0.0.7:9->10.0.0.9:53: i/o timeout", Name: "c.example", IsTimeout: true},
		"write: broken pipe": &net.OpError{Op: "readfrom", Err: &net.OpError{
			Op: "write", Net: "tcp", Source: here, Addr: there, Err: syscall.EPIPE,
		}},
	} {
		if got := (&Answer{Err: fmt.Errorf("connecting: %w", err)}).Message(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestFinalOutcomes(t *testing.T) {
	t.Parallel()
	for want, answers := range map[bool][]Answer{
		true: {
			{Status: 410},
			{Err: fmt.Errorf("dialing: %w", &safedial.RefusedError{Reason: "is a private address"})},
			{Err: errUnusable},
		},
		false: {
			{Status: 200}, {Status: 301}, {Status: 404}, {Status: 500},
			{Err: errors.New("connection refused")},
		},
	} {
		for _, a := range answers {
			if a.Final() != want {
				t.Errorf("%+v: final is %v", a, !want)
			}
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"", "0", "120", " 5 ", "-1", "1e9", "99999999999999999999999", "Fri, 31 Dec 2100 23:59:59 GMT",
		"Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Fri, 31 Dec 9999 23:59:59 GMT",
	} {
		f.Add(value)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		wait := ParseRetryAfter(value, now)
		if wait < 0 {
			t.Errorf("%q is a wait of %v", value, wait)
		}
		if seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 16); err == nil {
			if want := min(time.Duration(seconds)*time.Second, MaxRetryAfter); wait != want {
				t.Errorf("%q is a wait of %v, want %v", value, wait, want)
			}
		}
	})
}

func FuzzExcerpt(f *testing.F) {
	for _, body := range []string{"", "ok\r\n", "\x1b[2J\x00\x7f", "\xff\xfe", strings.Repeat("é", maxExcerpt), "a\u009bb"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		text := excerpt(string(body))
		control := func(c rune) bool { return c != '\n' && c != '\t' && unicode.IsControl(c) }
		if !utf8.ValidString(text) || strings.ContainsFunc(text, control) || utf8.RuneCountInString(text) > maxExcerpt {
			t.Errorf("of %q is kept %q", body, text)
		}
	})
}
