package sqlite

import (
	"cmp"
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

// scanTime is how long a page looks at tasks that may not match.
const scanTime = 20 * time.Millisecond

// position is a task's place in lists: by acceptance, newest first.
type position struct{ created, seq int64 }

// before says whether p is listed before q.
func (p position) before(q position) bool {
	return cmp.Or(cmp.Compare(p.created, q.created), cmp.Compare(p.seq, q.seq)) > 0
}

func (p position) cursor() engine.Cursor {
	return engine.Cursor(strconv.FormatInt(p.created, 36) + "." + strconv.FormatInt(p.seq, 36))
}

func parseCursor(c engine.Cursor) (position, error) {
	if c == "" {
		return position{math.MaxInt64, math.MaxInt64}, nil
	}
	first, second, _ := strings.Cut(string(c), ".")
	created, err := strconv.ParseInt(first, 36, 64)
	if err != nil {
		return position{}, fmt.Errorf("%w: %q", engine.ErrCursor, c)
	}
	seq, err := strconv.ParseInt(second, 36, 64)
	if err != nil {
		return position{}, fmt.Errorf("%w: %q", engine.ErrCursor, c)
	}
	return position{created, seq}, nil
}

// stream is a part of an index that is read backwards, some tasks at a time.
type stream struct {
	query  string // with value, the bounds of created, and the position before
	value  int64
	from   int64 // created at the earliest
	next   []position
	last   position
	atEnd  bool
	number int // how many to read next
}

const streamQuery = `SELECT created, seq FROM task INDEXED BY task_%[1]s WHERE %[1]s = ? %[2]s
	AND created >= ? AND (created, seq) < (?, ?) ORDER BY created DESC, seq DESC LIMIT ?`

var streamQueries = map[string]string{
	"state": fmt.Sprintf(streamQuery, "state", ""), "queue": fmt.Sprintf(streamQuery, "queue", "AND queue IS NOT NULL"),
	"host": fmt.Sprintf(streamQuery, "host", "AND host IS NOT NULL"), "status": fmt.Sprintf(streamQuery, "status", "AND status > 1"),
}

// peek returns the next position, if there is one.
func (st *stream) peek(c *conn) (position, bool, error) {
	if len(st.next) == 0 && !st.atEnd {
		err := c.query(st.query, []any{st.value, st.from, st.last.created, st.last.seq, st.number}, func(s *sqlite3.Stmt) bool {
			st.next = append(st.next, position{s.ColumnInt64(0), s.ColumnInt64(1)})
			return true
		})
		if err != nil {
			return position{}, false, err
		}
		st.atEnd = len(st.next) < st.number
		st.number = 1000
	}
	if len(st.next) == 0 {
		return position{}, false, nil
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

// lister makes one page.
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

func (l *lister) list(from position) error {
	ok, err := l.resolve()
	if err != nil || !ok {
		return err
	}
	if !l.f.Before.IsZero() {
		from = earlier(from, position{nanos(l.f.Before), math.MinInt64})
	}
	streams, err := l.streams(from)
	if err != nil {
		return err
	}
	var last position
	for {
		var first *stream
		var at position
		for _, st := range streams {
			p, ok, err := st.peek(l.c)
			if err != nil {
				return err
			}
			if ok && (first == nil || p.before(at)) {
				first, at = st, p
			}
		}
		if first == nil {
			return nil
		}
		if len(l.page.Tasks) == l.limit || l.page.Scanned > 0 && l.page.Scanned%16 == 0 && time.Since(l.begun) > scanTime {
			l.page.Next = last.cursor()
			return nil
		}
		first.pop()
		last = at
		l.page.Scanned++
		if err := l.consider(at.seq); err != nil {
			return err
		}
	}
}

func earlier(p, q position) position {
	if p.before(q) {
		return q
	}
	return p
}

// resolve finds the rows of the names that a filter has. ok is false if nothing
// can match.
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

// fewTasks is how many tasks of a state are few enough to look at all of them.
const fewTasks = 1000

// streams returns what is to be looked at: the smallest index that has all that
// can match.
func (l *lister) streams(from position) ([]*stream, error) {
	if l.f.IDPrefix != "" {
		if st, ok, err := l.byPrefix(from); err != nil || ok {
			return []*stream{st}, err
		}
	}
	column, values := "state", []int64{}
	few := int64(0)
	l.s.mu.Lock()
	for i, name := range stateNames {
		if len(l.f.States) == 0 || slices.Contains(l.f.States, name) {
			values = append(values, int64(i))
			few += l.s.counts[i]
		}
	}
	l.s.mu.Unlock()
	switch {
	case len(l.f.States) > 0 && few <= fewTasks:
	case len(l.hosts) > 0:
		column, values = "host", l.hosts
	case l.queue != 0:
		column, values = "queue", []int64{l.queue}
	case len(l.f.Statuses) > 0 && !slices.Contains(l.f.Statuses, task.Complete):
		column, values = "status", nil
		for _, v := range l.f.Statuses {
			values = append(values, statusOf(v))
		}
	}
	var streams []*stream
	for _, v := range values {
		streams = append(streams, &stream{
			query: streamQueries[column], value: v, from: math.MinInt64, last: from, number: l.limit + 1,
		})
		if !l.f.After.IsZero() {
			streams[len(streams)-1].from = nanos(l.f.After)
		}
	}
	return streams, nil
}

// byPrefix returns the tasks whose ID begins with what is asked for, if they are
// few.
func (l *lister) byPrefix(from position) (*stream, bool, error) {
	low, high := prefixRange(l.f.IDPrefix)
	text := append([]byte{0}, l.f.IDPrefix...)
	st := &stream{atEnd: true}
	n := 0
	err := l.c.query("SELECT created, seq FROM task WHERE id >= ? AND id < ? UNION ALL SELECT created, seq FROM task WHERE id >= ? AND id < ? LIMIT ?",
		[]any{low, high, text, append(slices.Clone(text), 0xff), fewTasks + 1}, func(s *sqlite3.Stmt) bool {
			p := position{s.ColumnInt64(0), s.ColumnInt64(1)}
			if n++; from.before(p) && (l.f.After.IsZero() || p.created >= nanos(l.f.After)) {
				st.next = append(st.next, p)
			}
			return true
		})
	if err != nil || n > fewTasks {
		return nil, false, err
	}
	slices.SortFunc(st.next, func(p, q position) int {
		if p.before(q) {
			return -1
		}
		return 1
	})
	return st, true, nil
}

// prefixRange returns the range of the UUIDs that begin with a prefix; an empty one
// if none does.
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
	var r *row
	status := int64(0)
	err := l.c.query("SELECT "+taskColumns+", t.status FROM task t JOIN record r ON r.seq = t.seq WHERE t.seq = ?", []any{seq},
		func(s *sqlite3.Stmt) bool {
			r, status = scanRow(s), s.ColumnInt64(18)
			return false
		})
	if err != nil || r == nil {
		return err
	}
	f := &l.f
	if len(f.States) > 0 && !slices.Contains(f.States, stateNames[r.place.state]) ||
		len(f.Statuses) > 0 && (status == 0 || !slices.Contains(f.Statuses, verdicts[status])) ||
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
