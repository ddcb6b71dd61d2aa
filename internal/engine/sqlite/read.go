package sqlite

import (
	"cmp"
	"context"
	"errors"

	"github.com/ncruces/go-sqlite3"
)

// readers is how many connections read at once. Other reads wait: a connection has
// memory and descriptors of its own.
const readers = 4

// usable returns the error of an ended context or of a closed store.
func (s *store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.isClosing() {
		return errClosed
	}
	return nil
}

// openReader opens a read-only connection.
func (s *store) openReader() (*conn, error) {
	c, err := openConn(s.file, s.fs.name, sqlite3.OPEN_READONLY)
	if err != nil {
		return nil, err
	}
	if err := c.Exec("PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY"); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// read runs f with a connection that sees one snapshot of the store. f must be short: a
// checkpoint may wait for it.
func (s *store) read(ctx context.Context, f func(*conn) error) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.life.Done():
		return errClosed
	}
	defer func() { <-s.reading }()
	var c *conn
	select {
	case c = <-s.pool:
	default:
		var err error
		if c, err = s.openReader(); err != nil {
			return s.explain(err)
		}
	}
	defer func() { s.pool <- c }()
	c.SetInterrupt(ctx)
	c.exec("BEGIN")
	err := f(c)
	err = cmp.Or(c.failed(), err)
	c.SetInterrupt(context.Background())
	c.exec("COMMIT")
	if endErr := c.failed(); endErr != nil {
		err = cmp.Or(err, errors.Join(endErr, c.Exec("ROLLBACK")))
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return s.explain(err)
}
