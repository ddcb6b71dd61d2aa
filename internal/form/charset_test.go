package form_test

import (
	"net/url"
	"testing"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

func TestResultsInLatin1BecomeUTF8(t *testing.T) {
	t.Parallel()
	const latin1Form = formType + "; charset=ISO-8859-1"
	for _, tc := range []struct {
		name, contentType, body, want, encoding string
	}{
		{"escaped form", latin1Form, "n=J%FCrgen&p=5+%80", "n=J%C3%BCrgen&p=5+%E2%82%AC", ""},
		{"raw form", latin1Form, "n=J\xfcrgen&empty=&&x", "n=J%C3%BCrgen&empty=&&x", ""},
		{"escaped separators", latin1Form, "a%26b%3D=%E9%3d1=2", "a%26b%3D=%C3%A9%3D1=2", ""},
		{"broken escapes", latin1Form, "a=%E9%4&b=%zz%", "a=%C3%A9%254&b=%25zz%25", ""},
		{"quoted label", formType + `;x=1; Charset="Windows-1252"`, "n=%DF", "n=%C3%9F", ""},
		{"form of ASCII", formType + "; charset=utf-16", "n=a", "n=a", ""},
		{"form in UTF-8 under another name", latin1Form, "n=%C3%BC", "n=%C3%BC", ""},
		{"form in an unknown charset", formType + "; charset=shift_jis", "n=%83A", "response=bj0lODNB", "base64"},
		{"form without a charset", formType, "n=%FC", "n=%FC", ""},
		{"JSON", "application/json; charset=ISO-8859-1", "{\"n\":\"J\xfcrgen\"}", "n=J%C3%BCrgen", ""},
		{"text", "text/plain; charset=latin1", "J\xfcrgen", "response=J%C3%BCrgen", ""},
		{"text in an unknown charset", "text/plain; charset=koi8-r", "\xc1", "response=wQ%3D%3D", "base64"},
		{"empty form", latin1Form, "", "response=", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := form.Encode(form.Response{ContentType: tc.contentType, Body: []byte(tc.body)}, limit)
			if string(got.Body) != tc.want || got.Encoding != tc.encoding {
				t.Errorf("the callback is %s, encoding %q, want %s, %q", got.Body, got.Encoding, tc.want, tc.encoding)
			}
		})
	}
}

func TestLatin1ResultIsTruncated(t *testing.T) {
	t.Parallel()
	body := []byte("\xe9\xe9\xe9\xe9")
	for n := range int64(len(body)) {
		got := form.Encode(form.Response{ContentType: "text/plain; charset=latin1", Body: body}, n)
		pairs, err := url.ParseQuery(string(got.Body))
		if text := pairs.Get("response"); err != nil || int64(len(text)) > n || !utf8.ValidString(text) || got.Truncated != 4 {
			t.Errorf("of a limit of %d: %q, %d truncated: %v", n, text, got.Truncated, err)
		}
	}
}
