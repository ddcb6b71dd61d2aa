package form_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

func TestEncodeJSON(t *testing.T) {
	t.Parallel()
	complete := form.Head{TaskID: "id", Status: "COMPLETE", UpstreamStatus: 200}
	for _, tc := range []struct {
		name      string
		head      form.Head
		response  *form.Response
		limit     int64 // 0: the usual one
		want      string
		encoding  string
		truncated int64
	}{
		{name: "JSON",
			head:     complete,
			response: &form.Response{ContentType: jsonType, Body: []byte("{\"a\" : 1.0,\n \"a\":\"<&>\u2028\\ud800\", \"n\":12345678901234567890}")},
			want:     "{\"task_id\":\"id\",\"status\":\"COMPLETE\",\"upstream_status\":200,\"data\":{\"a\":1.0,\"a\":\"<&>\u2028\\ud800\",\"n\":12345678901234567890}}"},
		{name: "JSON null",
			head:     complete,
			response: &form.Response{ContentType: jsonType, Body: []byte(" null")},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":null}`},
		{name: "text",
			head:     complete,
			response: &form.Response{ContentType: "text/html", Body: []byte("<p>\"é\"\n\x00")},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":"<p>\"é\"\n\u0000"}`},
		{name: "form",
			head:     complete,
			response: &form.Response{ContentType: formType, Body: []byte("a=1&b=2")},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":"a=1&b=2"}`},
		{name: "form that is not UTF-8",
			head:     complete,
			response: &form.Response{ContentType: formType, Body: []byte("a=\xff")},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":"YT3/"}`, encoding: "base64"},
		{name: "bytes",
			head:     complete,
			response: &form.Response{ContentType: "image/png", Body: []byte("\xfb\xef\xbe\xff")},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":"++++/w=="}`, encoding: "base64"},
		{name: "empty body",
			head:     form.Head{TaskID: "id", Status: "COMPLETE", UpstreamStatus: 204},
			response: &form.Response{},
			want:     `{"task_id":"id","status":"COMPLETE","upstream_status":204,"data":""}`},
		{name: "over the limit",
			head:     complete,
			response: &form.Response{ContentType: jsonType, Body: []byte(`{"a":1}`)}, limit: 4,
			want: `{"task_id":"id","status":"COMPLETE","upstream_status":200,"data":"{\"a\""}`, truncated: 7},
		{name: "no answer",
			head: form.Head{TaskID: "id", Status: "FAILED", Error: "no answer: \"EOF\" <\xff>"},
			want: `{"task_id":"id","status":"FAILED","upstream_status":null,"data":null,"error":"no answer: \"EOF\" <\ufffd>"}`},
		{name: "timeout with a status",
			head: form.Head{TaskID: "id", Status: "TIMEOUT", UpstreamStatus: 200, Error: "timed out"},
			want: `{"task_id":"id","status":"TIMEOUT","upstream_status":200,"data":null,"error":"timed out"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.limit == 0 {
				tc.limit = limit
			}
			compare(t, form.EncodeJSON(tc.head, tc.response, tc.limit), form.Callback{
				ContentType: jsonType, Body: []byte(tc.want), Encoding: tc.encoding, Truncated: tc.truncated,
			})
		})
	}
}

func TestEncodeJSONKeepsDeepJSON(t *testing.T) {
	t.Parallel()
	deepest := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	got := form.EncodeJSON(form.Head{}, &form.Response{ContentType: jsonType, Body: []byte(deepest)}, limit)
	want := `{"task_id":"","status":"","upstream_status":null,"data":` + deepest + `}`
	compare(t, got, form.Callback{ContentType: jsonType, Body: []byte(want)})

	deeper := "[" + deepest + "]"
	got = form.EncodeJSON(form.Head{}, &form.Response{ContentType: jsonType, Body: []byte(deeper)}, limit)
	if !json.Valid(got.Body) || !strings.Contains(string(got.Body), `"data":"[[[`) {
		t.Errorf("what is deeper is no string: %s", excerpt(got.Body))
	}
}

func TestEncodeData(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		message   string
		response  *form.Response
		want      string
		encoding  string
		truncated int64
	}{
		{name: "JSON",
			response: &form.Response{ContentType: jsonType, Body: []byte("{\"result\": 10.0}")},
			want:     `{"data":{"result":10.0}}`},
		{name: "text", response: &form.Response{ContentType: "text/html", Body: []byte("<p>")}, want: `{"data":"<p>"}`},
		{name: "bytes", response: &form.Response{Body: []byte("\xff")}, want: `{"data":"/w=="}`, encoding: "base64"},
		{name: "large result",
			response: &form.Response{ContentType: jsonType, Body: []byte(`"` + strings.Repeat("x", 100) + `"`)},
			want:     `{"data":"\"` + strings.Repeat("x", 49) + `"}`, truncated: 102},
		{name: "empty body", response: new(form.Response), want: `{"data":""}`},
		{name: "no response", message: `no "answer"`, want: `{"data":null,"error":"no \"answer\""}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			compare(t, form.EncodeData(tc.message, tc.response, 50), form.Callback{
				ContentType: jsonType, Body: []byte(tc.want), Encoding: tc.encoding, Truncated: tc.truncated,
			})
		})
	}
}
