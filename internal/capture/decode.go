package capture

import (
	"bytes"
	"errors"
	"io"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

const (
	// maxRatio is how many times as large as what was sent a body may become. JSON
	// shrinks to a tenth, and rarely to a fiftieth; a bomb to a thousandth.
	maxRatio = 100

	// freeOutput is how much a body may become whatever its ratio, in bytes.
	freeOutput = 1 << 20

	// freeInput is how much a decoder may take before what it returns must be more, in
	// bytes. Text always shrinks, base64 by a quarter. There are streams that do not,
	// and that cost a hundred times as much, such as those with a new table for every
	// few bytes.
	freeInput = 512 << 10
)

// errRatio is returned for a body that decodes to too much, or to too little.
var errRatio = errors.New("the body expands too much, or too little")

// decode returns the first limit bytes of src without its content coding, and
// whether there are more. cut says that src is only the beginning of the body.
//
// What it costs is bounded by what it reads and returns, not by a clock: honest
// bodies, such as compressed base64, take half as long as the worst that pass.
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
		// It had to end in an error; what came before may be of use.
		return out.Bytes(), true, nil
	case err != io.EOF:
		return nil, false, err
	}
	return out.Bytes(), false, nil
}

// counter counts what a decoder reads.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
