package form_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// object returns a JSON object with as many members.
func object(members int) []byte {
	var b bytes.Buffer
	for i := range members {
		fmt.Fprintf(&b, `,"name%d":{"text": "some text, %d", "numbers": [1, 2.0]}`, i, i)
	}
	b.WriteByte('}')
	body := b.Bytes()
	body[0] = '{'
	return body
}

func BenchmarkEncode(b *testing.B) {
	random := make([]byte, 1_000_000)
	rand.NewChaCha8([32]byte{}).Read(random)
	small := []byte(`{"response":"example response"}`)
	for _, bc := range []struct {
		name     string
		response form.Response
	}{
		{"small object", form.Response{ContentType: jsonType, Body: small}},
		{"small object, escaped", form.Response{ContentType: jsonType, Body: []byte(`{"response":"example\nresponse"}`)}},
		{"small object, gzip", form.Response{ContentType: jsonType, ContentEncoding: "gzip", Body: encode(b, "gzip", small)}},
		{"small object, br", form.Response{ContentType: jsonType, ContentEncoding: "br", Body: encode(b, "br", small)}},
		{"small object, zstd", form.Response{ContentType: jsonType, ContentEncoding: "zstd", Body: encode(b, "zstd", small)}},
		{"100 members", form.Response{ContentType: jsonType, Body: object(100)}},
		{"10000 members", form.Response{ContentType: jsonType, Body: object(10_000)}},
		{"100000 members", form.Response{ContentType: jsonType, Body: object(100_000)}},
		{"1 MB of text", form.Response{ContentType: "text/plain", Body: []byte(strings.Repeat("some text\n", 100_000))}},
		{"1 MB of bytes", form.Response{ContentType: "image/png", Body: random}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bc.response.Body)))
			for b.Loop() {
				form.Encode(bc.response, limit)
			}
		})
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	head := form.Head{TaskID: "0b1f9a3e-6a0c-4d0e-9d0e-0a1b2c3d4e5f", Status: "COMPLETE", UpstreamStatus: 200}
	r := form.Response{ContentType: jsonType, Body: []byte(`{"response":"example response"}`)}
	b.ReportAllocs()
	for b.Loop() {
		form.EncodeJSON(head, &r, limit)
	}
}
