package sqlite

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// row is a task as stored.
type row struct {
	seq       int64
	id        string
	version   int64
	place     place
	status    int64
	starts    int64
	maxStarts int64 // 0 for none
	at, since int64
	request   int64 // -1 if it is not kept
	result    int64 // -1 if it is not kept
	doc       []byte
}

// selectTask selects the columns that scanRow reads.
const selectTask = `SELECT seq, id, state, version, holder IS NOT NULL, queue, host, domain, status, starts, max_starts,
	at, since, coalesce(request, -1), coalesce(result, -1), doc FROM task`

func scanRow(s *sqlite3.Stmt) *row {
	r := &row{
		seq: s.ColumnInt64(0), id: s.ColumnText(1), version: s.ColumnInt64(3),
		status: s.ColumnInt64(8), starts: s.ColumnInt64(9), maxStarts: s.ColumnInt64(10), at: s.ColumnInt64(11), since: s.ColumnInt64(12),
		request: s.ColumnInt64(13), result: s.ColumnInt64(14), doc: s.ColumnBlob(15, nil),
	}
	r.place = place{
		state: s.ColumnInt(2), held: s.ColumnBool(4), queue: s.ColumnText(5), host: s.ColumnText(6), domain: s.ColumnText(7),
		size: size(r.doc, r.request, r.result),
	}
	return r
}

// size returns what a task counts against its quota. The size of a body that is not kept
// is -1.
func size(doc []byte, request, result int64) int64 {
	return int64(len(doc)) + max(0, request) + max(0, result)
}

// all returns the tasks that match a query whose first part is selectTask.
func all(c *conn, where string, args ...any) (rows []*row) {
	c.query(selectTask+where, args, func(s *sqlite3.Stmt) bool {
		rows = append(rows, scanRow(s))
		return true
	})
	return rows
}

// find returns a task by its ID. It returns ErrNotFound if there is none.
func find(c *conn, id string) (*row, error) {
	rows := all(c, " WHERE id = ?", id)
	if len(rows) == 0 {
		return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	return rows[0], nil
}

// record decodes the document of a row.
func (r *row) record() (*task.Record, error) {
	rec, err := task.Decode(r.doc)
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", r.id, err)
	}
	r.describe(rec)
	return rec, nil
}

// describe sets the fields of a record that the row has columns for. Columns take
// precedence over the document.
func (r *row) describe(rec *task.Record) {
	rec.ID, rec.State, rec.Version = r.id, stateNames[r.place.state], uint64(r.version)
	rec.Queue, rec.CallbackDomain = r.place.queue, r.place.domain
	if r.place.queue != "" {
		rec.Starts = int(r.starts)
		if r.place.state == running {
			rec.StartedAt, rec.NextAttemptAt = timeOf(r.since), time.Time{}
		}
	}
	if r.place.state == delivering && !rec.NextAttemptAt.IsZero() {
		rec.NextAttemptAt = timeOf(r.at)
	}
}

// copyOf returns a copy of a record with its own lists.
func copyOf(rec *task.Record) *task.Record {
	r := *rec
	r.Attempts, r.Redelivered = slices.Clone(rec.Attempts), slices.Clone(rec.Redelivered)
	return &r
}

// encode returns the document of a task.
func encode(rec *task.Record) ([]byte, error) {
	r := *rec
	r.State, r.ID, r.Queue, r.CallbackDomain = "", "", "", "" // columns have them
	doc, err := task.Encode(&r)
	if err != nil {
		return nil, fmt.Errorf("%w: encoding the record: %w", engine.ErrTooLarge, err)
	}
	return doc, nil
}

// listedAt returns the position of a task in lists. The IDs order tasks that were accepted
// at the same time: their 12 bits after the version count up. The position is therefore
// the same in every store that the tasks are copied to.
func listedAt(created int64, id string) int64 {
	created = min(max(created, 0), 1<<61) // bodyID has room for that
	if len(id) != 36 {
		return created
	}
	counter, _ := strconv.ParseUint(id[15:18], 16, 12) // 0 if it is not a UUID
	return created + int64(counter)
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// hostOf returns the host and port of a task's callback. It returns "" if there is no
// callback.
func hostOf(rec *task.Record) string {
	if rec.Callback == nil {
		return ""
	}
	return cmp.Or(rec.CallbackHost, "unknown:0") // the callback becomes a dead letter
}

var verdicts = []task.Verdict{1: task.Complete, 2: task.Failed, 3: task.TimedOut}

// statusOf returns a verdict as stored; 0 means none.
func statusOf(v task.Verdict) int64 { return int64(slices.Index(verdicts[1:], v) + 1) }

// Get implements [engine.Tasks].
func (s *store) Get(ctx context.Context, id string) (rec *task.Record, err error) {
	err = s.read(ctx, func(c *conn) error {
		r, err := find(c, id)
		if err == nil {
			rec, err = r.record()
		}
		return err
	})
	return rec, err
}
