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
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// maxInline is the largest body in the database. Larger bodies cost less as files.
const maxInline = 256 << 10

// bodies manages the files of large bodies. A file is synced, with its name, before the
// row that refers to it is committed. It is removed after the commit that removes the
// row, once no reader streams it.
type bodies struct {
	folder string
	disk   disk
	log    *zap.Logger

	mu       sync.Mutex
	bytes    int64            // of all files
	sizes    map[string]int64 // by file name
	reading  map[string]int   // number of readers by file name
	doomed   map[string]bool  // to be removed once no reader streams them
	refused  []refused        // files of failed commits
	unsynced []string         // files whose rows' removal is not synced yet
}

// refused is a file whose row was not committed. After a crash, a failed commit may be
// found in the log until another commit has been written over it.
type refused struct {
	name string
	at   time.Time
}

// body is a body that is about to be stored, in memory or in a file.
type body struct {
	bytes []byte
	file  string
	sum   int64 // CRC-32C of the file's content
	size  int64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sumOf(data []byte) int64 { return int64(crc32.Checksum(data, castagnoli)) }

// open removes the files that no row refers to, and counts the others.
func (b *bodies) open(s *store) error {
	b.folder, b.disk, b.log = filepath.Join(s.cfg.Folder, bodiesName), s.cfg.disk, s.log
	b.sizes, b.reading, b.doomed = map[string]int64{}, map[string]int{}, map[string]bool{}
	known := map[string]bool{}
	err := s.writer.query("SELECT file FROM body WHERE file IS NOT NULL", nil, func(stmt *sqlite3.Stmt) bool {
		known[stmt.ColumnText(0)] = true
		return true
	})
	if err != nil {
		return err
	}
	folder, err := os.Open(b.folder)
	if err != nil {
		return err
	}
	defer folder.Close()
	for {
		entries, err := folder.ReadDir(1000)
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
			b.sizes[name] = info.Size()
			b.bytes += info.Size()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readError is an error of the reader that supplies a body.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// take reads a body to its end, or to limit if limit is not negative.
func (b *bodies) take(r io.Reader, limit int64) (*body, error) {
	if r == nil {
		return &body{bytes: []byte{}}, nil
	}
	if limit >= 0 {
		r = io.LimitReader(r, limit)
	}
	var head bytes.Buffer
	n, err := io.Copy(&head, io.LimitReader(r, maxInline+1))
	if err != nil {
		return nil, readError{err}
	}
	if n <= maxInline {
		return &body{bytes: head.Bytes(), size: n}, nil
	}
	return b.spool(head.Bytes(), r)
}

// spool writes a large body to a file. After a disk error it also returns the part of
// the body that it has in memory.
func (b *bodies) spool(head []byte, rest io.Reader) (*body, error) {
	kept := &body{bytes: head, size: int64(len(head))}
	f, err := b.disk.create(b.folder, "new-*")
	if err != nil {
		return kept, fmt.Errorf("creating a body's file: %w", err)
	}
	source, sum := &source{Reader: rest}, crc32.New(castagnoli)
	n, err := io.Copy(io.MultiWriter(f, sum), io.MultiReader(bytes.NewReader(head), source))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	name := rand.Text()
	if err == nil {
		err = b.disk.rename(f.Name(), filepath.Join(b.folder, name))
	}
	if err == nil {
		err = syncNames(b.disk, b.folder)
	}
	if err != nil {
		_ = b.disk.remove(f.Name()) // an orphan is removed at the next start
		_ = b.disk.remove(filepath.Join(b.folder, name))
		if source.err != nil {
			return nil, readError{source.err}
		}
		return kept, fmt.Errorf("writing a body's file: %w", err)
	}
	b.mu.Lock()
	b.sizes[name] = n
	b.bytes += n
	b.mu.Unlock()
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

// discard schedules the files of a failed commit for removal.
func (b *bodies) discard(names []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		b.refused = append(b.refused, refused{name, time.Now()})
	}
}

// removeRefused removes the files of failed commits that have been overwritten.
func (b *bodies) removeRefused() {
	b.mu.Lock()
	names := make([]string, 0, len(b.refused))
	for _, r := range b.refused {
		names = append(names, r.name)
	}
	b.refused = nil
	b.mu.Unlock()
	b.remove(names)
}

// removeSynced removes the files whose rows a commit has removed. If the log is synced
// at an interval, a power failure may restore the rows. The files are then kept until
// the next sync.
func (s *store) removeSynced(names []string) {
	if s.cfg.Sync <= 0 || s.cfg.skips == skipRetire {
		s.bodies.remove(names)
		return
	}
	s.bodies.mu.Lock()
	s.bodies.unsynced = append(s.bodies.unsynced, names...)
	s.bodies.mu.Unlock()
}

// syncLog makes all commits durable and removes the files that waited for it.
func (s *store) syncLog() error {
	s.bodies.mu.Lock()
	names := s.bodies.unsynced
	s.bodies.unsynced = nil
	s.bodies.mu.Unlock()
	if err := s.fs.syncLog(); err != nil {
		s.bodies.mu.Lock()
		s.bodies.unsynced = append(s.bodies.unsynced, names...)
		s.bodies.mu.Unlock()
		return err
	}
	s.bodies.remove(names)
	return nil
}

// remove removes files. A file that is being streamed is removed later.
func (b *bodies) remove(names []string) {
	if len(names) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		if b.reading[name] > 0 {
			b.doomed[name] = true
		} else {
			b.unlink(name)
		}
	}
}

func (b *bodies) unlink(name string) {
	if err := b.disk.remove(filepath.Join(b.folder, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("removing a body failed", zap.Error(err)) // an orphan is removed at the next start
	}
	b.bytes -= b.sizes[name]
	delete(b.sizes, name)
}

func (b *bodies) used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// stream opens the file of a body for reading.
func (b *bodies) stream(want *body) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := want.file
	if b.doomed[name] {
		return nil, engine.ErrNotFound
	}
	f, err := os.Open(filepath.Join(b.folder, name))
	if errors.Is(err, fs.ErrNotExist) {
		b.log.Error("file of a body is missing", zap.String("file", filepath.Join(b.folder, name)))
		return nil, fmt.Errorf("%w: its body's file %s is missing", engine.ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: opening a body: %w", engine.ErrUnavailable, err)
	}
	b.reading[name]++
	return &streamed{file: f, bodies: b, want: want}, nil
}

// streamed is the file of a body that is being read. If its content is not what was
// stored, reading it ends with an error that wraps ErrNotFound.
type streamed struct {
	file   *os.File
	bodies *bodies
	want   *body
	sum    uint32
	size   int64
	once   sync.Once
}

func (f *streamed) Read(p []byte) (int, error) {
	n, err := f.file.Read(p)
	f.sum = crc32.Update(f.sum, castagnoli, p[:n])
	f.size += int64(n)
	if err == io.EOF && (f.size != f.want.size || int64(f.sum) != f.want.sum) {
		f.bodies.log.Error("file of a body is damaged", zap.String("file", f.file.Name()))
		err = fmt.Errorf("%w: its body's file %s is damaged", engine.ErrNotFound, f.want.file)
	}
	return n, err
}

func (f *streamed) Close() error {
	err := f.file.Close()
	name := f.want.file
	f.once.Do(func() {
		f.bodies.mu.Lock()
		defer f.bodies.mu.Unlock()
		if f.bodies.reading[name]--; f.bodies.reading[name] == 0 {
			delete(f.bodies.reading, name)
			if f.bodies.doomed[name] {
				delete(f.bodies.doomed, name)
				f.bodies.unlink(name)
			}
		}
	})
	return err
}

func bodyID(seq int64, part engine.Part) int64 { return seq<<1 | int64(part) }

// putBody stores a body in place of the previous one.
func (t *tx) putBody(seq int64, part engine.Part, b *body) error {
	if b == nil || b.size == 0 {
		return nil // the column of the task has the size
	}
	if b.file != "" {
		t.stored = append(t.stored, b.file)
		return t.exec("INSERT INTO body(id, file, sum, bytes) VALUES (?, ?, ?, NULL)", bodyID(seq, part), b.file, b.sum)
	}
	return t.exec("INSERT INTO body(id, file, sum, bytes) VALUES (?, NULL, ?, ?)", bodyID(seq, part), sumOf(b.bytes), b.bytes)
}

// dropBody removes a body, if there is one.
func (t *tx) dropBody(seq int64, part engine.Part) error {
	return t.deleteBodies("DELETE FROM body WHERE id = ? RETURNING file", bodyID(seq, part))
}

// dropBodies removes the bodies of a task.
func (t *tx) dropBodies(seq int64) error {
	return t.deleteBodies("DELETE FROM body WHERE id BETWEEN ? AND ? RETURNING file",
		bodyID(seq, engine.RequestBody), bodyID(seq, engine.ResultBody))
}

func (t *tx) deleteBodies(query string, args ...any) error {
	return t.query(query, args, func(s *sqlite3.Stmt) bool {
		if name := s.ColumnText(0); name != "" {
			t.unneeded = append(t.unneeded, name)
		}
		return true
	})
}

// openBody opens a body for reading.
func (s *store) openBody(ctx context.Context, c *conn, seq int64, part engine.Part, size int64) (io.ReadCloser, error) {
	if size < 0 {
		return nil, engine.ErrNotFound
	}
	if size == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	var stored *body
	err := c.query("SELECT file, sum, bytes FROM body WHERE id = ?", []any{bodyID(seq, part)}, func(stmt *sqlite3.Stmt) bool {
		stored = &body{file: stmt.ColumnText(0), sum: stmt.ColumnInt64(1), bytes: stmt.ColumnBlob(2, nil), size: size}
		return false
	})
	switch {
	case err != nil:
		return nil, err
	case stored == nil:
		return nil, engine.ErrNotFound
	case stored.file != "":
		return s.bodies.stream(stored)
	}
	return io.NopCloser(bytes.NewReader(stored.bytes)), nil
}

// smallBody reads a body of a task that is in the table and has at most maxSmall bytes.
// It returns nil for another body.
func smallBody(c *conn, seq int64, part engine.Part, size int64) (b []byte, err error) {
	if size == 0 {
		return []byte{}, nil // it has no row
	}
	if size < 0 || size > maxSmall {
		return nil, nil
	}
	err = c.query("SELECT bytes FROM body WHERE id = ? AND file IS NULL", []any{bodyID(seq, part)}, func(s *sqlite3.Stmt) bool {
		b = s.ColumnBlob(0, nil)
		return false
	})
	return b, err
}

// Open implements [engine.Tasks].
func (s *store) Open(ctx context.Context, id string, part engine.Part) (io.ReadCloser, error) {
	var r io.ReadCloser
	err := s.read(ctx, func(c *conn) error {
		row, err := find(c, id)
		if err != nil {
			return err
		}
		size := row.request
		if part == engine.ResultBody {
			size = row.result
		}
		r, err = s.openBody(ctx, c, row.seq, part, size)
		return err
	})
	return r, err
}
