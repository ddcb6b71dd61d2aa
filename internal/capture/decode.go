package capture

import (
	"bytes"
	"errors"
	"io"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

const (
	// maxRatio is the largest allowed ratio of decoded to encoded size. JSON compresses
	// to a tenth, rarely to a fiftieth; a decompression bomb to a thousandth.
	maxRatio = 100

	// freeOutput is the decoded size, in bytes, up to which any ratio is allowed.
	freeOutput = 1 << 20

	// freeInput is the encoded size, in bytes, from which a body must decode to more
	// than its encoded size. Real data always shrinks, base64 by a quarter. Crafted
	// streams, such as those with new tables every few bytes, do not, and cost a hundred
	// times as much.
	freeInput = 512 << 10
)

// errRatio is returned for a body that decodes to too much or too little data.
var errRatio = errors.New("the body expands too much, or too little")

// decode returns the first limit decoded bytes of src, and whether there are more. cut
// means that src is only the beginning of the body.
//
// The cost is bounded by the bytes read and returned, not by time. Real data, such as
// compressed base64, takes half as long as the worst accepted data.
func decode(coding string, src io.Reader, limit int64, cut bool) (_ []byte, more bool, _ error) {
	counted := &counter{r: src}
	reader, err := form.NewReader(coding, counted)
	if err != nil {
		return nil, false, err
	}
	defer reader.Close()

	var out bytes.Buffer
	for err == nil && int64(out.Len()) <= limit {
		_, err = io.CopyN(&out, reader, min(searchEvery, limit+1-int64(out.Len())))
		size := int64(out.Len())
		if size > max(freeOutput, maxRatio*counted.n) || counted.n-freeInput > size*5/6 {
			return nil, false, errRatio
		}
	}
	switch {
	case int64(out.Len()) > limit:
		return out.Bytes()[:limit], true, nil
	case errors.Is(err, form.ErrIdle):
		return nil, false, err
	case cut:
		// A cut body ends in an error. The data before it may have the member.
		return out.Bytes(), true, nil
	case err != io.EOF:
		return nil, false, err
	}
	return out.Bytes(), false, nil
}

// counter counts the bytes that a decoder reads.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
