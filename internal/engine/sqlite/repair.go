package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Repair salvages the readable part of a damaged store into a new database, and
// replaces the damaged one with it. The damaged database is kept beside it. Repair
// writes a report of what was saved and lost to out. It returns ErrHeld if a process
// has the store open.
func Repair(ctx context.Context, folder string, out io.Writer) (err error) {
	held := &store{cfg: Config{Folder: folder, disk: systemDisk{}}}
	if _, err := os.Stat(filepath.Join(folder, databaseName)); err != nil {
		return fmt.Errorf("finding the database: %w", err)
	}
	if err := held.openFolder(); err != nil {
		held.release()
		return err
	}
	defer held.release()
	work, err := os.MkdirTemp(folder, "repair-")
	if err != nil {
		return fmt.Errorf("repairing: %w", err)
	}
	defer os.RemoveAll(work)
	for _, suffix := range []string{"", "-wal"} {
		err := copyFile(filepath.Join(work, databaseName+suffix), filepath.Join(folder, databaseName+suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copying the database: %w", err)
		}
	}
	rebuilt := filepath.Join(work, "new")
	s, err := open(ctx, Config{Folder: rebuilt, MaxSize: math.MaxInt64 / 64})
	if err != nil {
		return fmt.Errorf("making a new database: %w", err)
	}
	r := &repair{to: s, bodies: filepath.Join(folder, bodiesName)}
	err = r.run(ctx, filepath.Join(work, databaseName))
	if err = errors.Join(err, s.Close(ctx)); err != nil {
		return fmt.Errorf("repairing: %w", err)
	}
	aside := filepath.Join(folder, databaseName+".damaged-"+time.Now().UTC().Format("20060102T150405"))
	for _, suffix := range []string{"", "-wal"} {
		err := os.Rename(filepath.Join(folder, databaseName+suffix), aside+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("putting the damaged database aside: %w", err)
		}
	}
	_ = os.Remove(filepath.Join(folder, databaseName+"-shm")) // describes the log, which was moved
	if err := os.Rename(filepath.Join(rebuilt, databaseName), filepath.Join(folder, databaseName)); err != nil {
		return fmt.Errorf("putting the new database in its place: %w", err)
	}
	if err := syncNames(systemDisk{}, folder); err != nil {
		return fmt.Errorf("putting the new database in its place: %w", err)
	}
	_, err = fmt.Fprintf(out, "%d tasks saved, %d of them from pages with a wrong checksum, %d without a body\n"+
		"%d tasks lost, at least\nthe damaged database is kept as %s\n", r.saved, r.doubtful, r.bodiless, r.lost, aside)
	return err
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// repair copies the readable part of a database.
type repair struct {
	to     *store
	bodies string // the folder of body files

	// Two connections to the damaged database: strict verifies checksums, lax does not.
	strict, lax *conn

	batch []func(*tx) error // store the tasks that were read

	saved, doubtful, bodiless, lost int
}

func (r *repair) run(ctx context.Context, file string) (err error) {
	files := registerFileSystem(nil)
	defer files.unregister()
	if err := r.open(file, files.name); err != nil {
		return err
	}
	r.strict.number(countTables)
	if r.strict.failed() != nil {
		_ = errors.Join(r.strict.close(), r.lax.close())
		if err := restoreSchema(ctx, file); err != nil {
			return err
		}
		if err := r.open(file, files.name); err != nil {
			return err
		}
	}
	defer r.strict.close()
	defer r.lax.close()
	r.lax.number(countTables)
	if err := r.lax.failed(); err != nil {
		return fmt.Errorf("nothing of it can be read: %w", err)
	}
	r.copyTables(ctx)
	last := r.highest()
	for seq := int64(0); seq <= last; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, found := r.next(seq, last)
		if !found {
			break
		}
		if err := r.save(ctx, next); err != nil {
			return err
		}
		seq = next + 1
	}
	// The counts are in another table: they show how many tasks could not be found.
	_, _ = r.read(func(c *conn) {
		tasks, _ := c.number("SELECT sum(tasks) FROM tally")
		r.lost = max(r.lost, int(tasks)-r.saved)
	})
	return r.flush(ctx)
}

// repairBatch is how many tasks are copied in one commit.
const repairBatch = 200

// flush commits the tasks that were read.
func (r *repair) flush(ctx context.Context) error {
	batch := r.batch
	r.batch = nil
	return r.to.update(ctx, func(t *tx) error {
		for _, insert := range batch {
			if err := insert(t); err != nil {
				return err
			}
		}
		return nil
	})
}

const countTables = "SELECT count(*) FROM sqlite_schema"

func (r *repair) open(file, vfsName string) (err error) {
	for _, c := range []**conn{&r.strict, &r.lax} {
		if *c, err = openConn(file, vfsName, sqlite3.OPEN_READWRITE); err != nil {
			return err
		}
	}
	// The header of the database turns checksums on, and must be read first. If either
	// read fails, this connection is as strict as the other one.
	r.lax.number(countTables)
	_ = r.lax.failed()
	_ = r.lax.Exec("PRAGMA checksum_verification = OFF")
	return nil
}

// maxSeq is the upper bound of the search for rows if the last one cannot be found.
const maxSeq = 1 << 62

func (r *repair) highest() int64 {
	n, _ := r.lax.number("SELECT max(seq) FROM task")
	if r.lax.failed() != nil {
		return maxSeq
	}
	return n
}

// next returns the first readable row from seq on. In an unreadable range it searches
// ahead in growing steps, and then back for the first readable row.
func (r *repair) next(seq, last int64) (int64, bool) {
	bad, step := seq-1, int64(1)
	for at := seq; at <= last; at, step = at+step, step*2 {
		found, ok, err := r.from(at)
		if err != nil {
			bad = at
			continue
		}
		for at-bad > 1 && bad >= seq {
			middle := bad + (at-bad)/2
			if n, ok, err := r.from(middle); err == nil && ok {
				found, at = n, middle
			} else {
				bad = middle
			}
		}
		return found, ok
	}
	return 0, false
}

// from returns the first row from seq on. It returns an error if its page cannot be read.
func (r *repair) from(seq int64) (n int64, ok bool, err error) {
	n, ok = r.lax.number("SELECT seq FROM task NOT INDEXED WHERE seq >= ? ORDER BY seq LIMIT 1", seq)
	return n, ok, r.lax.failed()
}

// read reads with checksums verified. If that fails, it reads again without verifying
// them, and doubtful is true.
func (r *repair) read(f func(*conn)) (doubtful bool, err error) {
	f(r.strict)
	if r.strict.failed() == nil {
		return false, nil
	}
	f(r.lax)
	return true, r.lax.failed()
}

// save copies a task.
func (r *repair) save(ctx context.Context, seq int64) error {
	var rows []*row
	doubtful, err := r.read(func(c *conn) { rows = all(c, " WHERE seq = ?", seq) })
	if err != nil || len(rows) == 0 || rows[0].place.state < 0 || rows[0].place.state >= states {
		r.lost++
		return nil
	}
	found := rows[0]
	rec, err := found.record()
	if err != nil {
		r.lost++
		return nil
	}
	request, lostRequest := r.body(seq, engine.RequestBody, found.request)
	result, lostResult := r.body(seq, engine.ResultBody, found.result)
	if lostRequest || lostResult {
		r.bodiless++
	}
	if lostRequest && rec.Queue != "" {
		rec.State, rec.Status, rec.FinishedAt = task.Delivering, task.Failed, time.Now().UTC()
		rec.Error = "the body of the request was lost: the store was damaged"
		if rec.Callback == nil {
			rec.State = task.Done
		}
	}
	if doubtful {
		r.doubtful++
		if rec.State == task.Delivering {
			rec.NextAttemptAt = time.Now().UTC() // the stored time may be a year away
		}
	}
	r.saved++
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	r.batch = append(r.batch, func(t *tx) error { return t.insertImported(rec, doc, request, result) })
	if len(r.batch) < repairBatch {
		return nil
	}
	return r.flush(ctx)
}

// body returns a body of size bytes. It returns nil if size is negative. lost is set if
// the body cannot be read.
func (r *repair) body(seq int64, part engine.Part, size int64) (b *body, lost bool) {
	if size < 0 {
		return nil, false
	}
	_, err := r.read(func(c *conn) { b = loadBody(c, seq, part, size) })
	if err == nil && b.file != "" {
		info, err := os.Stat(filepath.Join(r.bodies, filepath.Base(b.file)))
		lost = err != nil || info.Size() != size
	} else {
		lost = err != nil || int64(len(b.bytes)) != size || sumOf(b.bytes) != b.sum
	}
	if lost {
		return nil, true // its page or its file is damaged
	}
	return b, false
}

// copyTables copies everything except tasks. If a row cannot be read, it is lost or
// replaced by a new one: a pause, the measurements of a host, the secret.
func (r *repair) copyTables(ctx context.Context) {
	for table, columns := range map[string]string{
		"meta":     "name, value",
		"queue":    "name, paused", // counts are computed again
		"key":      "hash, digest, task, expires",
		"schedule": "name, last, next",
		"host":     "name, " + hostColumns, // waiting is computed again
	} {
		var rows [][]any
		_, _ = r.read(func(c *conn) {
			c.query("SELECT "+columns+" FROM "+table, nil, func(s *sqlite3.Stmt) bool {
				values := make([]any, s.ColumnCount())
				if s.Columns(values...) == nil {
					rows = append(rows, values)
				}
				return true
			})
		}) // rows read before the error are kept
		marks := strings.Repeat(", ?", strings.Count(columns, ",")+1)[2:]
		for _, values := range rows {
			_ = r.to.update(ctx, func(t *tx) error {
				t.exec("INSERT OR REPLACE INTO "+table+"("+columns+") VALUES ("+marks+")", values...)
				return nil
			})
		}
	}
}
