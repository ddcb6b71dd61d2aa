package nats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// chunkSize is the size of a chunk of a body. Each is acknowledged before the next is
// sent, so that heartbeats do not wait behind a large body on a slow connection.
const chunkSize = 256 << 10

// bodies knows which bodies are being read here, and which are to be removed.
type bodies struct {
	mu      sync.Mutex
	reading map[string]int
	dropped map[string]time.Time
}

// dropDelay is how long a body that is not needed any more can still be read by who
// opened it before, at another gateway too.
const dropDelay = time.Minute

// putBody stores a body of a task in chunks and returns its name. What it stored
// before an error is removed.
func (e *Engine) putBody(ctx context.Context, id string, r io.Reader) (name string, size int64, err error) {
	name = token(id) + "." + newID()
	chunk := make([]byte, chunkSize)
	for i := 0; ; i++ {
		n, readErr := io.ReadFull(r, chunk)
		if n > 0 {
			msg := nats.NewMsg(bodySubject + name + "." + strconv.Itoa(i))
			msg.Data = chunk[:n]
			if _, err = e.store(ctx, msg); err != nil {
				break
			}
			size += int64(n)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			return name, size, nil
		}
		if err = readErr; err != nil {
			break
		}
	}
	e.dropBody(name)
	return "", 0, err
}

// bodyReader reads a body chunk by chunk, as slowly as its reader likes.
type bodyReader struct {
	ctx    context.Context
	engine *Engine
	name   string
	left   int64
	next   int
	chunk  []byte
	once   sync.Once
}

// openBody opens a body that was stored in chunks. It returns ErrNotFound if its
// first chunk is not there.
func (e *Engine) openBody(ctx context.Context, name string, size int64) (io.ReadCloser, error) {
	e.opened.mu.Lock()
	if e.opened.reading == nil {
		e.opened.reading = make(map[string]int)
	}
	e.opened.reading[name]++
	e.opened.mu.Unlock()
	r := &bodyReader{ctx: ctx, engine: e, name: name, left: size}
	if err := r.fill(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the body %s: %w", name, err), r.Close())
	}
	return r, nil
}

func (r *bodyReader) fill() error {
	subject := bodySubject + r.name + "." + strconv.Itoa(r.next)
	msg, _, err := r.engine.direct(r.ctx, bodyStream+"."+subject, nil)
	if err == nil && msg == nil { // the server that answered may be behind
		msg, _, err = r.engine.get(r.ctx, bodyStream, subject)
	}
	if err != nil {
		return err
	}
	r.chunk = msg.Data
	r.next++
	return nil
}

func (r *bodyReader) Read(b []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	if len(r.chunk) == 0 {
		if err := r.fill(); err != nil {
			return 0, fmt.Errorf("reading the body %s: %w", r.name, err)
		}
	}
	n := copy(b, r.chunk)
	r.chunk = r.chunk[n:]
	r.left -= int64(n)
	return n, nil
}

func (r *bodyReader) Close() error {
	r.once.Do(func() {
		o := &r.engine.opened
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.reading[r.name]--; o.reading[r.name] == 0 {
			delete(o.reading, r.name)
		}
	})
	return nil
}

// dropBody removes a body that no task names any more, a little later. If the process
// ends before, collectBodies does.
func (e *Engine) dropBody(name string) {
	if name == "" {
		return
	}
	e.opened.mu.Lock()
	defer e.opened.mu.Unlock()
	if e.opened.dropped == nil {
		e.opened.dropped = make(map[string]time.Time)
	}
	e.opened.dropped[name] = time.Now()
}

// purgeBodies removes the bodies that were dropped some time ago.
func (e *Engine) purgeBodies(ctx context.Context) {
	for _, name := range e.opened.old() {
		if err := e.purgeBody(ctx, name); err != nil {
			e.log.Debug("body not removed", zap.String("body", name), zap.Error(err))
			e.dropBody(name)
		}
	}
}

func (b *bodies) old() (names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, at := range b.dropped {
		if b.reading[name] == 0 && time.Since(at) >= dropDelay {
			names = append(names, name)
			delete(b.dropped, name)
		}
	}
	return names
}

func (e *Engine) purgeBody(ctx context.Context, name string) error {
	stream, err := e.js.Stream(ctx, bodyStream)
	if err != nil {
		return err
	}
	return stream.Purge(ctx, jetstream.WithPurgeSubject(bodySubject+name+".*"))
}

// orphanAge is how old a body is before it counts as an orphan: no task takes longer
// to be stored after its body.
const orphanAge = time.Hour

// collectBodies removes the bodies that no task names: those whose gateway ended
// before it stored the task, or removed the body.
func (e *Engine) collectBodies(ctx context.Context) error {
	stream, err := e.js.Stream(ctx, bodyStream)
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(bodySubject+"*.*.0"))
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		name := strings.TrimSuffix(strings.TrimPrefix(subject, bodySubject), ".0")
		id, body, _ := strings.Cut(name, ".")
		if age(body) < orphanAge {
			continue
		}
		// The name has the token of the task's ID, which names its subject.
		msg, seq, err := e.get(ctx, taskStream, taskSubject+id)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return err
		}
		if err == nil {
			m, err := decode(msg, seq)
			if err != nil || m.meta.Body == name {
				continue
			}
		}
		if err := e.purgeBody(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
