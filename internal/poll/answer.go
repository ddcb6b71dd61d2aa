package poll

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// Source is a place in an answer: a header, or a value of its JSON body. The zero value
// is no place.
type Source struct {
	Header string
	// JSON is a path in the syntax of gjson.
	JSON string
}

// Condition is met by an answer that has one of the statuses, or in whose JSON body the
// path leads to one of the values.
type Condition struct {
	Status []int
	// JSON is a path in the syntax of gjson.
	JSON   string
	Values []string
}

// Answer is the answer to a request of a task.
type Answer struct {
	Status int // 0 if there was none
	Header http.Header
	// Body is the answer's body. If Cut is set, it is only the beginning.
	Body []byte
	Cut  bool
	// Coding is the content coding of Body.
	Coding string
	// RetryAfter is the wait that the endpoint asks for. Zero means that it asks for
	// none.
	RetryAfter time.Duration

	decoded bool
}

// maxDecoded bounds, in bytes, what an encoded body expands to in memory.
const maxDecoded = 16 << 20

// json returns the body without its coding, or nothing if it cannot be decoded.
func (a *Answer) json() []byte {
	if a.decoded || a.Coding == "" {
		return a.Body
	}
	a.decoded = true
	encoded := a.Body
	a.Body = nil
	reader, err := form.NewReader(a.Coding, bytes.NewReader(encoded))
	if err != nil {
		return nil
	}
	defer reader.Close()
	// A cut body ends in an error. The data before it may have the value.
	a.Body, _ = io.ReadAll(io.LimitReader(reader, maxDecoded))
	return a.Body
}

// find returns the text at a source, or "" if there is none.
func (a *Answer) find(s Source) string {
	switch {
	case s.Header != "":
		return strings.TrimSpace(a.Header.Get(s.Header))
	case s.JSON != "":
		if value := gjson.GetBytes(a.json(), s.JSON); value.Type == gjson.String {
			return strings.TrimSpace(value.Str)
		}
	}
	return ""
}

// unknown reports whether one of the paths may lead to a value in the part of a JSON body
// that was cut off.
func (a *Answer) unknown(paths ...string) bool {
	body := bytes.TrimSpace(a.json())
	if !a.Cut || len(body) == 0 || body[0] != '{' && body[0] != '[' {
		return false
	}
	return slices.ContainsFunc(paths, func(path string) bool { return path != "" && !gjson.GetBytes(body, path).Exists() })
}

// meets reports whether the answer meets one of the conditions.
func (a *Answer) meets(conditions []Condition) bool {
	return slices.ContainsFunc(conditions, func(c Condition) bool {
		if slices.Contains(c.Status, a.Status) {
			return true
		}
		if c.JSON == "" {
			return false
		}
		value := gjson.GetBytes(a.json(), c.JSON)
		text := value.String()
		if value.Exists() && value.Type == gjson.Null {
			text = "null"
		}
		return value.Exists() && slices.Contains(c.Values, text)
	})
}
