package form_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

type pair struct{ name, value string }

// FuzzEncode wants of any response that its callbacks can be read by the parsers
// of the standard library, and that they say what the response said.
func FuzzEncode(f *testing.F) {
	for _, body := range []string{
		`{"response":"example response"}`, `{"a":[1,{"b":" "}],"a":null,"":1e400,"\ud800":"\ud83d\ude00\u0000"}`,
		`[1, 2]`, `" \ud800"`, "null", "\uFEFF{}", "{\"a\":\"\xff\"}", "text", "\xff", "aé", "a=b&c", "", "{", `{"a\\":"\\"}`,
	} {
		f.Add("application/json", "", []byte(body), int64(1000), int64(0))
		f.Add("", "", []byte(body), int64(3), int64(9))
		f.Add(formType, "identity", []byte(body), int64(3), int64(0))
		f.Add("text/plain; charset=utf-8", "gzip", encode(f, "gzip", []byte(body)), int64(1000), int64(1000))
		f.Add("A/B+JSON; charset=utf-8", "", []byte(body), int64(1000), int64(0))
		f.Add("a/b+json", "br, zstd", encode(f, "br, zstd", []byte(body)), int64(1000), int64(0))
	}
	f.Fuzz(func(t *testing.T, contentType, encoding string, body []byte, limit, size int64) {
		limit = min(limit, 1<<20)
		r := form.Response{ContentType: contentType, ContentEncoding: encoding, Body: body, Size: size}
		sent := bytes.Clone(body)

		raw := form.EncodeRaw(r, limit)
		if !bytes.HasPrefix(sent, raw.Body) || (raw.Truncated == 0) != (len(raw.Body) == len(body) && size <= int64(len(body))) {
			t.Errorf("raw: %d of %d bytes, truncated %d", len(raw.Body), len(body), raw.Truncated)
		}
		doc := form.EncodeJSON(form.Head{}, &r, limit)
		if !json.Valid(doc.Body) || !utf8.Valid(doc.Body) {
			t.Errorf("no JSON: %s", excerpt(doc.Body))
		}

		cb := form.Encode(r, limit)
		if !bytes.Equal(sent, body) {
			t.Error("the response was modified")
		}
		if cb.Truncated != doc.Truncated || cb.Truncated < 0 || cb.Truncated > 0 && cb.Truncated < size {
			t.Errorf("truncated %d and in JSON %d of %d", cb.Truncated, doc.Truncated, size)
		}
		typ, _, _ := strings.Cut(contentType, ";")
		if strings.EqualFold(strings.Trim(typ, " \t"), formType) && cb.Truncated == 0 && cb.Encoding == "" {
			return // as the app wrote it, well or not
		}
		pairs := parse(t, cb.Body)
		if encoding != "" {
			return
		}
		if want, ok := members(t, contentType, body); ok && cb.Truncated == 0 {
			if !slices.Equal(pairs, want) {
				t.Errorf("pairs are %q, want %q", pairs, want)
			}
			return
		}
		if len(pairs) != 1 || pairs[0].name != "response" {
			t.Fatalf("pairs are %q", pairs)
		}
		value := pairs[0].value
		if cb.Encoding == "base64" {
			decoded, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			value = string(decoded)
		}
		if int64(len(value)) > max(limit, 0) {
			t.Errorf("%d bytes for a limit of %d", len(value), limit)
		}
		if strings.EqualFold(typ, "text/html") && !strings.HasPrefix(string(body), value) {
			t.Errorf("the text is %q", value)
		}
	})
}

func mediaTypeOf(contentType string) string {
	typ, _, _ := strings.Cut(contentType, ";")
	return strings.Trim(typ, " \t")
}

// parse reads a form, with url.ParseQuery and with its order and repeats.
func parse(t *testing.T, body []byte) (pairs []pair) {
	if _, err := url.ParseQuery(string(body)); err != nil && !strings.Contains(err.Error(), "exceeded limit") {
		t.Fatal(err)
	}
	if len(body) == 0 {
		return nil
	}
	for p := range strings.SplitSeq(string(body), "&") {
		name, value, ok := strings.Cut(p, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if !ok || err1 != nil || err2 != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			t.Fatalf("no pair: %q", p)
		}
		pairs = append(pairs, pair{name, value})
	}
	return pairs
}

// members reads a JSON object with encoding/json. It returns false if the body
// is not one that Encode should recognize.
func members(t *testing.T, contentType string, body []byte) (pairs []pair, ok bool) {
	body = bytes.TrimPrefix(body, []byte("\uFEFF"))
	typ := strings.ToLower(mediaTypeOf(contentType))
	known := typ == "" || typ == "text/plain" || typ == jsonType || len(typ) > len("+json") && strings.HasSuffix(typ, "+json")
	if !known || !json.Valid(body) || !utf8.Valid(body) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if delim, err := dec.Token(); err != nil || delim != json.Delim('{') {
		return nil, false
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			t.Fatal(err)
		}
		p := pair{name: name.(string)}
		switch raw[0] {
		case '"':
			if err := json.Unmarshal(raw, &p.value); err != nil {
				t.Fatal(err)
			}
		case '{', '[':
			var compact bytes.Buffer
			if err := json.Compact(&compact, raw); err != nil {
				t.Fatal(err)
			}
			p.value = compact.String()
		case 'n':
		default:
			p.value = string(raw)
		}
		pairs = append(pairs, p)
	}
	return pairs, true
}

// FuzzNewReader checks that encoded data is decoded, and that invalid data does no harm,
// even to the next data that the same decoder decodes.
func FuzzNewReader(f *testing.F) {
	for coding := range compressors {
		f.Add(header(coding), encode(f, coding, []byte("some text")))
		f.Add(header(coding), encode(f, coding, make([]byte, 1<<20)))
		f.Add(header(coding)+", "+header(coding), []byte("some text"))
	}
	f.Add("", []byte("some text"))
	f.Add("compress", []byte("some text"))
	f.Add("zstd", []byte("\x28\xb5\x2f\xfd\x00\xa0\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, encodings string, data []byte) {
		const most = 1 << 20
		r, err := form.NewReader(encodings, bytes.NewReader(data))
		if err != nil {
			return
		}
		first, err := io.ReadAll(io.LimitReader(r, most))
		if err == nil && len(first) < most {
			if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
				t.Errorf("%q after the end, %v", rest, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}

		for coding := range strings.SplitSeq(encodings, ",") {
			if compressors[coding] == nil {
				return
			}
		}
		encoded := encode(t, encodings, data)
		got, err := decodeAll(header(encodings), bytes.NewReader(encoded))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s, %v", excerpt(got), err)
		}
	})
}
