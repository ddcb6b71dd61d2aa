package sqlite

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/ncruces/go-sqlite3"
)

// conn is a connection with its prepared statements. Only one goroutine uses it at a
// time. After a statement has failed, statements do nothing until failed is called: a
// transaction runs to its end, and one check then tells whether to roll it back.
type conn struct {
	*sqlite3.Conn
	stmts map[string]*sqlite3.Stmt
	err   error // of the first statement that failed
}

// failed returns the error of the statements since the last call.
func (c *conn) failed() error {
	err := c.err
	c.err = nil
	return err
}

// openConn opens a connection to the database in a file.
func openConn(file, vfsName string, flags sqlite3.OpenFlag) (*conn, error) {
	// In a URI, a drive letter needs a leading slash.
	path := filepath.ToSlash(file)
	if filepath.VolumeName(file) != "" {
		path = "/" + path
	}
	uri := url.URL{Scheme: "file", Path: path, RawQuery: "vfs=" + vfsName}
	c, err := sqlite3.OpenFlags(uri.String(), flags|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, stmts: map[string]*sqlite3.Stmt{}}, nil
}

// prepare returns the statement of a constant query, with its arguments bound. It returns
// nil if the connection has failed.
func (c *conn) prepare(query string, args []any) *sqlite3.Stmt {
	stmt := c.stmts[query]
	if stmt == nil && c.err == nil {
		var err error
		if stmt, _, err = c.PrepareFlags(query, sqlite3.PREPARE_PERSISTENT); err != nil {
			c.err = fmt.Errorf("preparing %q: %w", query, err)
		} else {
			c.stmts[query] = stmt
		}
	}
	for i := 0; i < len(args) && c.err == nil; i++ {
		c.err = bind(stmt, i+1, args[i])
	}
	if c.err != nil {
		return nil
	}
	return stmt
}

// opt returns nil, which binds NULL, for a zero value.
func opt[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}

func bind(stmt *sqlite3.Stmt, i int, arg any) error {
	switch v := arg.(type) {
	case nil:
		return stmt.BindNull(i)
	case int64:
		return stmt.BindInt64(i, v)
	case int:
		return stmt.BindInt64(i, int64(v))
	case float64: // of a damaged row
		return stmt.BindFloat(i, v)
	case bool:
		return stmt.BindBool(i, v)
	case string:
		return stmt.BindText(i, v)
	case []byte:
		if v == nil {
			return stmt.BindZeroBlob(i, 0)
		}
		return stmt.BindBlob(i, v)
	}
	// Without arg in the error: it would move the arguments of all statements to the heap.
	return fmt.Errorf("argument %d has a type that cannot be bound", i)
}

// exec runs a statement that returns no rows.
func (c *conn) exec(query string, args ...any) {
	if stmt := c.prepare(query, args); stmt != nil {
		c.err = stmt.Exec()
	}
}

// query runs a statement and calls row for each of its rows, until row returns false.
func (c *conn) query(query string, args []any, row func(*sqlite3.Stmt) bool) {
	stmt := c.prepare(query, args)
	if stmt == nil {
		return
	}
	for stmt.Step() && row(stmt) {
	}
	c.err = cmp.Or(c.err, stmt.Err())
	_ = stmt.Reset() // repeats the error of the step
}

// number runs a statement and returns the first column of its first row. ok is false if
// there is no row or the column is NULL.
func (c *conn) number(query string, args ...any) (n int64, ok bool) {
	c.query(query, args, func(s *sqlite3.Stmt) bool {
		n, ok = s.ColumnInt64(0), s.ColumnType(0) != sqlite3.NULL
		return false
	})
	return n, ok
}

// text runs a statement and returns the first column of its first row. It returns "" if
// there is no row or the column is NULL.
func (c *conn) text(query string, args ...any) (text string) {
	c.query(query, args, func(s *sqlite3.Stmt) bool {
		text = s.ColumnText(0)
		return false
	})
	return text
}

func (c *conn) close() error {
	c.SetInterrupt(context.Background())
	for _, stmt := range c.stmts {
		_ = stmt.Close()
	}
	clear(c.stmts)
	return c.Conn.Close()
}
