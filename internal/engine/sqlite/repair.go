package sqlite

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	s, err := open(ctx, Config{Folder: filepath.Join(work, "new")})
	if err == nil {
		err = s.Close(ctx)
	}
	if err != nil {
		return fmt.Errorf("making a new database: %w", err)
	}
	r := &repair{bodies: filepath.Join(folder, bodiesName)}
	if err := r.run(ctx, filepath.Join(work, databaseName), s.file); err != nil {
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
	if err := os.Rename(s.file, filepath.Join(folder, databaseName)); err != nil {
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

// repair copies the rows of a damaged database that can be read to a new one.
type repair struct {
	to     *conn
	bodies string // the folder of body files

	// Two connections to the damaged database: strict verifies checksums, lax does not.
	strict, lax *conn

	saved, doubtful, bodiless, lost int
}

// repairBatch is how many tasks are copied in one transaction.
const repairBatch = 200

func (r *repair) run(ctx context.Context, damaged, rebuilt string) (err error) {
	files := registerFileSystem(nil)
	defer files.unregister()
	if r.to, err = openConn(rebuilt, files.name, sqlite3.OPEN_READWRITE); err != nil {
		return err
	}
	defer r.to.close()
	if r.strict, err = openDamaged(damaged, files.name); err != nil {
		if err := r.restoreSchema(damaged, rebuilt); err != nil {
			return err
		}
		if r.strict, err = openDamaged(damaged, files.name); err != nil {
			return err
		}
	}
	defer r.strict.close()
	if r.lax, err = openDamaged(damaged, files.name); err != nil {
		return err
	}
	defer r.lax.close()
	if err := r.lax.Exec("PRAGMA checksum_verification = OFF"); err != nil {
		return err
	}
	r.copyTables()
	count := &tx{conn: r.to, counts: map[counter]int64{}}
	for seq, found := r.next(0); found; seq, found = r.next(seq + 1) {
		if err := cmp.Or(ctx.Err(), r.save(count, seq)); err != nil {
			return err
		}
	}
	var tasks int64
	r.read(func(c *conn) error {
		tasks, _ = c.number("SELECT sum(tasks) FROM tally")
		return c.failed()
	})
	r.lost = max(r.lost, int(tasks)-r.saved) // some could not be found
	count.flush()
	r.to.exec("COMMIT")
	if err := r.to.failed(); err != nil {
		return err
	}
	_, _, err = r.to.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE)
	return err
}

// openDamaged opens a connection that verifies checksums, and reads the schema. It
// returns an error if the schema cannot be read or the header turns checksums off.
func openDamaged(file, vfsName string) (*conn, error) {
	c, err := openConn(file, vfsName, sqlite3.OPEN_READWRITE)
	if err != nil {
		return nil, err
	}
	c.number("SELECT count(*) FROM sqlite_schema") // also reads the header, which turns checksums on
	on, _ := c.number("PRAGMA checksum_verification")
	if err = c.failed(); err == nil && on == 0 {
		err = errors.New("its header is damaged")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading the schema: %w", err), c.close())
	}
	return c, nil
}

// restoreSchema copies the pages that describe the tables from the new database. No other
// page can be read without them. They are the same in all stores of a version, except in
// one that was vacuumed: the roots of its tables are other pages.
func (r *repair) restoreSchema(damaged, rebuilt string) error {
	roots := map[int64]bool{} // pages of tables and indexes
	r.to.query("SELECT rootpage FROM sqlite_schema", nil, func(stmt *sqlite3.Stmt) bool {
		roots[stmt.ColumnInt64(0)] = true
		return true
	})
	if err := r.to.failed(); err != nil {
		return err
	}
	pristine, err := os.ReadFile(rebuilt)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(damaged, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Only the size differs in the first page. The list of free pages is not restored.
	binary.BigEndian.PutUint32(pristine[28:], uint32(info.Size()/pageSize))
	checksum(pristine[:pageSize])
	for at := int64(0); at < int64(len(pristine)); at += pageSize {
		if roots[at/pageSize+1] {
			continue
		}
		if _, err := f.WriteAt(pristine[at:at+pageSize], at); err != nil {
			return err
		}
	}
	return nil
}

// checksum writes the checksum of a page at its end, as SQLite's cksumvfs does.
func checksum(page []byte) {
	end := len(page) - 8
	a, b := sumWords(binary.LittleEndian, 0, 0, page[:end])
	binary.LittleEndian.PutUint32(page[end:], a)
	binary.LittleEndian.PutUint32(page[end+4:], b)
}

// copyTables begins a transaction and copies everything except tasks. If a row cannot be
// read, it is lost or replaced by a new one: a pause, the measurements of a host, the
// secret.
func (r *repair) copyTables() {
	r.to.exec("BEGIN")
	for _, table := range []string{"meta", "key", "schedule", "queue", "host"} {
		r.copy(table, "true")
	}
	r.to.exec("UPDATE queue SET queued = 0, running = 0") // tasks are counted when they are saved
	r.to.exec("UPDATE host SET waiting = 0")
}

// read reads with checksums verified. If that fails, it reads again without verifying
// them, and doubtful is true.
func (r *repair) read(f func(*conn) error) (doubtful bool) {
	if f(r.strict) == nil {
		return false
	}
	_ = f(r.lax) // what was read before the error is kept
	return true
}

// copy copies the rows of a table that match a condition, up to the first one that cannot
// be read. doubtful is set if a page has a wrong checksum.
func (r *repair) copy(table, where string, args ...any) (doubtful bool) {
	var rows [][]any
	doubtful = r.read(func(c *conn) error {
		rows = nil
		c.query("SELECT * FROM "+table+" WHERE "+where, args, func(s *sqlite3.Stmt) bool {
			values := make([]any, s.ColumnCount())
			if s.Columns(values...) == nil {
				rows = append(rows, values)
			}
			return true
		})
		return c.failed()
	})
	for _, values := range rows {
		marks := strings.Repeat(", ?", len(values))[2:]
		r.to.exec("INSERT OR REPLACE INTO "+table+" VALUES ("+marks+")", values...)
		if errors.Is(r.to.err, sqlite3.CONSTRAINT) {
			r.to.err = nil // a damaged row is lost
		}
	}
	return doubtful
}

// maxSeq is above all positions of tasks.
const maxSeq = 1 << 62

// next returns the first readable task from seq on. After an unreadable range it searches
// ahead in growing steps, and then back for the end of the range.
func (r *repair) next(seq int64) (found int64, ok bool) {
	found, ok, err := r.from(seq)
	bad, at := seq, seq
	for step := int64(1); err != nil && at < maxSeq; step *= 2 {
		bad, at = at, at+step
		found, ok, err = r.from(at)
	}
	for err == nil && at-bad > 1 {
		middle := bad + (at-bad)/2
		if n, more, err := r.from(middle); err == nil {
			at, found, ok = middle, n, more
		} else {
			bad = middle
		}
	}
	return found, ok && err == nil
}

// from returns the first task from seq on. It returns an error if its page cannot be read.
func (r *repair) from(seq int64) (n int64, ok bool, err error) {
	n, ok = r.lax.number("SELECT seq FROM task NOT INDEXED WHERE seq >= ? ORDER BY seq LIMIT 1", seq)
	return n, ok, r.lax.failed()
}

// save copies and counts a task.
func (r *repair) save(count *tx, seq int64) error {
	doubtful := r.copy("task", "seq = ?", seq)
	found, rec := r.decode(seq)
	if rec == nil {
		r.lost++
		r.to.exec("DELETE FROM task WHERE seq = ?", seq)
		return r.to.failed()
	}
	bodiless := false
	if !r.copyBody(seq, engine.RequestBody, found.request) {
		bodiless, found.request = true, -1
		r.to.exec("UPDATE task SET request = NULL WHERE seq = ?", seq)
	}
	if !r.copyBody(seq, engine.ResultBody, found.result) {
		bodiless, found.result = true, -1
		r.to.exec("UPDATE task SET result = NULL WHERE seq = ?", seq)
	}
	if bodiless {
		r.bodiless++
	}
	if doubtful {
		r.doubtful++
		r.correct(found, rec)
	}
	found.place.size = size(found.doc, found.request, found.result)
	count.count(found.place, 1)
	if r.saved++; r.saved%repairBatch == 0 {
		r.to.exec("COMMIT")
		r.to.exec("BEGIN")
	}
	return r.to.failed()
}

// decode reads a task that was copied. rec is nil if the task is not there or is damaged.
func (r *repair) decode(seq int64) (found *row, rec *task.Record) {
	rows := all(r.to, " WHERE seq = ?", seq)
	if len(rows) == 0 || rows[0].place.state < 0 || rows[0].place.state >= states {
		return nil, nil
	}
	rec, _ = rows[0].record()
	return rows[0], rec
}

// correct sets the columns of a doubtful task from its record. One wrong bit moves a time
// by years: the task would start late, or its callback would be given up without an
// attempt. In the record, most damage is noticed.
func (r *repair) correct(found *row, rec *task.Record) {
	now := time.Now().UnixNano()
	var at, since int64
	var holder any
	switch found.place.state {
	case queued:
		at = cmp.Or(nanos(rec.NextAttemptAt), nanos(rec.CreatedAt), now)
	case running:
		at, holder = cmp.Or(nanos(rec.CreatedAt), now), 0 // the lease expires at the next start
	case delivering:
		at, since = now, nanos(rec.FinishedAt)
		if n := len(rec.Redelivered); n > 0 {
			since = max(since, nanos(rec.Redelivered[n-1]))
		}
	default:
		since = max(nanos(rec.FinishedAt), nanos(rec.DeliveredAt))
	}
	found.place.held, found.place.host = holder != nil, hostOf(rec)
	r.to.exec("UPDATE task SET host = ?, status = ?, holder = ?, at = ?, since = ?, schedule = ? WHERE seq = ?",
		opt(found.place.host), opt(statusOf(rec.Status)), holder, opt(at), min(cmp.Or(since, now), now), opt(rec.Schedule), found.seq)
}

// copyBody copies a body of size bytes, if there is one. It reports whether the body is
// there and undamaged.
func (r *repair) copyBody(seq int64, part engine.Part, size int64) bool {
	if size <= 0 {
		return true // it has no row
	}
	r.copy("body", "id = ?", bodyID(seq, part))
	b := loadBody(r.to, seq, part, size)
	sound := int64(len(b.bytes)) == size && sumOf(b.bytes) == b.sum
	if b.file != "" && filepath.Base(b.file) == b.file {
		info, err := os.Stat(filepath.Join(r.bodies, b.file))
		sound = err == nil && info.Size() == size
	}
	if !sound {
		r.to.exec("DELETE FROM body WHERE id = ?", bodyID(seq, part))
	}
	return sound
}
