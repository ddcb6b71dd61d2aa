// Package encode encodes the result of a task as the body of its callback.
//
//	encoder := encode.New(encode.Options{Folder: folder})
//	body, err := encoder.Encode(ctx, rec, delivery.Result)
//	defer body.Release()
//	r, err := body.Open() // for each attempt
//
// A small body stays in memory until it is released. A large one is encoded once, into
// a file that all attempts read until [Encoder.Drop].
//
// Encoding takes several times the memory of the result. Concurrent encodings share a
// budget, for which destinations take turns. No memory of the budget is held while a
// receiver is slow.
package encode

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/link"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Options are the limits of an Encoder. Zero fields have their defaults.
type Options struct {
	// Folder is the folder for large bodies. It belongs to one Encoder, which removes
	// files that a previous process has left. Default: a new folder in the system's
	// folder for temporary files.
	Folder string
	// Large is the size, in bytes, from which a body is kept in a file. InMemory bounds
	// the memory of all other bodies; beyond it, bodies from 16 KiB are kept in files.
	// Defaults: 256 KiB and 64 MiB.
	Large, InMemory int64
	// Budget is the memory, in bytes, that concurrent encodings may use. An encoding
	// that needs more runs alone. Default: 128 MiB.
	Budget int64
	// Files and FilesSize bound the number and the bytes of files that wait for their
	// next attempt. The least recently used file is evicted first, and encoded again
	// when needed. Defaults: 4,096 and 1 GiB.
	Files     int
	FilesSize int64
	// Secret returns the secret that signs links to results that are too large to be
	// posted. It is required if tasks have a [task.Link].
	Secret func(context.Context) ([]byte, error)
}

func (o Options) withDefaults() Options {
	o.Large = cmp.Or(o.Large, 256<<10)
	o.InMemory = cmp.Or(o.InMemory, 64<<20)
	o.Budget = cmp.Or(o.Budget, 128<<20)
	o.Files = cmp.Or(o.Files, 4096)
	o.FilesSize = cmp.Or(o.FilesSize, 1<<30)
	return o
}

// tiny is the size up to which bodies always stay in memory. An attempt itself costs as
// much.
const tiny = 16 << 10

// Encoder encodes the bodies of callbacks. Its methods may be called from several
// goroutines at once.
type Encoder struct {
	opts   Options
	budget budget
	files  files
}

// New returns an Encoder, and empties its folder. The folder is created when needed.
func New(o Options) *Encoder {
	o = o.withDefaults()
	e := &Encoder{opts: o}
	e.budget.free, e.budget.all = o.Budget, o.Budget
	e.files.init(o)
	return e
}

// Close removes all files. Bodies in use stay readable where the system permits it.
func (e *Encoder) Close() error { return e.files.close() }

// Drop removes the file with the body of a task, if there is one, because its callback
// was delivered or is dead. A body in use is kept until it is released.
func (e *Encoder) Drop(taskID string) { e.files.drop(taskID) }

// Result opens the result of a task.
type Result func(context.Context) (io.ReadCloser, error)

// Encode returns the body of a task's callback. rec has a verdict. result is called
// only if rec.Result is set and the body is not in a file yet.
//
// Encode returns the errors of result, of reading it, of ctx and of the Secret, and
// [ErrSpool].
func (e *Encoder) Encode(ctx context.Context, rec *task.Record, result Result) (*Body, error) {
	if rec.Result == nil {
		return e.inMemory(encode(rec, nil, "")), nil
	}
	linked := rec.Callback.Link != nil && rec.Result.Kept >= rec.Result.Size // all of it is kept
	if linked && rec.Result.Kept > rec.Callback.MaxResult {
		return e.encodeLink(ctx, rec, result)
	}
	destination := cmp.Or(rec.CallbackDomain, rec.CallbackHost)
	if body := e.files.find(rec.ID); body != nil {
		body.reserve = e.reserve(destination, body.Size)
		return body, nil
	}
	if cost := cost(rec); cost > tiny {
		if err := e.budget.acquire(ctx, destination, cost); err != nil {
			return nil, err
		}
		defer e.budget.release(cost)
	}
	content, err := read(ctx, rec, result)
	if err != nil {
		return nil, fmt.Errorf("reading the result: %w", err)
	}
	body := encode(rec, content, "")
	if linked && body.Truncated > 0 { // it is larger without its content codings
		return e.encodeLink(ctx, rec, result)
	}
	size := int64(len(body.Body))
	if size <= tiny || size <= e.opts.Large && e.files.used.Load()+size <= e.opts.InMemory {
		return e.inMemory(body), nil
	}
	b, err := e.files.add(rec.ID, body)
	if err != nil {
		return nil, err
	}
	b.reserve = e.reserve(destination, b.Size)
	return b, nil
}

// encodeLink returns the body of a callback with a link to the result. Each attempt has a
// new one, because the last attempt may be days after the first.
func (e *Encoder) encodeLink(ctx context.Context, rec *task.Record, result Result) (*Body, error) {
	r, err := result(ctx) // it may have been evicted
	if err != nil {
		return nil, fmt.Errorf("reading the result: %w", err)
	}
	r.Close()
	secret, err := e.opts.Secret(ctx)
	if err != nil {
		return nil, fmt.Errorf("signing the link to the result: %w", err)
	}
	expires := time.Now().Add(rec.Callback.Link.Valid)
	return e.inMemory(encode(rec, nil, link.New(secret, rec.Callback.Link.URL, rec.ID, expires))), nil
}

func (e *Encoder) reserve(destination string, n int64) func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		if err := e.budget.acquire(ctx, destination, n); err != nil {
			return nil, err
		}
		return func() { e.budget.release(n) }, nil
	}
}

// cost estimates the memory for encoding a result: the result, and up to four times the
// posted part. A compressed result may expand to the limit.
func cost(rec *task.Record) int64 {
	kept, posted := rec.Result.Kept, rec.Result.Kept
	switch {
	case rec.Callback.Format == FormatRaw:
		return kept
	case rec.Result.ContentEncoding != "":
		posted = rec.Callback.MaxResult
	}
	return kept + 4*posted
}

func read(ctx context.Context, rec *task.Record, result Result) ([]byte, error) {
	r, err := result(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if inMemory, ok := r.(interface{ Bytes() []byte }); ok {
		return inMemory.Bytes(), nil
	}
	// Allocated in one piece: a growing buffer would need twice the memory.
	content := bytes.NewBuffer(make([]byte, 0, rec.Result.Kept+bytes.MinRead))
	if _, err := content.ReadFrom(r); err != nil {
		return nil, err
	}
	return content.Bytes(), nil
}

// encode encodes the body of a callback in memory. content is the captured result. If
// there is a link to it, that is posted instead.
func encode(rec *task.Record, content []byte, resultURL string) form.Callback {
	var resp *form.Response
	if rec.Result != nil {
		resp = &form.Response{
			ContentType: rec.Result.ContentType, ContentEncoding: rec.Result.ContentEncoding,
			Body: content, Size: rec.Result.Size, Link: resultURL,
		}
	}
	return write(rec, resp)
}
