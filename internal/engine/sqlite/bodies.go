package sqlite

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// maxInline is the largest body in the database. Larger bodies cost less as files.
const maxInline = 256 << 10

// bodies manages the files of large bodies. A file is synced, with its name, before the
// row that refers to it is committed. It is removed once a later commit without such a
// row is durable.
type bodies struct {
	folder string
	disk   disk
	log    *zap.Logger
	bytes  *atomic.Int64 // of all files

	failing atomic.Bool // a file could not be removed
	mu      sync.Mutex
	dropped []string // files to be removed
}

// body is a body that is about to be stored, in memory or in a file.
type body struct {
	bytes []byte
	file  string
	sum   int64 // CRC-32C of the file's content
	size  int64
}

// files returns the file of a body, if it has one.
func (b *body) files() []string {
	if b == nil || b.file == "" {
		return nil
	}
	return []string{b.file}
}

// kept returns the size of a body as its column has it: -1 if there is no body.
func (b *body) kept() int64 {
	if b == nil {
		return -1
	}
	return b.size
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumOf(data []byte) int64 { return int64(crc32.Checksum(data, castagnoli)) }

// openBodies removes the files that no row refers to, and counts the others.
func (s *store) openBodies() error {
	b := &s.bodies
	b.folder, b.disk, b.log, b.bytes = filepath.Join(s.cfg.Folder, bodiesName), s.cfg.disk, s.log, &s.room.bodies
	known := map[string]bool{}
	s.writer.query("SELECT file FROM body WHERE file IS NOT NULL", nil, func(stmt *sqlite3.Stmt) bool {
		known[stmt.ColumnText(0)] = true
		return true
	})
	if err := s.writer.failed(); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.folder)
	for _, entry := range entries {
		name := entry.Name()
		if !known[name] {
			if err := b.disk.remove(filepath.Join(b.folder, name)); err != nil {
				s.log.Warn("removing an orphaned body failed", zap.Error(err))
			}
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		b.bytes.Add(info.Size())
	}
	return err
}

// take reads a body to its end. It returns an error of r unchanged. If the disk refuses
// the body, the error wraps ErrFull or ErrUnavailable, and take also returns the part of
// the body that it has in memory.
func (b *bodies) take(r io.Reader) (*body, error) {
	if r == nil {
		return &body{bytes: []byte{}}, nil
	}
	if small, ok := r.(*bytes.Reader); ok && small.Len() <= maxInline { // most results
		b := &body{bytes: make([]byte, small.Len()), size: int64(small.Len())}
		_, _ = small.Read(b.bytes) // reads all of it, without an error
		return b, nil
	}
	var head bytes.Buffer
	n, err := io.Copy(&head, io.LimitReader(r, maxInline+1))
	if err != nil {
		return nil, err
	}
	if n <= maxInline {
		return &body{bytes: head.Bytes(), size: n}, nil
	}
	rest := &source{Reader: r}
	stored, err := b.spool(head.Bytes(), rest)
	switch {
	case rest.err != nil:
		return nil, rest.err
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, errQuota):
		err = fmt.Errorf("%w: writing a body's file: %w", engine.ErrFull, err)
	case err != nil:
		err = fmt.Errorf("%w: writing a body's file: %w", engine.ErrUnavailable, err)
	default:
		return stored, nil
	}
	return &body{bytes: head.Bytes(), size: n}, err
}

// spool writes a large body to a file.
func (b *bodies) spool(head []byte, rest io.Reader) (*body, error) {
	name := rand.Text()
	f, err := b.disk.create(filepath.Join(b.folder, name))
	if err != nil {
		return nil, err
	}
	sum := crc32.New(castagnoli)
	n, err := io.Copy(io.MultiWriter(f, sum), io.MultiReader(bytes.NewReader(head), rest))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = syncNames(b.disk, b.folder)
	}
	if err != nil {
		_ = b.disk.remove(filepath.Join(b.folder, name)) // an orphan is removed at the next start
		return nil, err
	}
	b.bytes.Add(n)
	return &body{file: name, sum: int64(sum.Sum32()), size: n}, nil
}

// source records the error of its reader.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// drop schedules files for removal that no row refers to, or whose row was removed or
// refused by a commit. After a crash, the last commits may be undone, and a refused one
// may be found in the log. The files are therefore kept until a later commit is durable.
func (b *bodies) drop(names ...string) {
	b.mu.Lock()
	b.dropped = append(b.dropped, names...)
	b.mu.Unlock()
}

// garbage returns the files to be removed. The caller must pass them to collect.
func (b *bodies) garbage() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := b.dropped
	b.dropped = nil
	return names
}

// collect removes files. A file that cannot be removed is removed later: on Windows, it
// may be being read. This is logged once, until all files can be removed again.
func (b *bodies) collect(names []string) {
	if len(names) == 0 {
		return
	}
	var failed error
	for _, name := range names {
		path := filepath.Join(b.folder, name)
		info, err := os.Stat(path)
		if err == nil {
			err = b.disk.remove(path)
		}
		switch {
		case err == nil:
			b.bytes.Add(-info.Size())
		case !errors.Is(err, fs.ErrNotExist):
			b.drop(name)
			failed = err
		}
	}
	if was := b.failing.Swap(failed != nil); failed != nil && !was {
		b.log.Warn("removing a body failed", zap.Error(failed))
	}
}

// syncLog makes all commits durable and removes the files that waited for it.
func (s *store) syncLog() error {
	var names []string
	if s.broken.Load() == nil { // otherwise a refused commit may still be in the log
		names = s.bodies.garbage()
	}
	if err := s.fs.syncLog(false); err != nil {
		s.bodies.drop(names...)
		return err
	}
	s.bodies.collect(names)
	return nil
}

// stream opens the file of a body for reading.
func (b *bodies) stream(want *body) (io.ReadSeekCloser, error) {
	f, err := os.Open(filepath.Join(b.folder, want.file))
	if errors.Is(err, fs.ErrNotExist) {
		b.log.Error("file of a body is missing", zap.String("file", filepath.Join(b.folder, want.file)))
		return nil, fmt.Errorf("%w: its body's file %s is missing", engine.ErrNotFound, want.file)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: opening a body: %w", engine.ErrUnavailable, err)
	}
	return &streamed{file: f, log: b.log, want: want}, nil
}

// streamed is the file of a body that is being read. If its content is not what was
// stored, reading it ends with an error that wraps ErrNotFound. Of a part of the body,
// only the length is checked.
type streamed struct {
	file   *os.File
	log    *zap.Logger
	want   *body
	at     int64  // position of the next byte
	sum    uint32 // of the first summed bytes
	summed int64
}

func (f *streamed) Read(p []byte) (int, error) {
	n, err := f.file.ReadAt(p, f.at)
	if f.at == f.summed {
		f.sum = crc32.Update(f.sum, castagnoli, p[:n])
		f.summed += int64(n)
	}
	f.at += int64(n)
	if err != io.EOF {
		return n, err
	}
	if n > 0 {
		return n, nil // the next call finds the end
	}
	whole := f.summed == f.at
	if f.at < f.want.size || whole && (f.at != f.want.size || int64(f.sum) != f.want.sum) {
		f.log.Error("file of a body is damaged", zap.String("file", f.file.Name()))
		err = fmt.Errorf("%w: its body's file %s is damaged", engine.ErrNotFound, f.want.file)
	}
	return 0, err
}

// Seek implements [io.Seeker].
func (f *streamed) Seek(offset int64, whence int) (at int64, err error) {
	f.at, err = engine.Position(f.at, f.want.size, offset, whence)
	return f.at, err
}

func (f *streamed) Close() error { return f.file.Close() }

func bodyID(seq int64, part engine.Part) int64 { return seq<<1 | int64(part) }

// putBody stores a body.
func (t *tx) putBody(seq int64, part engine.Part, b *body) {
	switch {
	case b == nil || b.size == 0: // has no row: the task has the size
	case b.file != "":
		t.exec("INSERT INTO body(id, file, sum, bytes) VALUES (?, ?, ?, NULL)", bodyID(seq, part), b.file, b.sum)
	default:
		t.exec("INSERT INTO body(id, file, sum, bytes) VALUES (?, NULL, ?, ?)", bodyID(seq, part), sumOf(b.bytes), b.bytes)
	}
}

// dropBody removes a body of size bytes.
func (t *tx) dropBody(seq int64, part engine.Part, size int64) {
	if size <= 0 {
		return // it has no row
	}
	if name := t.text("DELETE FROM body WHERE id = ? RETURNING file", bodyID(seq, part)); name != "" {
		t.unneeded = append(t.unneeded, name)
	}
}

// loadBody reads a body of size bytes. If its row is lost, it has no file and no bytes.
func loadBody(c *conn, seq int64, part engine.Part, size int64) *body {
	b := &body{size: size}
	if size == 0 {
		b.bytes = []byte{} // it has no row
		return b
	}
	c.query("SELECT file, sum, bytes FROM body WHERE id = ?", []any{bodyID(seq, part)}, func(s *sqlite3.Stmt) bool {
		b.file, b.sum, b.bytes = s.ColumnText(0), s.ColumnInt64(1), s.ColumnBlob(2, nil)
		return false
	})
	return b
}

// smallBody reads a body that has at most maxSmall bytes. It returns nil for another body.
func smallBody(c *conn, seq int64, part engine.Part, size int64) []byte {
	if size < 0 || size > maxSmall {
		return nil
	}
	return loadBody(c, seq, part, size).bytes
}

// Open implements [engine.Tasks].
func (s *store) Open(ctx context.Context, id string, part engine.Part) (r io.ReadSeekCloser, err error) {
	err = s.read(ctx, func(c *conn) error {
		row, err := find(c, id)
		if err != nil {
			return err
		}
		kept := row.request
		if part == engine.ResultBody {
			kept = row.result
		}
		if kept < 0 {
			return engine.ErrNotFound
		}
		stored := loadBody(c, row.seq, part, kept)
		if stored.file != "" {
			r, err = s.bodies.stream(stored)
			return err
		}
		if int64(len(stored.bytes)) != kept {
			return engine.ErrNotFound
		}
		r = engine.InMemory(stored.bytes)
		return nil
	})
	return r, err
}
