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

const (
	// scanTime bounds how long a page examines tasks that may not match.
	scanTime = 20 * time.Millisecond
	// fewTasks is the number of candidates up to which all of them are examined.
	fewTasks = 1000
	// maxRanges is how many ranges of an index are merged.
	maxRanges = 32
)

// List implements [engine.Tasks].
func (s *store) List(ctx context.Context, f engine.Filter, after engine.Cursor, limit int) (page *engine.Page, err error) {
	before := int64(math.MaxInt64)
	if position, err := after.Position(); err != nil {
		return nil, err
	} else if position != "" {
		if before, err = strconv.ParseInt(position, 36, 64); err != nil {
			return nil, fmt.Errorf("%w: %q", engine.ErrCursor, after)
		}
	}
	if !f.Before.IsZero() {
		before = min(before, nanos(f.Before))
	}
	err = s.read(ctx, func(c *conn) (err error) {
		l := &lister{c: c, f: f, holder: s.holder, from: max(0, nanos(f.After)), before: before}
		page, err = l.list(max(1, limit))
		return err
	})
	return page, err
}

// lister builds one page.
type lister struct {
	c            *conn
	f            engine.Filter
	holder       int64
	from, before int64 // the range of seq
	hosts        []string

	ranges []string // of the index that has all candidates
	args   []any
}

func (l *lister) list(limit int) (*engine.Page, error) {
	page := new(engine.Page)
	if l.findHosts(); l.f.Host != "" && len(l.hosts) == 0 {
		return page, nil
	}
	l.choose()
	begun, last := time.Now(), l.before
	var damaged error
	// Each range is in the order of seq. SQLite merges them.
	l.c.query(strings.Join(l.ranges, " UNION ALL ")+" ORDER BY seq DESC", l.args, func(stmt *sqlite3.Stmt) bool {
		if len(page.Tasks) == limit || page.Scanned > 0 && page.Scanned%16 == 0 && time.Since(begun) > scanTime {
			page.Next = engine.NewCursor(strconv.FormatInt(last, 36))
			return false
		}
		page.Scanned++
		r := scanRow(stmt)
		last = r.seq
		if !l.matches(r) {
			return true
		}
		rec, err := r.record()
		if err != nil {
			damaged = err
			return false
		}
		if l.f.Match(rec) {
			page.Tasks = append(page.Tasks, rec)
		}
		return true
	})
	return page, damaged
}

// findHosts finds the hosts that a filter names, with or without a port.
func (l *lister) findHosts() {
	if l.f.Host == "" {
		return
	}
	// An IPv6 address has brackets only with a port. Each step of the recursion finds
	// the next host in the index.
	for _, span := range [][2]string{
		{l.f.Host, l.f.Host + "\x00"}, {l.f.Host + ":", l.f.Host + ";"}, {"[" + l.f.Host + "]:", "[" + l.f.Host + "];"},
	} {
		l.c.query(`WITH RECURSIVE found(host) AS (
			SELECT min(host) FROM task WHERE host >= ?1 AND host < ?2
			UNION ALL SELECT (SELECT min(host) FROM task WHERE host > found.host AND host < ?2) FROM found WHERE found.host IS NOT NULL)
			SELECT host FROM found WHERE host IS NOT NULL LIMIT 1000`, []any{span[0], span[1]}, func(r *sqlite3.Stmt) bool {
			l.hosts = append(l.hosts, r.ColumnText(0))
			return true
		})
	}
}

// add adds the ranges of an index that have one of the values.
func add[T any](l *lister, where string, values ...T) {
	for _, v := range values {
		l.ranges = append(l.ranges, selectTask+where+" AND seq >= ? AND seq < ?")
		l.args = append(l.args, v, l.from, l.before)
	}
}

// choose chooses the smallest index that has all candidates.
func (l *lister) choose() {
	var wanted []int
	tasks, held := int64(0), false
	l.c.tally(func(name task.State, n int64) {
		if slices.Contains(l.f.States, name) {
			state := slices.Index(stateNames[:], name)
			wanted = append(wanted, state)
			tasks += n
			held = held || state == running || state == delivering
		}
	})
	few := len(wanted) > 0 && tasks <= fewTasks
	if prefix := l.f.IDPrefix; prefix != "" {
		n, _ := l.c.number("SELECT count(*) FROM (SELECT 1 FROM task WHERE id >= ? AND id < ? LIMIT ?)", prefix, prefix+"\x7f", fewTasks+1)
		if n <= fewTasks {
			add(l, " INDEXED BY task_id WHERE id < ?", prefix+"\x7f")
			l.ranges[0] += " AND id >= ?"
			l.args = append(l.args, prefix)
			return
		}
	}
	switch f := &l.f; {
	case few:
	case len(l.hosts) > 0 && len(l.hosts) <= maxRanges:
		add(l, " INDEXED BY task_host WHERE host = ?", l.hosts...)
	case f.Queue != "":
		add(l, " INDEXED BY task_queue WHERE queue = ?", f.Queue)
	case len(f.Statuses) > 0 && !slices.Contains(f.Statuses, task.Complete):
		for _, v := range f.Statuses {
			add(l, " INDEXED BY task_status WHERE status > 1 AND status = ?", statusOf(v))
		}
	case len(f.States) == 0:
		add(l, " NOT INDEXED WHERE ? = 0", 0)
	}
	if l.ranges == nil {
		add(l, " INDEXED BY task_state WHERE holder IS NULL AND state = ?", wanted...)
		if held || l.ranges == nil {
			add(l, " INDEXED BY task_holder WHERE holder = ?", l.holder)
		}
	}
}

// matches compares the columns of a task with the filter.
func (l *lister) matches(r *row) bool {
	f := &l.f
	return (len(f.States) == 0 || slices.Contains(f.States, stateNames[r.place.state])) &&
		(len(f.Statuses) == 0 || r.status != 0 && slices.Contains(f.Statuses, verdicts[r.status])) &&
		(f.Queue == "" || f.Queue == r.place.queue) &&
		(f.Host == "" || slices.Contains(l.hosts, r.place.host)) && strings.HasPrefix(r.id, f.IDPrefix)
}
