package sqlite

import (
	"context"
	"errors"

	"github.com/ncruces/go-sqlite3"
)

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

// read runs f with a connection that sees one snapshot of the store. It runs f again if
// f was interrupted so that the log could restart. f must be short.
func (s *store) read(ctx context.Context, f func(*conn) error) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	const attempts = 3
	var err error
	for range attempts {
		err = s.readOnce(ctx, f)
		if !errors.Is(err, sqlite3.INTERRUPT) || ctx.Err() != nil {
			break
		}
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return s.explain(err)
}

func (s *store) readOnce(ctx context.Context, f func(*conn) error) (err error) {
	s.readMu.Lock()
	pool := s.readCtx
	s.readMu.Unlock()
	var c *conn
	select {
	case c = <-s.pool:
	default:
		if pool.Err() != nil {
			return errClosed
		}
		if c, err = s.openReader(); err != nil {
			return err
		}
	}
	defer func() {
		c.SetInterrupt(context.Background())
		select {
		case s.pool <- c:
		default:
			_ = c.close()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(pool, cancel)()
	c.SetInterrupt(ctx)
	if err := c.exec("BEGIN"); err != nil {
		return err
	}
	defer func() {
		c.SetInterrupt(context.Background())
		if endErr := c.exec("COMMIT"); endErr != nil {
			err = errors.Join(err, endErr, c.Exec("ROLLBACK"))
		}
	}()
	return f(c)
}

// interruptReaders interrupts all reads and makes them restart.
func (s *store) interruptReaders() {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.endRead()
	s.readCtx, s.endRead = context.WithCancel(context.Background())
}
