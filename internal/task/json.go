package task

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// A record is encoded three times for each task, and encoding/json takes longer for it
// than the rest of a step. So the parts that most records have are encoded here, exactly
// as encoding/json does. TestRecordIsEncodedAsByEncodingJSON fails if a field is missing.

// appendRecord appends a record as a JSON object.
func appendRecord(b []byte, r *Record) ([]byte, error) {
	o := beginObject(b)
	o.task(&r.Task)
	o.number("tries", int64(r.Tries))
	o.rare("redelivered", r.Redelivered, len(r.Redelivered) > 0)
	o.text("span", r.Span)
	o.text("route", r.Route)
	if r.Callback != nil {
		o.callback(r.Callback)
	}
	if r.Result != nil {
		o.result(r.Result)
	}
	o.text("callback_domain", r.CallbackDomain)
	if r.Request != nil {
		o.request(r.Request)
	}
	o.rare("poll", r.Poll, r.Poll != nil)
	o.number("starts", int64(r.Starts))
	o.time("not_before", r.NotBefore)
	o.number("timeout", int64(r.Timeout))
	o.text("schedule", r.Schedule)
	o.text("request_method", r.RequestMethod)
	o.text("request_path", r.RequestPath)
	o.number("request_size", r.RequestSize)
	if len(r.Traces) > 0 {
		o.name("traces")
		o.list(len(r.Traces), func(i int) { o.trace(&r.Traces[i]) })
	}
	o.end()
	return o.b, o.err
}

func (o *object) task(t *Task) {
	o.name("task_id")
	o.quote(t.ID)
	o.text("queue", t.Queue)
	o.text("state", string(t.State))
	o.text("status", string(t.Status))
	o.number("upstream_status", int64(t.UpstreamStatus))
	o.text("error", t.Error)
	o.name("created_at")
	o.moment(t.CreatedAt)
	o.time("started_at", t.StartedAt)
	o.time("finished_at", t.FinishedAt)
	o.time("delivered_at", t.DeliveredAt)
	o.text("callback_host", t.CallbackHost)
	o.time("next_attempt_at", t.NextAttemptAt)
	if len(t.Attempts) > 0 {
		o.name("attempts")
		o.list(len(t.Attempts), func(i int) { o.attempt(&t.Attempts[i]) })
	}
}

func (o *object) attempt(a *Attempt) {
	o.begin()
	o.name("at")
	o.moment(a.At)
	o.number("status_code", int64(a.StatusCode))
	o.name("duration_ms")
	o.b = strconv.AppendInt(o.b, a.DurationMS, 10)
	o.text("error", a.Error)
	o.text("response", a.Response)
	o.end()
}

func (o *object) callback(c *Callback) {
	o.name("callback")
	o.begin()
	o.name("url")
	o.quote(c.URL)
	o.flag("trusted", c.Trusted)
	o.text("format", c.Format)
	o.text("task_header", c.TaskHeader)
	o.text("status_header", c.StatusHeader)
	o.pairs("header", c.Header)
	o.text("profile", c.Profile)
	o.text("function", c.Function)
	o.number("max_result", c.MaxResult)
	o.text("traceparent", c.Traceparent)
	o.rare("link", c.Link, c.Link != nil)
	if c.KeyFor != nil {
		o.name("key_for")
		o.quote(*c.KeyFor)
	}
	o.end()
}

func (o *object) result(r *Result) {
	o.name("result")
	o.begin()
	o.text("content_type", r.ContentType)
	o.text("content_encoding", r.ContentEncoding)
	o.number("size", r.Size)
	o.number("kept", r.Kept)
	o.header("header", r.Header)
	o.end()
}

func (o *object) request(r *Request) {
	o.name("request")
	o.begin()
	o.name("method")
	o.quote(r.Method)
	o.name("uri")
	o.quote(r.URI)
	o.text("path", r.Path)
	o.text("proto", r.Proto)
	o.text("host", r.Host)
	o.header("header", r.Header)
	o.text("remote_addr", r.RemoteAddr)
	o.flag("tls", r.TLS)
	o.number("size", r.Size)
	o.rare("vars", r.Vars, len(r.Vars) > 0)
	o.end()
}

func (o *object) trace(t *Trace) {
	o.begin()
	o.name("at")
	o.moment(t.At)
	o.text("remote_addr", t.RemoteAddr)
	o.float("dns_ms", t.DNS)
	o.float("connect_ms", t.Connect)
	o.float("tls_ms", t.TLS)
	o.float("first_byte_ms", t.FirstByte)
	o.pairs("request_headers", t.Sent)
	o.pairs("response_headers", t.Received)
	o.end()
}

// object appends JSON to b. err is the first error.
type object struct {
	b   []byte
	err error
}

func beginObject(b []byte) *object { return &object{b: append(b, '{')} }

func (o *object) begin() { o.b = append(o.b, '{') }
func (o *object) end()   { o.b = append(o.b, '}') }

// name appends the name of the next member. It contains no characters to escape.
func (o *object) name(name string) {
	if last := o.b[len(o.b)-1]; last != '{' {
		o.b = append(o.b, ',')
	}
	o.b = append(append(append(o.b, '"'), name...), `":`...)
}

// text appends a member, unless it is empty. flag, number, time, float and header do the
// same.
func (o *object) text(name, value string) {
	if value != "" {
		o.name(name)
		o.quote(value)
	}
}

func (o *object) flag(name string, value bool) {
	if value {
		o.name(name)
		o.b = append(o.b, "true"...)
	}
}

func (o *object) number(name string, value int64) {
	if value != 0 {
		o.name(name)
		o.b = strconv.AppendInt(o.b, value, 10)
	}
}

func (o *object) time(name string, value time.Time) {
	if !value.IsZero() {
		o.name(name)
		o.moment(value)
	}
}

func (o *object) float(name string, value float64) {
	if value != 0 {
		o.name(name)
		o.b = strconv.AppendFloat(o.b, value, 'f', -1, 64)
	}
}

// header appends the fields sorted by name.
func (o *object) header(name string, value http.Header) {
	if len(value) == 0 {
		return
	}
	var few [32]string
	names := few[:0]
	for field := range value {
		names = append(names, field)
	}
	slices.Sort(names)
	o.name(name)
	o.begin()
	for i, field := range names {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.quote(field)
		o.b = append(o.b, ':')
		values := value[field]
		if values == nil {
			o.b = append(o.b, "null"...)
			continue
		}
		o.list(len(values), func(i int) { o.quote(values[i]) })
	}
	o.end()
}

// pairs appends a list of names and values, unless it is empty.
func (o *object) pairs(name string, list [][2]string) {
	if len(list) == 0 {
		return
	}
	o.name(name)
	o.list(len(list), func(i int) {
		o.b = append(o.b, '[')
		o.quote(list[i][0])
		o.b = append(o.b, ',')
		o.quote(list[i][1])
		o.b = append(o.b, ']')
	})
}

// list appends a list of n elements.
func (o *object) list(n int, element func(i int)) {
	o.b = append(o.b, '[')
	for i := range n {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		element(i)
	}
	o.b = append(o.b, ']')
}

func (o *object) moment(t time.Time) {
	o.b = append(o.b, '"')
	b, err := t.AppendText(o.b)
	if err != nil {
		o.fail(err)
		return
	}
	o.b = append(b, '"')
}

// quote appends a string.
func (o *object) quote(s string) {
	for _, c := range []byte(s) {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			o.marshal(s)
			return
		}
	}
	o.b = append(append(append(o.b, '"'), s...), '"')
}

// rare appends a member that few records have, if it is set.
func (o *object) rare(name string, value any, set bool) {
	if set {
		o.name(name)
		o.marshal(value)
	}
}

// marshal appends a value as encoding/json encodes it.
func (o *object) marshal(value any) {
	w := &appender{b: o.b}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // it would store each < and & as six bytes
	if err := e.Encode(value); err != nil {
		o.fail(err)
		return
	}
	o.b = w.b[:len(w.b)-1] // without the newline
}

func (o *object) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

// appender appends what is written to it.
type appender struct{ b []byte }

func (w *appender) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}
