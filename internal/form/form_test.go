package form_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

const (
	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"
	// limit is large enough for tests that are not about limits.
	limit = 8 << 20
)

// TestEncode has each row of the table of pairs, letter for letter.
func TestEncode(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name        string
		contentType string
		body        string
		want        string
		encoding    string
	}{
		{name: "documented example",
			contentType: jsonType, body: `{"response":"example response"}`, want: "response=example+response"},

		// A JSON object.
		{name: "object",
			contentType: jsonType, body: `{"z":"1","a":"2","m":"3"}`, want: "z=1&a=2&m=3"},
		{name: "repeated members",
			contentType: jsonType, body: `{"a":1,"b":2,"a":1,"a":3}`, want: "a=1&b=2&a=1&a=3"},
		{name: "numbers",
			contentType: jsonType,
			body:        `{"a":12345678901234567890,"b":1.0,"c":1e400,"d":-0,"e":1E+2,"f":0.10}`,
			want:        "a=12345678901234567890&b=1.0&c=1e400&d=-0&e=1E%2B2&f=0.10"},
		{name: "booleans and null",
			contentType: jsonType, body: `{"t":true,"f":false,"n":null,"e":""}`, want: "t=true&f=false&n=&e="},
		{name: "nested values",
			contentType: jsonType,
			body:        "{ \"o\" : { \"b\" : [ 1.0 ,\t12345678901234567890 ] ,\r\n \"s\" : \"a b\\u00e9\\\" <&>\" } , \"l\" : [ ] }",
			want: "o=" + url.QueryEscape(`{"b":[1.0,12345678901234567890],"s":"a b\u00e9\" <&>"}`) +
				"&l=%5B%5D"},
		{name: "nested strings",
			contentType: jsonType,
			body:        `{"a": [ " } ] \\" , "\\\" ,  " ] }`,
			want:        "a=" + url.QueryEscape(`[" } ] \\","\\\" ,  "]`)},
		{name: "nested line separators",
			contentType: jsonType, body: "{\"a\":[\"\u2028\"]}", want: "a=" + url.QueryEscape("[\"\u2028\"]")},
		{name: "escapes in strings",
			contentType: jsonType,
			body:        `{"a":"\"\\\/\b\f\n\r\t\u0000\u00e9\u20ac"}`,
			want:        "a=%22%5C%2F%08%0C%0A%0D%09%00%C3%A9%E2%82%AC"},
		{name: "surrogate pairs",
			contentType: jsonType, body: `{"a":"\ud83d\ude00","b":"😀"}`, want: "a=%F0%9F%98%80&b=%F0%9F%98%80"},
		{name: "lone surrogates",
			contentType: jsonType,
			body:        `{"\ud800":"\ud83d","b":"\ude00x","c":"\ud83d\ud83d\ude00","d":"\ud83d\n"}`,
			want:        "%EF%BF%BD=%EF%BF%BD&b=%EF%BF%BDx&c=%EF%BF%BD%F0%9F%98%80&d=%EF%BF%BD%0A"},
		{name: "odd names",
			contentType: jsonType,
			body:        `{"":1,"a=b&c":2,"x[0].y":3,"ü😀":4,"\n\u0000":5,"a b+c%20":6,"@this|#.*?":7}`,
			want: "=1&a%3Db%26c=2&x%5B0%5D.y=3&%C3%BC%F0%9F%98%80=4&%0A%00=5&a+b%2Bc%2520=6" +
				"&%40this%7C%23.*%3F=7"},
		{name: "empty object",
			contentType: jsonType, body: ` {} `, want: ""},
		{name: "member named response",
			contentType: jsonType, body: `{"response":{"response":1}}`, want: "response=%7B%22response%22%3A1%7D"},

		// What is JSON.
		{name: "odd content type",
			contentType: " Application/JSON ; charset=UTF-8", body: `{"a":1}`, want: "a=1"},
		{name: "+json",
			contentType: "application/problem+JSON; charset=utf-8", body: `{"title":"Not Found"}`, want: "title=Not+Found"},
		{name: "byte order mark",
			contentType: jsonType, body: "\uFEFF {\"a\":1}", want: "a=1"},
		{name: "object without a content type",
			body: ` {"a":1} `, want: "a=1"},
		{name: "array without a content type",
			body: `[1, 2]`, want: "response=%5B1%2C2%5D"},
		{name: "scalar without a content type",
			body: `"a" `, want: "response=%22a%22+"},
		{name: "object sent as text",
			contentType: "text/plain", body: `{"a": 1}`, want: "a=1"},
		{name: "scalar in text",
			contentType: "text/plain", body: `"a"`, want: "response=%22a%22"},
		{name: "text like JSON",
			contentType: "text/html", body: `{"a": 1}`, want: "response=%7B%22a%22%3A+1%7D"},
		{name: "invalid JSON",
			contentType: jsonType, body: `{"a":1,}`, want: "response=%7B%22a%22%3A1%2C%7D"},
		{name: "two JSON values",
			contentType: jsonType, body: "{}\n{}", want: "response=%7B%7D%0A%7B%7D"},
		{name: "leading zero",
			contentType: jsonType, body: `{"a":01}`, want: "response=%7B%22a%22%3A01%7D"},
		{name: "JSON that is not UTF-8",
			contentType: jsonType, body: "{\"a\":\"\xe9\"}", want: "response=eyJhIjoi6SJ9", encoding: "base64"},

		// Other JSON.
		{name: "string",
			contentType: jsonType, body: ` "a \"b\"\n\ud83d\ude00" `, want: "response=a+%22b%22%0A%F0%9F%98%80"},
		{name: "empty string",
			contentType: jsonType, body: `""`, want: "response="},
		{name: "array",
			contentType: jsonType, body: "[1.0, {\"a\" : \"b c\"},\n null]",
			want: "response=" + url.QueryEscape(`[1.0,{"a":"b c"},null]`)},
		{name: "number",
			contentType: jsonType, body: " 1e400\n", want: "response=1e400"},
		{name: "boolean",
			contentType: jsonType, body: `true`, want: "response=true"},
		{name: "null",
			contentType: jsonType, body: `null`, want: "response=null"},

		// A form.
		{name: "form",
			contentType: formType, body: "b=%7e&a=1+2&a&&=x", want: "b=%7e&a=1+2&a&&=x"},
		{name: "form with a charset",
			contentType: "Application/X-WWW-Form-Urlencoded; charset=utf-8", body: "a=%20", want: "a=%20"},

		// Other text.
		{name: "text",
			contentType: "text/html", body: "<p>1 & 2 = 3?</p>\r\n", want: "response=%3Cp%3E1+%26+2+%3D+3%3F%3C%2Fp%3E%0D%0A"},
		{name: "text with a binary content type",
			contentType: "application/octet-stream", body: "plain", want: "response=plain"},
		{name: "byte order mark of a text",
			contentType: "text/plain", body: "\uFEFFa", want: "response=%EF%BB%BFa"},
		{name: "server-sent events",
			contentType: "text/event-stream", body: "data: {}\n\n", want: "response=data%3A+%7B%7D%0A%0A"},

		// Bytes.
		{name: "bytes",
			contentType: "image/png", body: "\x89PNG\r\n\x1a\n", want: "response=iVBORw0KGgo%3D", encoding: "base64"},
		{name: "base64 alphabet",
			contentType: "image/png", body: "\xfb\xef\xbe\xff", want: "response=%2B%2B%2B%2B%2Fw%3D%3D", encoding: "base64"},
		{name: "unknown charset",
			contentType: "text/plain; charset=koi8-r", body: "caf\xe9", want: "response=Y2Fm6Q%3D%3D", encoding: "base64"},
		{name: "encoded surrogate",
			contentType: "text/plain", body: "\xed\xa0\x80", want: "response=7aCA", encoding: "base64"},

		// Nothing.
		{name: "empty body", body: "", want: "response="},
		{name: "empty JSON body", contentType: jsonType, body: "", want: "response="},
		{name: "empty form body", contentType: formType, body: "", want: "response="},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sent := []byte(tc.body)
			got := form.Encode(form.Response{ContentType: tc.contentType, Body: sent}, limit)
			want := form.Callback{ContentType: formType, Body: []byte(tc.want), Encoding: tc.encoding}
			compare(t, got, want)
			if string(sent) != tc.body {
				t.Errorf("the response was modified: %q", sent)
			}
		})
	}
}

func TestFormEncodingMatchesBrowsers(t *testing.T) {
	t.Parallel()
	for c := range 0x80 {
		want := fmt.Sprintf("response=%%%02X", c)
		switch {
		case c == ' ':
			want = "response=+"
		case strings.ContainsRune("*-._", rune(c)),
			'0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
			want = "response=" + string(rune(c))
		}
		compare(t, form.Encode(form.Response{ContentType: "text/plain", Body: []byte{byte(c)}}, limit),
			form.Callback{ContentType: formType, Body: []byte(want)})
	}
	compare(t, form.Encode(form.Response{ContentType: "text/plain", Body: []byte("aÿ b")}, limit),
		form.Callback{ContentType: formType, Body: []byte("response=a%C3%BF+b")})
}

func TestBase64OfLargeBody(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3071, 3072, 3073, 6144, 10_000} {
		body := bytes.Repeat([]byte{0xff, 0x00, 0xfe, 0x3e}, n)[:n]
		got := form.Encode(form.Response{Body: body}, limit)
		compare(t, got, form.Callback{
			ContentType: formType,
			Body:        []byte("response=" + url.QueryEscape(base64.StdEncoding.EncodeToString(body))),
			Encoding:    "base64",
		})
	}
}

func TestDeepJSON(t *testing.T) {
	t.Parallel()
	nested := func(depth int) string {
		return `{"a": ` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + `}`
	}
	for _, tc := range []struct {
		name string
		body string
		want string
	}{
		{"10,000 levels are JSON", nested(10_000),
			"a=" + url.QueryEscape(strings.Repeat("[", 9_999)+strings.Repeat("]", 9_999))},
		{"too many members", nested(10_001), "response=" + url.QueryEscape(nested(10_001))},
		{"many brackets", strings.Repeat("[", limit), "response=" + strings.Repeat("%5B", limit)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := form.Encode(form.Response{ContentType: jsonType, Body: []byte(tc.body)}, limit)
			compare(t, got, form.Callback{ContentType: formType, Body: []byte(tc.want)})
		})
	}
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		response  form.Response
		limit     int64
		want      string
		encoding  string
		truncated int64
	}{
		{name: "body of the limit",
			response: form.Response{Body: []byte("12345")}, limit: 5, want: "response=12345"},
		{name: "body over the limit",
			response: form.Response{Body: []byte("123456")}, limit: 5, want: "response=12345", truncated: 6},
		{name: "truncated before a character",
			response: form.Response{Body: []byte("aé😀b")}, limit: 6, want: "response=a%C3%A9", truncated: 8},
		{name: "truncated after a character",
			response: form.Response{Body: []byte("aé😀b")}, limit: 7, want: "response=a%C3%A9%F0%9F%98%80", truncated: 8},
		{name: "character over the limit",
			response: form.Response{Body: []byte("😀")}, limit: 3, want: "response=", truncated: 4},
		{name: "truncated bytes",
			response: form.Response{Body: []byte("\xff\xfe\xfd\xfc")}, limit: 3, want: "response=%2F%2F79", encoding: "base64", truncated: 4},
		{name: "bytes ending like a character",
			response: form.Response{Body: []byte("\xff\xff\xe2\x82x")}, limit: 4, want: "response=%2F%2F%2Figg%3D%3D", encoding: "base64", truncated: 5},
		{name: "truncated JSON",
			response: form.Response{ContentType: jsonType, Body: []byte(`{"a":1}  `)}, limit: 7, want: "response=%7B%22a%22%3A1%7D", truncated: 9},
		{name: "truncated form",
			response: form.Response{ContentType: formType, Body: []byte("a=1&b=2")}, limit: 5, want: "response=a%3D1%26b", truncated: 7},
		{name: "partly captured body",
			response: form.Response{ContentType: jsonType, Body: []byte(`{"a"`), Size: 100}, limit: 50, want: "response=%7B%22a%22", truncated: 100},
		{name: "large body without capture",
			response: form.Response{Body: []byte("123456"), Size: 100}, limit: 5, want: "response=12345", truncated: 100},
		{name: "nothing captured",
			response: form.Response{Size: 100}, limit: 5, want: "response=", truncated: 100},
		{name: "size below the body",
			response: form.Response{Body: []byte("123"), Size: 1}, limit: 5, want: "response=123"},
		{name: "limit of 0",
			response: form.Response{Body: []byte("123")}, limit: 0, want: "response=", truncated: 3},
		{name: "negative limit",
			response: form.Response{Body: []byte("123")}, limit: -1, want: "response=", truncated: 3},
		{name: "empty body below a limit",
			response: form.Response{}, limit: -1, want: "response="},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			compare(t, form.Encode(tc.response, tc.limit), form.Callback{
				ContentType: formType, Body: []byte(tc.want), Encoding: tc.encoding, Truncated: tc.truncated,
			})
		})
	}
}

func TestEncodeError(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, message, want string }{
		{"sentence", "no answer: connection refused", "error=no+answer%3A+connection+refused"},
		{"canceled", "canceled", "error=canceled"},
		{"not UTF-8", "a\xffb", "error=a%EF%BF%BDb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			compare(t, form.EncodeError(tc.message), form.Callback{ContentType: formType, Body: []byte(tc.want)})
		})
	}
}

func TestEncodeRaw(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		response form.Response
		limit    int64
		want     form.Callback
	}{
		{"response",
			form.Response{ContentType: "image/png", ContentEncoding: "br", Body: []byte("\xff\x00")}, 2,
			form.Callback{ContentType: "image/png", ContentEncoding: "br", Body: []byte("\xff\x00")}},
		{"no content type",
			form.Response{Body: []byte("a")}, 2, form.Callback{Body: []byte("a")}},
		{"over the limit",
			form.Response{Body: []byte("é")}, 1, form.Callback{Body: []byte("\xc3"), Truncated: 2}},
		{"partly captured",
			form.Response{Body: []byte("a"), Size: 7}, 5, form.Callback{Body: []byte("a"), Truncated: 7}},
		{"empty", form.Response{}, 5, form.Callback{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			compare(t, form.EncodeRaw(tc.response, tc.limit), tc.want)
		})
	}
}

// compare reports the first difference between two callbacks, in few words even
// if they are large.
func compare(t *testing.T, got, want form.Callback) {
	t.Helper()
	if !bytes.Equal(got.Body, want.Body) {
		t.Errorf("body is\n%s\nnot\n%s", excerpt(got.Body), excerpt(want.Body))
	}
	got.Body, want.Body = nil, nil
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("callback is %+v, want %+v", got, want)
	}
}

func excerpt(b []byte) string {
	const most = 400
	if len(b) <= most {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%q and %d bytes more", b[:most], len(b)-most)
}
