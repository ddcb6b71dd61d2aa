package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// row is a task as it is stored.
type row struct {
	seq       int64
	id        string
	version   int64
	place     place
	created   int64
	starts    int64
	maxStarts int64 // 0 for none
	at, since int64
	request   int64 // -1 if it is not kept
	result    int64 // -1 if it is not kept
	doc       []byte
	progress  []byte
}

// taskColumns are what scanRow reads, of task t and record r.
const (
	taskColumns = `t.seq, t.id, t.state, t.version, t.created, t.queue, t.host, t.trusted, t.domain,
		t.starts, t.max_starts, t.at, t.since, t.request, t.result, t.size, r.doc, t.progress`
	selectTask = "SELECT " + taskColumns + " FROM task t JOIN record r ON r.seq = t.seq"
)

func scanRow(s *sqlite3.Stmt) *row {
	r := &row{
		seq: s.ColumnInt64(0), id: nameOf(s.ColumnRawBlob(1)), version: s.ColumnInt64(3), created: s.ColumnInt64(4),
		starts: s.ColumnInt64(9), maxStarts: s.ColumnInt64(10), at: s.ColumnInt64(11), since: s.ColumnInt64(12),
		request: -1, result: -1, doc: s.ColumnBlob(16, nil), progress: s.ColumnBlob(17, nil),
		place: place{
			state: s.ColumnInt(2), queue: s.ColumnInt64(5), host: s.ColumnInt64(6), trusted: s.ColumnBool(7),
			domain: s.ColumnInt64(8), size: s.ColumnInt64(15),
		},
	}
	if s.ColumnType(13) != sqlite3.NULL {
		r.request = s.ColumnInt64(13)
	}
	if s.ColumnType(14) != sqlite3.NULL {
		r.result = s.ColumnInt64(14)
	}
	return r
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

// record decodes the document of a row. Columns win over what it says.
func (r *row) record() (*task.Record, error) {
	rec, err := decode(append(r.doc[:len(r.doc):len(r.doc)], r.progress...))
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

// decode reads the lines of a document.
func decode(doc []byte) (*task.Record, error) {
	first, rest, _ := bytes.Cut(doc, newline)
	rec, err := task.Decode(first)
	for err == nil && len(rest) > 0 {
		var line []byte
		var change *task.Record
		line, rest, _ = bytes.Cut(rest, newline)
		if change, err = task.Decode(line); err == nil {
			to, from := reflect.ValueOf(rec).Elem(), reflect.ValueOf(change).Elem()
			for _, i := range recordFields {
				if f := from.FieldByIndex(i); !f.IsZero() {
					to.FieldByIndex(i).Set(f)
				}
			}
		}
	}
	return rec, err
}

var newline = []byte("\n")

// recordFields are the fields of a record that its document has.
var recordFields = func() (fields [][]int) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[task.Record]()) {
		if !f.Anonymous && f.Name != "State" && f.Name != "Version" {
			fields = append(fields, f.Index)
		}
	}
	return fields
}()

// encodeChange returns a line with the fields of a record that have changed; nil if
// a line cannot tell, and the document must be written anew.
func encodeChange(from, to *task.Record) ([]byte, error) {
	if from.Request != to.Request {
		return nil, nil // what is forgotten of a request must go
	}
	change := new(task.Record)
	c, a, b := reflect.ValueOf(change).Elem(), reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem()
	for _, i := range recordFields {
		switch a, b := a.FieldByIndex(i), b.FieldByIndex(i); {
		case a.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 || a.Kind() != reflect.Slice && a.Equal(b):
		case b.IsZero():
			return nil, nil // a line does not have empty fields
		default:
			c.FieldByIndex(i).Set(b)
		}
	}
	line, err := encode(change)
	return append(newline[:1:1], line...), err
}

// copyOf returns a record with lists of its own.
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

// keyOf returns an ID as it is stored: UUIDs, which are all but those of other
// stores, as 16 bytes.
func keyOf(id string) []byte {
	if u, err := uuid.Parse(id); err == nil && u.String() == id {
		return u[:]
	}
	return append([]byte{0}, id...)
}

// listedAt returns where lists have a task. Of tasks that were accepted at the same
// time the IDs, whose 12 bits after the version count up, tell which is newer, in
// every store that they are copied to.
func listedAt(created int64, key []byte) int64 {
	if len(key) != 16 {
		return created
	}
	return created + int64(key[6]&0xf)<<8 + int64(key[7])
}

// nameOf returns an ID that is stored.
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

// hostOf returns the host and port that a task's callback goes to; "" if none is
// owed.
func hostOf(rec *task.Record) string {
	if rec.Callback == nil {
		return ""
	}
	if rec.CallbackHost != "" {
		return rec.CallbackHost
	}
	u, err := url.Parse(rec.Callback.URL)
	if err != nil || u.Host == "" {
		return "unknown:0" // it is owed all the same, and will be dead
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

func trusted(rec *task.Record) bool { return rec.Callback != nil && rec.Callback.Trusted }

var verdicts = []task.Verdict{1: task.Complete, 2: task.Failed, 3: task.TimedOut}

// statusOf returns a verdict as it is stored; 0 for none.
func statusOf(v task.Verdict) int64 {
	for i, name := range verdicts {
		if i > 0 && name == v {
			return int64(i)
		}
	}
	return 0
}

// find returns a task by its ID, or ErrNotFound.
func find(c *conn, id string) (r *row, err error) {
	err = c.query(selectTask+" WHERE t.id = ?", []any{keyOf(id)}, func(s *sqlite3.Stmt) bool {
		r = scanRow(s)
		return false
	})
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
