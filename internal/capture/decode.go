package capture

import (
	"bytes"
	"errors"
	"io"
	"time"

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

	// baseTime and timePerMiB are how much processor time decoding may take, by what
	// it returns. It bounds what gets past the other limits.
	baseTime   = 40 * time.Millisecond
	timePerMiB = 12 * time.Millisecond
)

var (
	errRatio = errors.New("the body expands too much, or too little")
	errCost  = errors.New("the body takes too long to decode")
)

// decode returns the first limit bytes of src without its content coding, and
// whether there are more. cut says that src is only the beginning of the body.
func decode(coding string, src io.Reader, limit int64, cut bool) (_ []byte, more bool, _ error) {
	counted := &counter{r: src}
	reader, err := form.NewReader(coding, counted)
	if err != nil {
		return nil, false, err
	}
	defer reader.Close()
	clock := startClock()
	defer clock.stop()
	counted.clock = clock

	var out bytes.Buffer
	for err == nil && int64(out.Len()) <= limit {
		_, err = io.CopyN(&out, reader, min(searchEvery, limit+1-int64(out.Len())))
		clock.allow(int64(out.Len()))
		switch {
		case int64(out.Len()) > max(freeOutput, maxRatio*counted.n), counted.n-freeInput > int64(out.Len())*5/6:
			return nil, false, errRatio
		case clock.over():
			return nil, false, errCost
		}
	}
	switch {
	case int64(out.Len()) > limit:
		return out.Bytes()[:limit], true, nil
	case errors.Is(err, errCost) || errors.Is(err, form.ErrIdle):
		return nil, false, err
	case cut:
		// It had to end in an error; what came before may be of use.
		return out.Bytes(), true, nil
	case err != io.EOF:
		return nil, false, err
	}
	return out.Bytes(), false, nil
}

// counter counts what a decoder reads. It fails once the decoder's time is over,
// for one that reads on and returns nothing.
type counter struct {
	r     io.Reader
	n     int64
	clock *clock
}

func (c *counter) Read(p []byte) (int, error) {
	if c.clock.over() {
		return 0, errCost
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// clock measures the processor time of a goroutine. Where the system does not tell
// it, it measures none.
type clock struct {
	begin, allowed time.Duration
	release        func()
}

func startClock() *clock {
	c := &clock{release: lockThread(), allowed: baseTime * slowness}
	c.begin = threadTime()
	return c
}

func (c *clock) stop() { c.release() }

// allow says how many bytes were decoded so far.
func (c *clock) allow(size int64) {
	c.allowed = (baseTime + timePerMiB*time.Duration(size)/(1<<20)) * slowness
}

func (c *clock) over() bool { return threadTime()-c.begin > c.allowed }
