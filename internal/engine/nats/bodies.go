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
	var chunk bytes.Buffer
	for i, n := 0, int64(chunkSize); n == chunkSize; i++ {
		chunk.Reset()
		if n, err = io.Copy(&chunk, io.LimitReader(r, chunkSize)); err != nil {
			break
		}
		if n > 0 {
			msg := nats.NewMsg(bodySubject + name + "." + strconv.Itoa(i))
			msg.Data = chunk.Bytes()
			if _, err = e.store(ctx, msg); err != nil {
				err = fmt.Errorf("storing a body of the task %s: %w", id, err)
				break
			}
			size += n
		}
	}
	if err == nil {
		return name, size, nil
	}
	e.discard(ctx, name)
	return "", 0, err
}

// body opens the body of a task. It returns ErrNotFound if there is none, or if its first
// chunk is not there.
func (e *Engine) body(ctx context.Context, m *message) (io.ReadSeekCloser, error) {
	if m.dropped() || m.rec.Ended() && m.rec.Result == nil {
		return nil, engine.ErrNotFound
	}
	if m.meta.Body == "" {
		return engine.InMemory(m.body), nil
	}
	c := &chunks{ctx: ctx, engine: e, name: m.meta.Body}
	if err := c.get(0); err != nil {
		return nil, err
	}
	return storedBody{io.NewSectionReader(c, 0, m.meta.Size)}, nil
}

// storedBody reads a body from the body stream, one chunk at a time.
type storedBody struct{ *io.SectionReader }

// Close implements [io.Closer].
func (storedBody) Close() error { return nil }

// chunks reads the chunks of a body. It keeps one in memory.
type chunks struct {
	ctx    context.Context
	engine *Engine
	name   string
	number int64
	chunk  []byte
}

func (c *chunks) get(number int64) error {
	subject := bodySubject + c.name + "." + strconv.FormatInt(number, 10)
	var msg *jetstream.RawStreamMsg
	isMissing := false
	err := c.engine.untilCurrent(c.ctx, func(ctx context.Context) (err error) {
		msg, err = c.engine.get(ctx, c.engine.bodies, subject)
		if isMissing = errors.Is(err, engine.ErrNotFound); isMissing {
			err = errNotYet // a server without the latest messages may have answered
		}
		return err
	})
	if isMissing {
		err = engine.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("reading the chunk %s: %w", subject, err)
	}
	c.number, c.chunk = number, msg.Data
	return nil
}

// ReadAt implements [io.ReaderAt]. Every chunk but the last has chunkSize bytes.
func (c *chunks) ReadAt(b []byte, at int64) (n int, err error) {
	for n < len(b) {
		if number := at / chunkSize; number != c.number {
			if err := c.get(number); err != nil {
				return n, err
			}
		}
		from := at % chunkSize
		if from >= int64(len(c.chunk)) {
			return n, fmt.Errorf("reading the body %s: a chunk is cut off: %w", c.name, io.ErrUnexpectedEOF)
		}
		k := copy(b[n:], c.chunk[from:])
		n, at = n+k, at+int64(k)
	}
	return n, nil
}

// discardUnused removes a body that was stored for a step of a task, unless the task
// references it. err is the error of the step. If the servers did not answer, they may
// have stored the step.
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

// collectBodies removes orphaned bodies. A body becomes an orphan if its gateway stops
// before it stores the task, or if the youngest gateway stops before it removes the
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
