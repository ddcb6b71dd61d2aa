package sqlite

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// scanTime bounds how long a page examines tasks that may not match.
const scanTime = 20 * time.Millisecond

func cursorAt(seq int64) engine.Cursor { return engine.Cursor(strconv.FormatInt(seq, 36)) }

// parseCursor returns the position of the task after which a list continues.
func parseCursor(c engine.Cursor) (int64, error) {
	if c == "" {
		return math.MaxInt64, nil
	}
	seq, err := strconv.ParseInt(string(c), 36, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %q", engine.ErrCursor, c)
	}
	return seq, nil
}

// stream is a range of an index or of the table. It is read backwards in small batches.
type stream struct {
	query  string // with the placeholders of value and the bounds of seq
	value  int64
	from   int64 // the lowest seq
	next   []int64
	last   int64
	atEnd  bool
	number int // size of the next batch
}

const streamBounds = " AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?"

// streamQueries has the query of each index.
var streamQueries = map[string]string{
	"all":    "SELECT seq FROM task NOT INDEXED WHERE ? = 0" + streamBounds,
	"holder": "SELECT seq FROM task INDEXED BY task_holder WHERE holder = ?" + streamBounds,
	"state":  "SELECT seq FROM task INDEXED BY task_state WHERE holder IS NULL AND state = ?" + streamBounds,
	"queue":  "SELECT seq FROM task INDEXED BY task_queue WHERE queue = ?" + streamBounds,
	"host":   "SELECT seq FROM task INDEXED BY task_host WHERE host = ?" + streamBounds,
	"status": "SELECT seq FROM task INDEXED BY task_status WHERE status > 1 AND status = ?" + streamBounds,
}

// peek returns the next task, if there is one.
func (st *stream) peek(c *conn) (int64, bool, error) {
	if len(st.next) == 0 && !st.atEnd {
		err := c.query(st.query, []any{st.value, st.from, st.last, st.number}, func(s *sqlite3.Stmt) bool {
			st.next = append(st.next, s.ColumnInt64(0))
			return true
		})
		if err != nil {
			return 0, false, err
		}
		st.atEnd = len(st.next) < st.number
		st.number = 1000
	}
	if len(st.next) == 0 {
		return 0, false, nil
	}
	return st.next[0], true, nil
}

func (st *stream) pop() {
	st.last, st.next = st.next[0], st.next[1:]
}

// List implements [engine.Tasks].
func (s *store) List(ctx context.Context, f engine.Filter, after engine.Cursor, limit int) (*engine.Page, error) {
	from, err := parseCursor(after)
	if err != nil {
		return nil, err
	}
	limit = max(1, limit)
	var page *engine.Page
	err = s.read(ctx, func(c *conn) error {
		l := &lister{s: s, c: c, f: f, limit: limit, begun: time.Now(), page: new(engine.Page)}
		page = l.page
		return l.list(from)
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// lister builds one page.
type lister struct {
	s     *store
	c     *conn
	f     engine.Filter
	limit int
	begun time.Time
	page  *engine.Page

	queue int64
	hosts []int64
}

func (l *lister) list(before int64) error {
	ok, err := l.resolve()
	if err != nil || !ok {
		return err
	}
	if !l.f.Before.IsZero() {
		before = min(before, nanos(l.f.Before))
	}
	streams, err := l.streams(before)
	if err != nil {
		return err
	}
	for {
		var first *stream
		seq := int64(-1)
		for _, st := range streams {
			n, ok, err := st.peek(l.c)
			if err != nil {
				return err
			}
			if ok && n > seq {
				first, seq = st, n
			}
		}
		if first == nil {
			return nil
		}
		if len(l.page.Tasks) == l.limit || l.page.Scanned > 0 && l.page.Scanned%16 == 0 && time.Since(l.begun) > scanTime {
			l.page.Next = cursorAt(before)
			return nil
		}
		first.pop()
		before = seq
		l.page.Scanned++
		if err := l.consider(seq); err != nil {
			return err
		}
	}
}

// resolve finds the rows for the names in a filter. ok is false if nothing can match.
func (l *lister) resolve() (ok bool, err error) {
	if l.f.Queue != "" {
		if l.queue, ok, err = l.c.number("SELECT id FROM queue WHERE name = ?", l.f.Queue); err != nil || !ok {
			return false, err
		}
	}
	if l.f.Host == "" {
		return true, nil
	}
	// An IPv6 address has brackets only with a port.
	err = l.c.query(`SELECT id FROM host WHERE name = ?1 OR name >= ?1 || ':' AND name < ?1 || ';'
		OR name >= '[' || ?1 || ']:' AND name < '[' || ?1 || '];' LIMIT 1000`, []any{l.f.Host},
		func(s *sqlite3.Stmt) bool {
			l.hosts = append(l.hosts, s.ColumnInt64(0))
			return true
		})
	return len(l.hosts) > 0, err
}

// fewTasks is the number of tasks of a state up to which all of them are examined.
const fewTasks = 1000

// streams returns the streams to read: the smallest index that has all candidates.
func (l *lister) streams(before int64) (streams []*stream, err error) {
	after := int64(0)
	if !l.f.After.IsZero() {
		after = nanos(l.f.After)
	}
	if l.f.IDPrefix != "" {
		if st, ok, err := l.byPrefix(after, before); err != nil || ok {
			return []*stream{st}, err
		}
	}
	add := func(index string, values ...int64) {
		for _, v := range values {
			streams = append(streams, &stream{query: streamQueries[index], value: v, from: after, last: before, number: l.limit + 1})
		}
	}
	var wanted []int64
	few, held := int64(0), false
	l.s.mu.Lock()
	for i, name := range stateNames {
		if slices.Contains(l.f.States, name) {
			wanted = append(wanted, int64(i))
			few += l.s.counts[i]
			held = held || i == running || i == delivering
		}
	}
	l.s.mu.Unlock()
	byState := len(wanted) > 0 && few <= fewTasks
	switch {
	case byState:
	case len(l.hosts) > 0:
		add("host", l.hosts...)
	case l.queue != 0:
		add("queue", l.queue)
	case len(l.f.Statuses) > 0 && !slices.Contains(l.f.Statuses, task.Complete):
		for _, v := range l.f.Statuses {
			add("status", statusOf(v))
		}
	case len(l.f.States) == 0:
		add("all", 0)
	default:
		byState = true
	}
	if byState {
		add("state", wanted...)
		if held {
			add("holder", l.s.holder)
		}
	}
	return streams, nil
}

// byPrefix returns the tasks whose ID has the prefix of the filter. ok is false if
// there are too many.
func (l *lister) byPrefix(after, before int64) (*stream, bool, error) {
	low, high := prefixRange(l.f.IDPrefix)
	text := append([]byte{0}, l.f.IDPrefix...)
	st := &stream{atEnd: true}
	n := 0
	err := l.c.query("SELECT seq FROM task WHERE id >= ? AND id < ? UNION ALL SELECT seq FROM task WHERE id >= ? AND id < ? LIMIT ?",
		[]any{low, high, text, append(slices.Clone(text), 0xff), fewTasks + 1}, func(s *sqlite3.Stmt) bool {
			n++
			if seq := s.ColumnInt64(0); seq >= after && seq < before {
				st.next = append(st.next, seq)
			}
			return true
		})
	slices.Sort(st.next)
	slices.Reverse(st.next)
	return st, n <= fewTasks, err
}

// prefixRange returns the range of the UUIDs with a prefix. The range is empty if no
// UUID has the prefix.
func prefixRange(prefix string) (low, high []byte) {
	digits := strings.ReplaceAll(prefix, "-", "")
	if len(digits) > 32 {
		return []byte{}, []byte{}
	}
	low, high = make([]byte, 16), slices.Repeat([]byte{0xff}, 17)
	for i, d := range []byte(digits) {
		n, err := strconv.ParseUint(string(d), 16, 8)
		if err != nil || d >= 'A' && d <= 'F' {
			return []byte{}, []byte{}
		}
		shift := 4 * (1 - i%2)
		low[i/2] |= byte(n) << shift
		high[i/2] = high[i/2]&^(0xf<<shift) | byte(n)<<shift
	}
	return low, high
}

// consider adds a task to the page if it matches.
func (l *lister) consider(seq int64) error {
	r, err := one(l.c, " WHERE seq = ?", seq)
	if err != nil || r == nil {
		return err
	}
	f := &l.f
	if len(f.States) > 0 && !slices.Contains(f.States, stateNames[r.place.state]) ||
		len(f.Statuses) > 0 && (r.status == 0 || !slices.Contains(f.Statuses, verdicts[r.status])) ||
		l.queue != 0 && r.place.queue != l.queue ||
		len(l.hosts) > 0 && !slices.Contains(l.hosts, r.place.host) ||
		!strings.HasPrefix(r.id, f.IDPrefix) {
		return nil
	}
	rec, err := r.record()
	if err != nil {
		return err
	}
	if f.Match(rec) {
		l.page.Tasks = append(l.page.Tasks, rec)
	}
	return nil
}
