package capture_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/caddy-callback/caddy-callback/internal/capture"
)

func TestBoundedReadsUpToLimit(t *testing.T) {
	t.Parallel()
	const limit = 100
	text := func(n int) io.Reader { return strings.NewReader(strings.Repeat("x", n)) }
	broken := io.MultiReader(text(1), iotest.ErrReader(errors.New("the connection broke")))
	for name, tt := range map[string]struct {
		body   io.Reader
		size   int
		status int // of the refusal; 0 if there is none
	}{
		"no body":                    {nil, 0, 0},
		"one byte less":              {text(limit - 1), limit - 1, 0},
		"exactly the limit":          {text(limit), limit, 0},
		"byte by byte":               {iotest.OneByteReader(text(limit)), limit, 0},
		"one byte more":              {text(limit + 1), 0, http.StatusRequestEntityTooLarge},
		"one byte more, by bytes":    {iotest.OneByteReader(text(limit + 1)), 0, http.StatusRequestEntityTooLarge},
		"over the limit of the site": {http.MaxBytesReader(nil, io.NopCloser(text(4)), 3), 0, http.StatusRequestEntityTooLarge},
		"an incomplete body":         {broken, 0, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := capture.NewBounded(tt.body, limit)
			body.Hash = sha256.New()
			got, err := io.ReadAll(body)
			refusal := body.Refusal()
			if tt.status != 0 {
				if err == nil || refusal == nil || refusal.Status != tt.status {
					t.Errorf("the error is %v, the refusal %+v", err, refusal)
				}
				return
			}
			if want := sha256.Sum256(got); err != nil || refusal != nil || len(got) != tt.size || !bytes.Equal(body.Hash.Sum(nil), want[:]) {
				t.Errorf("%d bytes with the digest %x: %v, %v", len(got), body.Hash.Sum(nil), err, refusal)
			}
		})
	}
}
