package send

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Answer is the outcome of an attempt.
type Answer struct {
	At         time.Time     // when the attempt began
	Took       time.Duration // from connecting to the end of the answer
	Status     int           // status code; 0 if there was no answer
	Excerpt    string        // the beginning of the answer, as text
	RetryAfter time.Duration // the wait that the receiver asks for; may exceed any retry schedule
	Err        error         // why there was no answer
	Connected  bool          // whether there was a connection to the receiver
	Trace      task.Trace    // what operators see of the attempt
}

// Accepted reports whether the receiver accepted the callback.
func (a *Answer) Accepted() bool { return a.Status >= 200 && a.Status < 300 }

// Final reports whether another attempt is useless: the receiver answered 410, the
// address is refused, or the callback cannot be sent.
func (a *Answer) Final() bool {
	var refused *safedial.RefusedError
	return a.Status == http.StatusGone || errors.As(a.Err, &refused) || errors.Is(a.Err, errUnusable)
}

// maxMessage bounds an error kept in an attempt's record.
const maxMessage = 300

// Message returns why there was no answer. It is empty if there was one. It contains
// nothing that the receiver sent: net/http quotes data that it cannot parse, and a
// receiver that echoes would put the callback's body and its URL's query in the log. It
// also contains no addresses of this machine, of its resolver or of a host that allow
// names, because a queue's clients can read it.
func (a *Answer) Message() string {
	if a.Err == nil {
		return ""
	}
	s := a.Err.Error()
	var lookup *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(a.Err, &lookup) && lookup.IsNotFound:
		s = "no such host"
	case errors.As(a.Err, &lookup):
		s = "the resolver gave no answer"
	case errors.As(a.Err, &op):
		for inner := op; errors.As(inner.Err, &inner); {
			op = inner // the text of an outer error contains the addresses
		}
		s = op.Op + ": " + op.Err.Error()
	}
	if strings.Contains(s, "malformed") {
		return "the answer is not HTTP"
	}
	s, _, _ = strings.Cut(s, `"`)
	return strings.ToValidUTF8(s[:min(len(s), maxMessage)], "")
}

// excerpt returns the beginning of what a receiver sent as text. It replaces control characters:
// the text is shown in terminals, and in JSON they take six times their size.
func excerpt(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxExcerpt)], "\uFFFD")
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t' || !unicode.IsControl(c):
			return c
		case c == '\r':
			return -1
		default:
			return '\uFFFD'
		}
	}, text)
}

// MaxRetryAfter bounds the wait that a receiver can ask for. Without it, a receiver
// could delay a callback by a year.
const MaxRetryAfter = 24 * time.Hour

// ParseRetryAfter parses seconds or a date (RFC 9110, section 10.2.3). The result is at
// most MaxRetryAfter. It is 0 for an invalid value and for a date in the past.
func ParseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	seconds, err := strconv.ParseUint(value, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // on ErrRange, seconds is the largest uint64
		return time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(0, date.Sub(now)), MaxRetryAfter)
	}
	return 0
}
