package engine

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A record is encoded and decoded at every step of every task; encoding/json took
// a fifth of what a step costs. What is written here is byte for byte what it
// writes, so that either can read the other's. It still does the members that few
// tasks have, and reads what was not written here. Package task has the rare record
// whose strings are not all UTF-8.

// encodeRecord appends a record as one line of JSON, without its end.
func encodeRecord(b []byte, rec *task.Record) ([]byte, error) {
	start := len(b)
	w := writer{b: append(b, '{')}
	w.name("task_id")
	w.string(rec.ID)
	w.text("queue", rec.Queue)
	w.text("state", string(rec.State))
	w.text("status", string(rec.Status))
	w.number("upstream_status", int64(rec.UpstreamStatus))
	w.text("error", rec.Error)
	w.name("created_at")
	w.moment(rec.CreatedAt)
	w.time("started_at", rec.StartedAt)
	w.time("finished_at", rec.FinishedAt)
	w.time("delivered_at", rec.DeliveredAt)
	w.text("callback_host", rec.CallbackHost)
	w.time("next_attempt_at", rec.NextAttemptAt)
	if len(rec.Attempts) > 0 {
		w.name("attempts")
		w.attempts(rec.Attempts)
	}
	w.number("tries", int64(rec.Tries))
	if len(rec.Redelivered) > 0 {
		w.other("redelivered", rec.Redelivered)
	}
	w.text("span", rec.Span)
	w.text("route", rec.Route)
	if rec.Callback != nil {
		w.name("callback")
		w.callback(rec.Callback)
	}
	if rec.Result != nil {
		w.name("result")
		w.result(rec.Result)
	}
	w.text("blob", rec.Blob)
	if rec.Request != nil {
		w.other("request", rec.Request)
	}
	w.number("starts", int64(rec.Starts))
	w.number("timeout", int64(rec.Timeout))
	w.text("key", rec.Key)
	w.text("seed", rec.Seed)
	if w.err == nil && isForeign(w.b[start:]) {
		line, err := task.Encode(rec)
		return append(w.b[:start], line...), err
	}
	return append(w.b, '}'), w.err
}

// isForeign says whether JSON may have a string that only package task can encode:
// one that is not UTF-8, or looks like its encoding of one.
func isForeign(line []byte) bool {
	return bytes.Contains(line, []byte(`\ufffd`)) || bytes.Contains(line, []byte(`"\u0000`))
}

// writer appends the members of objects. Those that are zero are left out where
// it is said in package task. It keeps the first error.
type writer struct {
	b   []byte
	err error
}

func (w *writer) attempts(attempts []task.Attempt) {
	w.b = append(w.b, '[')
	for i := range attempts {
		a := &attempts[i]
		w.comma()
		w.b = append(w.b, '{')
		w.name("at")
		w.moment(a.At)
		w.number("status_code", int64(a.StatusCode))
		w.name("duration_ms")
		w.b = strconv.AppendInt(w.b, a.DurationMS, 10)
		w.text("error", a.Error)
		w.text("response", a.Response)
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ']')
}

func (w *writer) callback(c *task.Callback) {
	w.b = append(w.b, '{')
	w.name("url")
	w.string(c.URL)
	if c.Trusted {
		w.name("trusted")
		w.b = append(w.b, "true"...)
	}
	w.text("format", c.Format)
	w.text("task_header", c.TaskHeader)
	w.text("status_header", c.StatusHeader)
	if len(c.Header) > 0 {
		w.other("header", c.Header)
	}
	w.text("profile", c.Profile)
	w.text("function", c.Function)
	w.number("max_result", c.MaxResult)
	w.text("traceparent", c.Traceparent)
	w.b = append(w.b, '}')
}

func (w *writer) result(r *task.Result) {
	w.b = append(w.b, '{')
	w.text("content_type", r.ContentType)
	w.text("content_encoding", r.ContentEncoding)
	w.number("size", r.Size)
	w.number("kept", r.Kept)
	if len(r.Header) > 0 {
		w.other("header", r.Header)
	}
	w.b = append(w.b, '}')
}

// comma separates what follows from a member or an element before it.
func (w *writer) comma() {
	if last := w.b[len(w.b)-1]; last != '{' && last != '[' {
		w.b = append(w.b, ',')
	}
}

func (w *writer) name(name string) {
	w.comma()
	w.b = append(w.b, '"')
	w.b = append(w.b, name...)
	w.b = append(w.b, '"', ':')
}

func (w *writer) text(name, value string) {
	if value != "" {
		w.name(name)
		w.string(value)
	}
}

func (w *writer) number(name string, value int64) {
	if value != 0 {
		w.name(name)
		w.b = strconv.AppendInt(w.b, value, 10)
	}
}

func (w *writer) time(name string, value time.Time) {
	if !value.IsZero() {
		w.name(name)
		w.moment(value)
	}
}

func (w *writer) moment(value time.Time) {
	b, err := value.AppendText(append(w.b, '"'))
	if err != nil {
		w.fail(err)
		return
	}
	w.b = append(b, '"')
}

func (w *writer) string(value string) {
	if !isPlain(value) {
		w.value(value)
		return
	}
	w.b = append(w.b, '"')
	w.b = append(w.b, value...)
	w.b = append(w.b, '"')
}

// other writes what few records have.
func (w *writer) other(name string, value any) {
	w.name(name)
	w.value(value)
}

func (w *writer) value(value any) {
	b, err := json.Marshal(value)
	if err != nil {
		w.fail(err)
	}
	w.b = append(w.b, b...)
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// isPlain says whether a string is the same in JSON.
func isPlain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c >= 0x7F, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

// decodeRecord reads a record.
func decodeRecord(line []byte) (*task.Record, error) {
	if isForeign(line) {
		return task.Decode(line)
	}
	rec := new(task.Record)
	if gjson.ValidBytes(line) && readRecord(gjson.ParseBytes(line), rec) {
		return rec, nil
	}
	*rec = task.Record{}
	if err := json.Unmarshal(line, rec); err != nil {
		return nil, err
	}
	return rec, nil
}

// readRecord reads a record and says whether it is such a one as encodeRecord
// writes.
func readRecord(v gjson.Result, rec *task.Record) bool {
	return readMembers(v, func(name string, v gjson.Result) bool {
		switch name {
		case "task_id":
			return readText(v, &rec.ID)
		case "queue":
			return readText(v, &rec.Queue)
		case "state":
			return readText(v, &rec.State)
		case "status":
			return readText(v, &rec.Status)
		case "upstream_status":
			return readNumber(v, &rec.UpstreamStatus)
		case "error":
			return readText(v, &rec.Error)
		case "created_at":
			return readTime(v, &rec.CreatedAt)
		case "started_at":
			return readTime(v, &rec.StartedAt)
		case "finished_at":
			return readTime(v, &rec.FinishedAt)
		case "delivered_at":
			return readTime(v, &rec.DeliveredAt)
		case "callback_host":
			return readText(v, &rec.CallbackHost)
		case "next_attempt_at":
			return readTime(v, &rec.NextAttemptAt)
		case "tries":
			return readNumber(v, &rec.Tries)
		case "span":
			return readText(v, &rec.Span)
		case "route":
			return readText(v, &rec.Route)
		case "callback":
			rec.Callback = new(task.Callback)
			return readCallback(v, rec.Callback)
		case "result":
			rec.Result = new(task.Result)
			return readResult(v, rec.Result)
		case "blob":
			return readText(v, &rec.Blob)
		case "starts":
			return readNumber(v, &rec.Starts)
		case "timeout":
			return readNumber(v, &rec.Timeout)
		case "key":
			return readText(v, &rec.Key)
		case "seed":
			return readText(v, &rec.Seed)
		case "attempts":
			return readOther(v, &rec.Attempts)
		case "redelivered":
			return readOther(v, &rec.Redelivered)
		case "request":
			return readOther(v, &rec.Request)
		default:
			return false
		}
	})
}

func readCallback(v gjson.Result, c *task.Callback) bool {
	return readMembers(v, func(name string, v gjson.Result) bool {
		switch name {
		case "url":
			return readText(v, &c.URL)
		case "trusted":
			c.Trusted = v.Type == gjson.True
			return c.Trusted
		case "format":
			return readText(v, &c.Format)
		case "task_header":
			return readText(v, &c.TaskHeader)
		case "status_header":
			return readText(v, &c.StatusHeader)
		case "header":
			return readOther(v, &c.Header)
		case "profile":
			return readText(v, &c.Profile)
		case "function":
			return readText(v, &c.Function)
		case "max_result":
			return readNumber(v, &c.MaxResult)
		case "traceparent":
			return readText(v, &c.Traceparent)
		default:
			return false
		}
	})
}

func readResult(v gjson.Result, r *task.Result) bool {
	return readMembers(v, func(name string, v gjson.Result) bool {
		switch name {
		case "content_type":
			return readText(v, &r.ContentType)
		case "content_encoding":
			return readText(v, &r.ContentEncoding)
		case "size":
			return readNumber(v, &r.Size)
		case "kept":
			return readNumber(v, &r.Kept)
		case "header":
			return readOther(v, &r.Header)
		default:
			return false
		}
	})
}

// readMembers calls read for each member of an object, until one is not as
// expected, and says whether all were.
func readMembers(v gjson.Result, read func(name string, v gjson.Result) bool) bool {
	as := v.IsObject()
	v.ForEach(func(name, v gjson.Result) bool {
		as = as && read(name.Str, v)
		return as
	})
	return as
}

func readText[T ~string](v gjson.Result, to *T) bool {
	if v.Type != gjson.String {
		return false
	}
	if len(v.Raw) == len(v.Str)+2 && isPlain(v.Str) {
		*to = T(v.Str)
		return true
	}
	return readOther(v, to)
}

func readNumber[T ~int | ~int64](v gjson.Result, to *T) bool {
	n, err := strconv.ParseInt(v.Raw, 10, 64)
	*to = T(n)
	return err == nil && int64(T(n)) == n
}

func readTime(v gjson.Result, to *time.Time) bool {
	return v.Type == gjson.String && to.UnmarshalText([]byte(v.Str)) == nil
}

// readOther reads what few records have.
func readOther(v gjson.Result, to any) bool { return json.Unmarshal([]byte(v.Raw), to) == nil }
