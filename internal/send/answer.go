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

// Answer is what came of an attempt.
type Answer struct {
	At         time.Time     // when the attempt began
	Took       time.Duration // from connecting to the end of the answer
	Status     int           // status code; 0 if there was no answer
	Excerpt    string        // the beginning of the answer, as text
	RetryAfter time.Duration // what the receiver asks for; may exceed any schedule
	Err        error         // why there was no answer
	Connected  bool          // to the receiver
	Trace      task.Trace    // what operators see of the attempt
}

// Accepted reports whether the receiver has the callback.
func (a *Answer) Accepted() bool { return a.Status >= 200 && a.Status < 300 }

// Final reports whether another attempt is of no use: the receiver said 410, the
// address is refused, or there is no way to send the callback.
func (a *Answer) Final() bool {
	var refused *safedial.RefusedError
	return a.Status == http.StatusGone || errors.As(a.Err, &refused) || errors.Is(a.Err, errUnusable)
}

// maxMessage bounds an error kept in an attempt's record.
const maxMessage = 300

// Message says why there was no answer; it is empty if there was one. It holds
// nothing of what the receiver sent: net/http quotes what it does not understand,
// and a receiver that echoes would have the callback's body and its URL's query in
// the log. Nor does it hold addresses, of this machine, its resolver or a host that
// allow names: a queue's clients can read it.
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
			op = inner // the text of an outer one has the addresses
		}
		s = op.Op + ": " + op.Err.Error()
	}
	if strings.Contains(s, "malformed") {
		return "the answer is not HTTP"
	}
	s, _, _ = strings.Cut(s, `"`)
	return strings.ToValidUTF8(s[:min(len(s), maxMessage)], "")
}

// excerpt returns the beginning of an answer as text. Control characters stay
// out of it: it is shown in terminals, and takes six times its size in JSON.
func excerpt(body []byte) string {
	text := strings.ToValidUTF8(string(body[:min(len(body), maxExcerpt)]), "\uFFFD")
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

// MaxRetryAfter bounds what a receiver can ask for: a year would be for ever.
const MaxRetryAfter = 24 * time.Hour

// ParseRetryAfter reads seconds or a date (RFC 9110, section 10.2.3). What is
// neither, or past, is no wait.
func ParseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	seconds, err := strconv.ParseUint(value, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // then it is the largest there is
		return time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(0, date.Sub(now)), MaxRetryAfter)
	}
	return 0
}
