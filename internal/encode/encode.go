// Package encode turns the result of a task into the body of its callback.
//
//	encoder := encode.New(encode.Options{Folder: folder})
//	body, err := encoder.Encode(ctx, rec, delivery.Result)
//	defer body.Release()
//	r, err := body.Open() // for each request that posts it
//
// A small body is in memory until it is released. A large one is encoded once, into
// a file that all attempts read, and stays there until [Encoder.Drop].
//
// Encoding takes several times the memory of the result. The encodings at work at
// one time share a budget, which destinations with many large results have to wait
// for in turn with all others. Nobody waits for a receiver with a part of it.
package encode

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Options are the limits of an Encoder. A zero field has its default.
type Options struct {
	// Folder is where large bodies are. It belongs to the Encoder alone: what is
	// left there of a process that died is removed. Default: a new folder in the
	// system's folder for temporary files.
	Folder string
	// Large is the size from which on a body is kept in a file, in bytes, and
	// InMemory how much all others together may take; past it they are kept in
	// files from 16 KiB on. Defaults: 256 KiB and 64 MiB.
	Large, InMemory int64
	// Budget is how much memory encodings may use at one time. One that needs more
	// runs alone. Default: 128 MiB.
	Budget int64
	// Files and FilesSize bound the files that wait for their next attempt, in
	// number and bytes. The one not used for longest is removed first, and encoded
	// again when it is needed. Defaults: 4,096 and 1 GiB.
	Files     int
	FilesSize int64
}

func (o Options) withDefaults() Options {
	o.Large = cmp.Or(o.Large, 256<<10)
	o.InMemory = cmp.Or(o.InMemory, 64<<20)
	o.Budget = cmp.Or(o.Budget, 128<<20)
	o.Files = cmp.Or(o.Files, 4096)
	o.FilesSize = cmp.Or(o.FilesSize, 1<<30)
	return o
}

// tiny is the size up to which bodies stay in memory, whatever others take: an
// attempt itself costs as much.
const tiny = 16 << 10

// Encoder makes the bodies of callbacks. Its methods can be called from several
// goroutines at once.
type Encoder struct {
	opts   Options
	budget budget
	files  files
}

// New returns an Encoder, and removes what its folder contains. The folder is
// created when it is first needed.
func New(o Options) *Encoder {
	o = o.withDefaults()
	e := &Encoder{opts: o}
	e.budget.free, e.budget.all = o.Budget, o.Budget
	e.files.init(o)
	return e
}

// Close removes all files. Bodies in use stay readable where the system permits.
func (e *Encoder) Close() error { return e.files.close() }

// Drop removes the file with the body of a task, if there is one: its callback was
// delivered or given up. A body in use stays until it is released.
func (e *Encoder) Drop(taskID string) { e.files.drop(taskID) }

// Result opens the result of a task.
type Result func(context.Context) (io.ReadCloser, error)

// Encode returns the body of a task's callback. rec has its verdict; result is
// called only if rec.Result is set and the body is not in a file yet.
//
// The errors are those of result and of reading it, ctx's, and [ErrSpool].
func (e *Encoder) Encode(ctx context.Context, rec *task.Record, result Result) (*Body, error) {
	if rec.Result == nil {
		return e.inMemory(encode(rec, nil)), nil
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
	body := encode(rec, content)
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

func (e *Encoder) reserve(destination string, n int64) func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		if err := e.budget.acquire(ctx, destination, n); err != nil {
			return nil, err
		}
		return func() { e.budget.release(n) }, nil
	}
}

// cost returns about how much memory encoding a result takes: the result, and up
// to four times as much as is posted of it. What is compressed may expand to the
// limit.
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
	// In one piece: a buffer that grows would be there twice.
	content := bytes.NewBuffer(make([]byte, 0, rec.Result.Kept+bytes.MinRead))
	if _, err := content.ReadFrom(r); err != nil {
		return nil, err
	}
	return content.Bytes(), nil
}

// encode makes the body of a callback in memory. content is the result as it was
// captured.
func encode(rec *task.Record, content []byte) form.Callback {
	var resp *form.Response
	if rec.Result != nil {
		resp = &form.Response{
			ContentType: rec.Result.ContentType, ContentEncoding: rec.Result.ContentEncoding,
			Body: content, Size: rec.Result.Size,
		}
	}
	write, ok := formats[rec.Callback.Format]
	if !ok { // a record of a later version
		write = writeForm
	}
	return write(rec, resp)
}
