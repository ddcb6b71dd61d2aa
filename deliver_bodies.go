package callback

import (
	"context"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// largeBodies bounds the memory that callbacks take while they are under way. As
// many attempts as there may be, each with a result of max_result bytes to a
// receiver that reads nothing, would take gigabytes; and a result of a few
// kilobytes may be one of those, compressed.
type largeBodies struct {
	mute     chan struct{} // to hosts that have not answered lately
	known    chan struct{} // to others: the mute must not keep them out
	encoding chan struct{} // compressed results of which the callback is made
}

const (
	// largeBody is the size from which on a body counts as large. As many smaller
	// ones as there are attempts are no burden.
	largeBody = 256 << 10
	// largeAtOnce is how many of each kind are under way at once.
	largeAtOnce = 4
)

func newLargeBodies() *largeBodies {
	return &largeBodies{
		mute:     make(chan struct{}, largeAtOnce),
		known:    make(chan struct{}, largeAtOnce),
		encoding: make(chan struct{}, largeAtOnce),
	}
}

// isLarge says whether the result of a task is large before it is looked at.
func isLarge(rec *task.Record) bool { return rec.Result != nil && rec.Result.Size > largeBody }

// enter waits for room for a large body. leave must be called when it is sent.
func (b *largeBodies) enter(ctx context.Context, mute bool) (leave func(), err error) {
	if mute {
		return enterRoom(ctx, b.mute)
	}
	return enterRoom(ctx, b.known)
}

// encode waits until a callback can be made of a result that may turn out to be
// large. leave must be called when it is made.
func (b *largeBodies) encode(ctx context.Context, rec *task.Record) (leave func(), err error) {
	if isLarge(rec) || rec.Result == nil || rec.Result.ContentEncoding == "" {
		return func() {}, nil // has room, or needs none
	}
	return enterRoom(ctx, b.encoding)
}

func enterRoom(ctx context.Context, room chan struct{}) (leave func(), err error) {
	select {
	case room <- struct{}{}:
		return func() { <-room }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
