package sqlite

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
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
const selectTask = `SELECT seq, id, state, version, holder IS NOT NULL, queue, host, domain, coalesce(status, 0), starts, max_starts,
	at, since, coalesce(request, -1), coalesce(result, -1), doc FROM task`

func scanRow(s *sqlite3.Stmt) *row {
	r := &row{
		seq: s.ColumnInt64(0), id: nameOf(s.ColumnRawBlob(1)), version: s.ColumnInt64(3),
		status: s.ColumnInt64(8), starts: s.ColumnInt64(9), maxStarts: s.ColumnInt64(10), at: s.ColumnInt64(11), since: s.ColumnInt64(12),
		request: s.ColumnInt64(13), result: s.ColumnInt64(14), doc: s.ColumnBlob(15, nil),
	}
	r.place = place{
		state: s.ColumnInt(2), held: s.ColumnBool(4), queue: s.ColumnInt64(5), host: s.ColumnInt64(6), domain: s.ColumnInt64(7),
		size: int64(len(r.doc)) + max(0, r.request) + max(0, r.result),
	}
	return r
}

// all returns the tasks that match a query whose first part is selectTask.
func all(c *conn, where string, args ...any) (rows []*row, err error) {
	err = c.query(selectTask+where, args, func(s *sqlite3.Stmt) bool {
		rows = append(rows, scanRow(s))
		return true
	})
	return rows, err
}

// one returns the first task that matches. It returns nil if there is none.
func one(c *conn, where string, args ...any) (*row, error) {
	rows, err := all(c, where, args...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return rows[0], nil
}

var stateNames = [states]task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead}

func stateOf(name task.State) (int, bool) {
	for i, n := range stateNames {
		if n == name {
			return i, true
		}
	}
	return 0, false
}

// record decodes the document of a row. Columns take precedence over the document.
func (r *row) record() (*task.Record, error) {
	rec, err := task.Decode(r.doc)
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", r.id, err)
	}
	rec.ID, rec.State, rec.Version = r.id, stateNames[r.place.state], uint64(r.version)
	if r.place.queue != 0 {
		rec.Starts = int(r.starts)
		if r.place.state == running {
			rec.StartedAt, rec.NextAttemptAt = timeOf(r.since), time.Time{}
		}
	}
	if r.place.state == delivering && !rec.NextAttemptAt.IsZero() {
		rec.NextAttemptAt = timeOf(r.at)
	}
	return rec, nil
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
	r.State = ""
	doc, err := task.Encode(&r)
	if err != nil {
		return nil, fmt.Errorf("%w: encoding the record: %w", engine.ErrTooLarge, err)
	}
	return doc, nil
}

// keyOf returns an ID as stored. UUIDs are stored as 16 bytes. Only tasks of other
// stores have other IDs.
func keyOf(id string) []byte {
	if u, err := uuid.Parse(id); err == nil && u.String() == id {
		return u[:]
	}
	return append([]byte{0}, id...)
}

// listedAt returns the position of a task in lists. The IDs order tasks that were accepted
// at the same time: their 12 bits after the version count up. The position is therefore
// the same in every store that the tasks are copied to.
func listedAt(created int64, key []byte) int64 {
	created = min(max(created, 0), 1<<61) // bodyID has room for that
	if len(key) != 16 {
		return created
	}
	return created + int64(key[6]&0xf)<<8 + int64(key[7])
}

// nameOf returns the ID for a stored ID.
func nameOf(key []byte) string {
	if u, err := uuid.FromBytes(key); err == nil && key[0] != 0 {
		return u.String()
	}
	if len(key) == 16 && key[0] == 0 && !isText(key[1:]) {
		return uuid.UUID(key).String()
	}
	return strings.TrimPrefix(string(key), "\x00")
}

func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
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
	if rec.CallbackHost != "" {
		return rec.CallbackHost
	}
	u, err := url.Parse(rec.Callback.URL)
	if err != nil || u.Host == "" {
		return "unknown:0" // the callback exists nevertheless, and will become a dead letter
	}
	if u.Port() == "" {
		port := "80"
		if u.Scheme == "https" {
			port = "443"
		}
		return net.JoinHostPort(u.Hostname(), port)
	}
	return u.Host
}

var verdicts = []task.Verdict{1: task.Complete, 2: task.Failed, 3: task.TimedOut}

// statusOf returns a verdict as stored; 0 means none.
func statusOf(v task.Verdict) int64 {
	for i, name := range verdicts {
		if i > 0 && name == v {
			return int64(i)
		}
	}
	return 0
}

// find returns a task by its ID. It returns ErrNotFound if there is none.
func find(c *conn, id string) (*row, error) {
	r, err := one(c, " WHERE id = ?", keyOf(id))
	if err == nil && r == nil {
		err = fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	return r, err
}

// Get implements [engine.Tasks].
func (s *store) Get(ctx context.Context, id string) (*task.Record, error) {
	var rec *task.Record
	err := s.read(ctx, func(c *conn) error {
		r, err := find(c, id)
		if err != nil {
			return err
		}
		rec, err = r.record()
		return err
	})
	return rec, err
}
