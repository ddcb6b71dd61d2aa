package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// chunkSize is the size of a chunk of a body. Each is acknowledged before the next is
// sent, so that heartbeats do not wait behind a large body on a slow connection.
const chunkSize = 256 << 10

// An unneededBody is a body that the last step of its task does not reference.
type unneededBody struct {
	name  string
	since time.Time
}

// readTime is how long an unneeded body is kept, because a reader at any gateway may
// have opened it before the task's last step.
const readTime = 5 * time.Minute

// inlineLimit is the largest body that is stored in the message of its task. Every step
// writes an inline body again.
const inlineLimit = 32 << 10

// readBody reads a body into m, or stores it if it is larger than inlineLimit. It
// returns the reader's error unchanged. With cut, a full store keeps the beginning of
// the body.
func (e *Engine) readBody(ctx context.Context, m *message, r io.Reader, cut bool) error {
	m.clearBody()
	if r == nil {
		return nil
	}
	head, err := io.ReadAll(io.LimitReader(r, inlineLimit+1))
	if err != nil {
		return err
	}
	if len(head) > inlineLimit {
		m.meta.Body, m.meta.Size, err = e.putBody(ctx, m.meta.ID, io.MultiReader(bytes.NewReader(head), r))
		if err == nil || !cut || !errors.Is(err, engine.ErrFull) {
			return err
		}
		head = head[:inlineLimit]
	}
	m.body, m.meta.Size = head, int64(len(head))
	return nil
}

// putBody stores a body of a task in chunks and returns its name. After an error it
// removes the chunks that it stored.
func (e *Engine) putBody(ctx context.Context, id string, r io.Reader) (name string, size int64, err error) {
	name = token(id) + "." + newID()
	chunk := make([]byte, chunkSize)
	for i := 0; ; i++ {
		n, readErr := io.ReadFull(r, chunk)
		if n > 0 {
			msg := nats.NewMsg(bodySubject + name + "." + strconv.Itoa(i))
			msg.Data = chunk[:n]
			if _, err = e.store(ctx, msg); err != nil {
				err = fmt.Errorf("storing a body of the task %s: %w", id, err)
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
	e.discard(ctx, name)
	return "", 0, err
}

// bodyReader reads a body chunk by chunk, as slowly as its reader likes.
type bodyReader struct {
	ctx    context.Context
	engine *Engine
	name   string
	size   int64
	at     int64  // position of the next byte
	chunk  []byte // that of the first byte that is not read
	first  int64  // position of its first byte
}

// openBody opens a body that was stored in chunks. It returns ErrNotFound if its
// first chunk is not there.
func (e *Engine) openBody(ctx context.Context, name string, size int64) (io.ReadSeekCloser, error) {
	r := &bodyReader{ctx: ctx, engine: e, name: name, size: size}
	if err := r.fill(); err != nil {
		return nil, fmt.Errorf("opening the body %s: %w", name, err)
	}
	return r, nil
}

// fill gets the chunk that has the next byte. Every chunk but the last has chunkSize
// bytes.
func (r *bodyReader) fill() error {
	i := r.at / chunkSize
	msg, err := r.engine.get(r.ctx, r.engine.bodies, bodySubject+r.name+"."+strconv.FormatInt(i, 10))
	if err != nil {
		return err
	}
	r.chunk, r.first = msg.Data, i*chunkSize
	return nil
}

func (r *bodyReader) Read(b []byte) (int, error) {
	if r.at >= r.size {
		return 0, io.EOF
	}
	if r.at < r.first || r.at >= r.first+int64(len(r.chunk)) {
		if err := r.fill(); err != nil {
			return 0, fmt.Errorf("reading the body %s: %w", r.name, err)
		}
		if r.at >= r.first+int64(len(r.chunk)) {
			return 0, fmt.Errorf("reading the body %s: a chunk is cut off: %w", r.name, io.ErrUnexpectedEOF)
		}
	}
	n := copy(b, r.chunk[r.at-r.first:])
	r.at += int64(n)
	return n, nil
}

// Seek implements [io.Seeker].
func (r *bodyReader) Seek(offset int64, whence int) (at int64, err error) {
	r.at, err = engine.Position(r.at, r.size, offset, whence)
	return r.at, err
}

// Close implements [io.Closer].
func (r *bodyReader) Close() error { return nil }

// discardUnused removes a body that was stored for a step of a task, unless the task has
// it. err is the error of the step: the servers may have stored the step if they did
// not answer.
func (e *Engine) discardUnused(ctx context.Context, name string, m *message, err error) {
	if !errors.Is(err, engine.ErrUnavailable) && (err != nil || m.meta.Body != name) {
		e.discard(ctx, name)
	}
}

// discard removes a body that no task references. If that fails, collectBodies removes
// it later.
func (e *Engine) discard(ctx context.Context, name string) {
	if name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	defer cancel()
	if err := e.bodies.Purge(ctx, jetstream.WithPurgeSubject(bodySubject+name+".*")); err != nil {
		e.log.Debug("body not removed", zap.String("body", name), zap.Error(err))
	}
}

// takeUnneeded returns the bodies that no reader can still have open, and removes them
// from the list.
func (x *index) takeUnneeded() (names []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.unneeded) > 0 && time.Since(x.unneeded[0].since) >= readTime {
		names = append(names, x.unneeded[0].name)
		x.unneeded = x.unneeded[1:]
	}
	return names
}

// orphanAge is how old a body is before it counts as an orphan: no task takes longer
// to be stored after its body.
const orphanAge = time.Hour

// collectBodies removes orphaned bodies. A body becomes an orphan if its gateway ends
// before it stores the task, or if the youngest gateway ends before it removes the
// body.
func (e *Engine) collectBodies(ctx context.Context) error {
	info, err := e.bodies.Info(ctx, jetstream.WithSubjectFilter(bodySubject+"*.*.0"))
	if err != nil {
		return err
	}
	named := e.index.bodies()
	for subject := range info.State.Subjects {
		name := strings.TrimSuffix(strings.TrimPrefix(subject, bodySubject), ".0")
		_, id, _ := strings.Cut(name, ".")
		if !named[name] && age(id) >= orphanAge {
			e.discard(ctx, name)
		}
	}
	return nil
}

// bodies returns the names of the bodies that tasks reference.
func (x *index) bodies() map[string]bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	named := make(map[string]bool)
	for _, e := range x.tasks {
		if e.body != "" {
			named[e.body] = true
		}
	}
	return named
}

// age returns how long ago newID made an ID.
func age(id string) time.Duration {
	u, err := uuid.Parse(id)
	if err != nil {
		return 0
	}
	return time.Since(time.Unix(u.Time().UnixTime()))
}
