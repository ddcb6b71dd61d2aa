package engine

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Bodies that do not fit in a message, or would be written too often with it, stand
// in an object store beside it, under a name that the record carries. They are
// removed with their task.

// What the body of an object is; its name begins with the task's ID.
const (
	requestBlob = ".request"
	resultBlob  = ".result." // and when the run began: of two runs one is settled
)

// openBlobs uses the store there is, or else creates it: an operator may have made
// it, as with the streams.
func (e *Engine) openBlobs(ctx context.Context, k *link) (jetstream.ObjectStore, error) {
	store, err := k.js.ObjectStore(ctx, blobBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		store, err = k.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{
			Bucket:      blobBucket,
			Description: "github.com/caddy-callback/caddy-callback",
			Replicas:    e.replicas(),
		})
	}
	if errors.Is(err, jetstream.ErrBucketExists) { // two gateways start at once
		store, err = k.js.ObjectStore(ctx, blobBucket)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the object store %s: %w", blobBucket, err)
	}
	return store, nil
}

// putApart stores the body of s as an object if it does not go into its message, and
// returns the step that names it.
func (e *Engine) putApart(ctx context.Context, s step) (step, error) {
	if !s.apart && len(s.body) <= e.link().publishLimit-recordRoom {
		return s, nil
	}
	name := s.rec.ID + resultBlob + strconv.FormatInt(s.rec.StartedAt.UnixNano(), 36)
	if s.rec.Request != nil && !s.rec.Ended() {
		name = s.rec.ID + requestBlob
	}
	if err := e.putBlob(ctx, name, s.body); err != nil {
		return s, fmt.Errorf("storing the body of task %s: %w", s.rec.ID, err)
	}
	rec := *s.rec
	rec.Blob = name
	// If the step is refused the object stays for the sweep: an earlier try of the
	// same step may have been stored though it was not acknowledged.
	s.rec, s.body, s.apart = &rec, nil, false
	return s, nil
}

// slowest is how many bytes of a body a second are stored at least, or else it is
// given up. The client library alone would give up a body that takes longer than
// publishTimeout, at every try.
const slowest = 64 << 10

func (e *Engine) putBlob(ctx context.Context, name string, body []byte) error {
	e.disk.begin(len(body))
	defer e.disk.end(len(body))
	k := e.link()
	ctx, end := k.within(ctx)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout+time.Duration(len(body))*time.Second/slowest)
	defer cancel()
	_, err := k.blobs.Put(ctx, jetstream.ObjectMeta{Name: name}, &paced{r: bytes.NewReader(body), link: k, ctx: ctx})
	if err != nil {
		e.health.failed(blobsStorage, err)
	}
	return err
}

// stallTimeout bounds the wait for the next piece of a body that is read or stored.
const stallTimeout = 30 * time.Second

// paced is a body that goes over a link which others need too. The client library
// would put all of it into the link at once, and on a slow one renewals of leases,
// and the link's own signs of life, would wait behind it until they are too late.
type paced struct {
	r    io.Reader
	link *link
	ctx  context.Context
	sent int // since the link was last waited for
}

// paceSize is how much of a body may stand in the link, in bytes.
const paceSize = 512 << 10

func (p *paced) Read(b []byte) (n int, err error) {
	if p.sent >= paceSize {
		p.sent = 0
		ctx, cancel := context.WithTimeout(p.ctx, stallTimeout)
		defer cancel()
		if err := p.link.nc.FlushWithContext(ctx); err != nil {
			return 0, fmt.Errorf("waiting for the engine: %w", err)
		}
	}
	n, err = p.r.Read(b)
	p.sent += n
	return n, err
}

// unhurried is a context whose deadline moves on. The client library bounds the
// reading of a whole object by the deadline it finds, or makes one of a few
// seconds: too little for a body that is read no faster than an app takes it.
type unhurried struct{ context.Context }

func (unhurried) Deadline() (time.Time, bool) { return time.Now().Add(stallTimeout), true }

// openBlob opens an object, to be read as slowly as its reader likes. It returns
// ErrGone if there is none, or if a part of it was lost.
func (e *Engine) openBlob(ctx context.Context, name string) (jetstream.ObjectResult, error) {
	object, err := e.link().blobs.Get(unhurried{ctx}, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the body %s: %w", name, err)
	}
	if err := e.isWhole(ctx, object); err != nil {
		return nil, errors.Join(fmt.Errorf("loading the body %s: %w", name, err), object.Close())
	}
	return object, nil
}

// isWhole returns ErrGone if a part of an object is missing: a damaged file had it.
// Its reader would wait for it until the time is up.
func (e *Engine) isWhole(ctx context.Context, object jetstream.ObjectResult) error {
	about, err := object.Info()
	if err != nil {
		return err
	}
	stream, err := e.link().js.Stream(ctx, "OBJ_"+blobBucket)
	if err != nil {
		return err
	}
	parts, err := stream.Info(ctx, jetstream.WithSubjectFilter(partSubject+about.NUID))
	if err != nil {
		return err
	}
	if n := parts.State.Subjects[partSubject+about.NUID]; n < uint64(about.Chunks) {
		return fmt.Errorf("%w: %d of its %d parts are left", ErrGone, n, about.Chunks)
	}
	return nil
}

func (e *Engine) blob(ctx context.Context, name string) ([]byte, error) {
	object, err := e.openBlob(ctx, name)
	if err != nil {
		return nil, err
	}
	defer object.Close() //nolint:errcheck // it is read to its end, or the error is known
	var data bytes.Buffer
	if info, err := object.Info(); err == nil {
		data.Grow(int(info.Size) + bytes.MinRead)
	}
	if _, err := data.ReadFrom(object); err != nil {
		return nil, fmt.Errorf("loading the body %s: %w", name, err)
	}
	return data.Bytes(), nil
}

// pieces is a request's body that is being stored. It reads as much as there is
// room for, so that a body that comes in drops is not stored in drops, and ends in
// ErrFull before it takes the disk's reserve.
type pieces struct {
	r      io.Reader
	engine *Engine
}

func (p pieces) Read(b []byte) (n int, err error) {
	if p.engine.isTight() {
		return 0, ErrFull
	}
	for n < len(b) && err == nil {
		var more int
		more, err = p.r.Read(b[n:])
		n += more
	}
	return n, err
}

// dropBlob removes an object and, unlike the client library's Delete, the
// marker that says it was there: a marker a task would never be removed.
func (e *Engine) dropBlob(ctx context.Context, name string) {
	if name == "" {
		return
	}
	err := e.link().blobs.Delete(ctx, name)
	if err == nil {
		var stream jetstream.Stream
		if stream, err = e.link().js.Stream(ctx, "OBJ_"+blobBucket); err == nil {
			meta := "$O." + blobBucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
			err = stream.Purge(ctx, jetstream.WithPurgeSubject(meta))
		}
	}
	if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		e.log.Warn("body not removed", zap.String("blob", name), zap.Error(err))
	}
}
