package form_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

func TestEncodeUndoesContentCodings(t *testing.T) {
	t.Parallel()
	for _, codings := range []string{"gzip", "x-gzip", "deflate", "raw deflate", "br", "zstd", "gzip, br", "zstd, deflate"} {
		t.Run(codings, func(t *testing.T) {
			t.Parallel()
			compare(t, form.Encode(form.Response{
				ContentType:     jsonType,
				ContentEncoding: header(codings),
				Body:            encode(t, codings, []byte(`{"response":"example response"}`)),
			}, limit), form.Callback{ContentType: formType, Body: []byte("response=example+response")})
		})
	}
}

func TestUndecodableBodyIsBytes(t *testing.T) {
	t.Parallel()
	whole := encode(t, "gzip", []byte(strings.Repeat("some text ", 100)))
	badSum := bytes.Clone(whole)
	badSum[len(badSum)-5]++
	asBytes := func(b []byte) string { return "response=" + url.QueryEscape(base64.StdEncoding.EncodeToString(b)) }
	for _, tc := range []struct {
		name     string
		response form.Response
		limit    int64
		want     form.Callback
	}{
		{"unknown coding",
			form.Response{ContentEncoding: "rot13", Body: []byte("grkg")}, limit,
			form.Callback{Body: []byte(asBytes([]byte("grkg")))}},
		{"wrong coding",
			form.Response{ContentEncoding: "gzip", ContentType: jsonType, Body: []byte(`{"a":1}`)}, limit,
			form.Callback{Body: []byte(asBytes([]byte(`{"a":1}`)))}},
		{"truncated encoded data",
			form.Response{ContentEncoding: "gzip", Body: whole[:len(whole)-9]}, limit,
			form.Callback{Body: []byte(asBytes(whole[:len(whole)-9]))}},
		{"wrong checksum",
			form.Response{ContentEncoding: "gzip", Body: badSum}, int64(len(badSum)),
			form.Callback{Body: []byte(asBytes(badSum))}},
		{"limit below the encoded size",
			form.Response{ContentEncoding: "rot13", Body: []byte("grkg")}, 3,
			form.Callback{Body: []byte(asBytes([]byte("grk"))), Truncated: 4}},
		{"unknown coding, partly captured",
			form.Response{ContentEncoding: "rot13", Body: []byte("grkg"), Size: 9}, 100,
			form.Callback{Body: []byte(asBytes([]byte("grkg"))), Truncated: 9}},
		{"wrong coding, partly captured",
			form.Response{ContentEncoding: "gzip", Body: []byte("a text of 12"), Size: 99}, 100,
			form.Callback{Body: []byte(asBytes([]byte("a text of 12"))), Truncated: 99}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.want.ContentType, tc.want.Encoding = formType, "base64"
			compare(t, form.Encode(tc.response, tc.limit), tc.want)
		})
	}
}

func TestTruncationOfEncodedBodies(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("0123456789", 100_000) // 1 MB
	for coding := range compressors {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			data := encode(t, coding, []byte(text))
			r := form.Response{ContentEncoding: header(coding), Body: data}

			compare(t, form.Encode(r, int64(len(text))), form.Callback{
				ContentType: formType, Body: []byte("response=" + text),
			})
			// The full size is that of the decoded body, although no header has it.
			compare(t, form.Encode(r, 15), form.Callback{
				ContentType: formType, Body: []byte("response=012345678901234"), Truncated: int64(len(text)),
			})
			compare(t, form.Encode(r, 0), form.Callback{
				ContentType: formType, Body: []byte("response="), Truncated: int64(len(text)),
			})

			// What was captured decodes to more than the whole had as sent.
			r.Size = int64(len(data)) + 1
			compare(t, form.Encode(r, 15), form.Callback{
				ContentType: formType, Body: []byte("response=012345678901234"), Truncated: int64(len(text)),
			})
			// And to less.
			r.Size = int64(len(text)) * 2
			compare(t, form.Encode(r, 15), form.Callback{
				ContentType: formType, Body: []byte("response=012345678901234"), Truncated: r.Size,
			})
			r.Body = data[:len(data)*3/4]
			got := form.Encode(r, limit)
			decoded := strings.TrimPrefix(string(got.Body), "response=")
			if got.Truncated != r.Size || got.Encoding != "" || !strings.HasPrefix(text, decoded) {
				t.Errorf("cut encoded data: truncated %d, encoding %q, body %s", got.Truncated, got.Encoding, excerpt(got.Body))
			}
		})
	}
}

func TestTruncatedEncodedDataIsPartlyDecoded(t *testing.T) {
	t.Parallel()
	for _, codings := range []string{"gzip", "deflate", "raw deflate", "br", "zstd", "gzip, br", "br, gzip", "deflate, zstd"} {
		t.Run(codings, func(t *testing.T) {
			t.Parallel()
			random := make([]byte, 400_000) // several blocks of each coding
			rand.NewChaCha8([32]byte{}).Read(random)
			text := hex.EncodeToString(random)
			data := encode(t, codings, []byte(text))
			got := form.Encode(form.Response{
				ContentEncoding: header(codings), Body: data[:len(data)*9/10], Size: int64(len(data)),
			}, limit)
			decoded := strings.TrimPrefix(string(got.Body), "response=")
			if got.Encoding != "" || len(decoded) < len(text)/2 || !strings.HasPrefix(text, decoded) ||
				got.Truncated != max(int64(len(data)), int64(len(decoded))) {
				t.Errorf("truncated %d, encoding %q, %d bytes of %d", got.Truncated, got.Encoding, len(decoded), len(text))
			}
		})
	}
}

// TestDecompressionBombsAreBounded does not run beside others: it measures memory.
func TestDecompressionBombsAreBounded(t *testing.T) {
	zeros := make([]byte, 1<<20)
	for name, bomb := range map[string]form.Response{
		"gzip": {ContentEncoding: "gzip", Body: repeated(t, "gzip", zeros, 1030)},
		"zstd": {ContentEncoding: "zstd", Body: repeated(t, "zstd", zeros, 1030)},
	} {
		const limit = 1 << 20
		var got form.Callback
		used := allocated(func() { got = form.Encode(bomb, limit) })
		if got.Truncated != 64<<20 || len(got.Body) != len("response=")+3*limit {
			t.Errorf("%s: truncated %d, %d bytes of body", name, got.Truncated, len(got.Body))
		}
		// The beginning twice while it is read, three times that in the form, and
		// the decoders.
		if used > 32<<20 {
			t.Errorf("%s: %d bytes allocated", name, used)
		}
	}
}

// TestBuffersAreDecodedIncrementally does not run beside others either: left to
// itself, zstd would decode all of a small bytes.Buffer at once.
func TestBuffersAreDecodedIncrementally(t *testing.T) {
	bomb := bytes.NewBuffer(repeated(t, "zstd", make([]byte, 1<<20), 200))
	used := allocated(func() {
		r, err := form.NewReader("zstd", bomb)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
	if used > 32<<20 {
		t.Errorf("%d bytes allocated for one", used)
	}
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
