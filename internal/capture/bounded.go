package capture

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	"github.com/caddy-callback/caddy-callback/internal/problem"
)

// Bounded reads a body up to a limit, and hashes it.
type Bounded struct {
	// Hash gets what is read. It is nil if no digest is needed.
	Hash hash.Hash

	r           io.Reader
	limit, left int64
	err         error // why the body could not be read to its end
}

var errTooLarge = errors.New("the body is too large")

// NewBounded returns a reader of r that returns an error instead of the data that
// exceeds limit bytes. r may be nil.
func NewBounded(r io.Reader, limit int64) *Bounded {
	if r == nil {
		r = http.NoBody
	}
	return &Bounded{r: r, limit: limit, left: limit}
}

// Read implements [io.Reader].
func (b *Bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.err = errTooLarge
		return 0, b.err
	}
	if b.Hash != nil {
		b.Hash.Write(p[:n])
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// Refusal returns the response to a request whose body could not be read to its end. It
// returns nil if no read has failed.
func (b *Bounded) Refusal() *problem.Problem {
	var outer *http.MaxBytesError // from request_body in front of the handler
	switch {
	case b.err == nil:
		return nil
	case errors.As(b.err, &outer):
		return tooLarge(outer.Limit)
	case b.err == errTooLarge:
		return tooLarge(b.limit)
	}
	return problem.New(http.StatusBadRequest, "the request's body is incomplete")
}

func tooLarge(limit int64) *problem.Problem {
	return problem.New(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's body is limited to %d bytes", limit))
}
