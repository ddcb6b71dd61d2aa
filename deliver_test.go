package callback

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

func TestJitterAddsUpToAFifthAndNeverMoreThanAQuarterOfAnHour(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ wait, most time.Duration }{
		{time.Nanosecond, time.Nanosecond},
		{5 * time.Second, 6 * time.Second},
		{10 * time.Minute, 12 * time.Minute},
		{75 * time.Minute, 90 * time.Minute},
		{2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{24 * time.Hour, 24*time.Hour + 15*time.Minute},
	} {
		s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(test.wait)}}}
		shortest, longest := 1000*time.Hour, time.Duration(0)
		for range 10_000 {
			wait := s.retryIn(1, answer{})
			shortest, longest = min(shortest, wait), max(longest, wait)
		}
		if shortest < test.wait || longest > test.most {
			t.Errorf("%v becomes %v to %v, not up to %v", test.wait, shortest, longest, test.most)
		}
		if spread := test.most - test.wait; longest-shortest < spread*9/10 {
			t.Errorf("%v becomes %v to %v, which is hardly spread", test.wait, shortest, longest)
		}
	}
}

func TestTheDefaultScheduleIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	o := new(Delivery)
	if err := o.provision(); err != nil {
		t.Fatal(err)
	}
	const s, m, h = time.Second, time.Minute, time.Hour
	want := []time.Duration{5 * s, 30 * s, 2 * m, 10 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h}
	got := make([]time.Duration, len(o.Retry))
	for i, wait := range o.Retry {
		got[i] = time.Duration(wait)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the schedule is %v, not %v", got, want)
	}
}

func TestTheLongerOfScheduleAndRetryAfterCounts(t *testing.T) {
	t.Parallel()
	s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(time.Minute), caddy.Duration(2 * time.Hour)}}}
	for _, test := range []struct {
		tries              int
		asked, least, most time.Duration
	}{
		{1, 0, time.Minute, 72 * time.Second},
		{1, time.Second, time.Minute, 72 * time.Second},
		{1, time.Hour, time.Hour, time.Hour},
		{2, time.Hour, 2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{1, 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 365 * 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 1<<63 - 1, 24 * time.Hour, 24 * time.Hour},
	} {
		if got := s.retryIn(test.tries, answer{retryAfter: test.asked}); got < test.least || got > test.most {
			t.Errorf("attempt %d, Retry-After %v: %v, not %v to %v", test.tries, test.asked, got, test.least, test.most)
		}
	}
}

func TestRetryAfterIsSecondsOrADateAndElseNothing(t *testing.T) {
	t.Parallel()
	// The clock of synctest stands still: a date is as far away as it says.
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
			"Fri, 31 Dec 9999 23:59:59 GMT":           1<<63 - 1,
			"Thu, 01 Jan 1970 00:00:00 GMT":           0,
			in(365*24*time.Hour, http.TimeFormat):     365 * 24 * time.Hour, // retryIn caps it
			in(90*time.Second, http.TimeFormat) + "x": 0,
		} {
			if got := parseRetryAfter(value, now); got != want {
				t.Errorf("%.40q is %v, not %v", value, got, want)
			}
		}
	})
}

func TestAnAttemptsErrorHoldsNothingThatTheReceiverSent(t *testing.T) {
	t.Parallel()
	const secret = "token=hunter2"
	for _, err := range []error{
		errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "POST /hook?token=hunter2 HTTP/1.1"`),
		errors.New("malformed MIME header line: token=hunter2"),
		errors.New(`http: message cannot contain multiple Content-Length headers; got ["token=hunter2" "2"]`),
		errors.New(`http2: server sent GOAWAY and closed the connection; ErrCode=NO_ERROR, debug="token=hunter2"`),
	} {
		a := answer{err: err}
		if got := a.message(); got == "" || strings.Contains(got, secret) {
			t.Errorf("%q", got)
		}
	}
	a := answer{err: errors.New(strings.Repeat("é", 1000) + "\xff")}
	if got := a.message(); len(got) > maxMessage || strings.ContainsRune(got, '\uFFFD') || got == "" {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestAnAttemptsErrorHoldsNoAddress(t *testing.T) {
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
		if got := (&answer{err: fmt.Errorf("connecting: %w", err)}).message(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

func TestTheStandardLogKeepsNothingOfAnUnsolicitedAnswer(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	for _, line := range []string{
		"2026/11/23 17:33:00 Unsolicited response received on idle HTTP channel starting with \"hunter2\"; err=<nil>\n",
		"something else\n",
	} {
		if n, err := (hushedLog{&log}).Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d bytes are written: %v", n, err)
		}
	}
	want := "2026/11/23 17:33:00 Unsolicited response received on idle HTTP channel\nsomething else\n"
	if log.String() != want {
		t.Errorf("the log is %q", log.String())
	}
}

func TestWhatIsFinal(t *testing.T) {
	t.Parallel()
	for want, answers := range map[bool][]answer{
		true: {
			{status: 410},
			{err: fmt.Errorf("dialing: %w", &safedial.RefusedError{Reason: "is a private address"})},
			{err: errUnusable},
			{err: fmt.Errorf("loading the body: %w", engine.ErrNotFound)},
		},
		false: {
			{status: 200}, {status: 301}, {status: 404}, {status: 500},
			{err: errors.New("connection refused")},
		},
	} {
		for _, a := range answers {
			if a.final() != want {
				t.Errorf("%+v: final is %v", a, !want)
			}
		}
	}
}
