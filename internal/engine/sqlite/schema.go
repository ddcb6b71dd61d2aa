package sqlite

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"
)

//go:embed schema.sql
var schema string

const (
	// applicationID marks the file as a database of this engine: "CbTk".
	applicationID = 0x4362546b
	// schemaVersion is the user_version of schema.sql.
	schemaVersion = 2
)

var errOtherDatabase = errors.New("it is a database of another application")

// openDatabase opens the writer's connection, creates the tables of a new database, and
// settles the tasks that previous processes left running.
func (s *store) openDatabase(ctx context.Context) (err error) {
	s.fs = registerFileSystem(s.cfg.vfs)
	// Other users must not read the file, whatever the umask. The log gets the same
	// mode.
	f, err := os.OpenFile(s.file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if lost, err := lostCommits(s.file + "-wal"); err != nil {
		return err
	} else if lost > 0 {
		s.log.Error("log of the store is damaged", zap.String("file", s.file+"-wal"), zap.Int("lost_commits", lost))
	}
	if s.writer, err = openConn(s.file, s.fs.name, sqlite3.OPEN_READWRITE); err != nil {
		return err
	}
	for _, step := range []func() error{
		s.configure, s.create, s.openFirstReader, s.identify, s.adopt,
		func() error { return s.apply((*tx).redate) },
		s.loadPauses, s.openBodies,
		func() error { s.measure(); return s.recover(ctx) },
		s.syncLog, // then removes the files that recovery no longer needs
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// openFirstReader opens a reader, so that deliveries go on when no file can be opened.
func (s *store) openFirstReader() error {
	reader, err := s.openReader()
	if err == nil {
		s.pool <- reader
	}
	return err
}

// adopt makes the data of a killed process durable. That process may have written
// commits and created files without syncing them. From here on, this process acts on
// what it reads.
func (s *store) adopt() error {
	if s.cfg.skips == skipAdopt {
		return nil
	}
	if err := s.fs.syncLog(true); err != nil {
		return fmt.Errorf("syncing the log: %w", err)
	}
	return syncNames(s.cfg.disk, s.cfg.Folder, filepath.Dir(s.cfg.Folder))
}

// restartTimeout is how long the writer waits for readers so that the log can restart.
const restartTimeout = time.Second

// configure sets the options of the writer's connection.
func (s *store) configure() error {
	c := s.writer
	id, _ := c.number("PRAGMA application_id")
	pages, _ := c.number("PRAGMA page_count")
	switch err := c.failed(); {
	case err != nil:
		return err
	case id != 0 && id != applicationID:
		return errOtherDatabase
	case pages == 0:
		if err := c.Exec(fmt.Sprintf("PRAGMA page_size = %d", pageSize)); err != nil {
			return err
		}
		if err := c.EnableChecksums("main"); err != nil {
			return fmt.Errorf("enabling checksums: %w", err)
		}
	}
	mode := c.text("PRAGMA journal_mode = WAL")
	if err := c.failed(); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("SQLite cannot use a write-ahead log on this system or file system (journal_mode %s)", mode)
	}
	synchronous := "FULL"
	if s.cfg.Sync > 0 {
		synchronous = "NORMAL"
	}
	// A larger cache is slower: once a tree was balanced, SQLite walks the whole cache at the
	// end of the commit. With 16 MiB, a task takes a sixth more of the writer's time.
	err := errors.Join(c.BusyTimeout(restartTimeout), c.Exec("PRAGMA synchronous = "+synchronous+`;
		PRAGMA cache_size = -4096;
		PRAGMA temp_store = MEMORY;
		PRAGMA foreign_keys = OFF;
		PRAGMA wal_autocheckpoint = 0`))
	c.WALHook(func(_ *sqlite3.Conn, _ string, pages int) error { // wal_autocheckpoint would remove it
		s.logPages = pages
		return nil
	})
	return err
}

// create creates the tables in a new database, and reads the secret.
func (s *store) create() error {
	version, _ := s.writer.number("PRAGMA user_version")
	tables, _ := s.writer.number("SELECT count(*) FROM sqlite_schema")
	switch err := s.writer.failed(); {
	case err != nil:
		return err
	case version != 0 && version != schemaVersion:
		return fmt.Errorf("its schema has version %d, of another release; this one knows version %d", version, schemaVersion)
	case version == 0 && tables > 0:
		return errOtherDatabase
	case version == 0:
		if err := s.createTables(); err != nil {
			return fmt.Errorf("creating the tables: %w", err)
		}
	}
	s.writer.query("SELECT value FROM meta WHERE name = 'secret'", nil, func(stmt *sqlite3.Stmt) bool {
		s.secret = stmt.ColumnBlob(0, nil)
		return false
	})
	return s.writer.failed()
}

func (s *store) createTables() error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	if err := s.writer.Exec("BEGIN IMMEDIATE;" + schema); err != nil {
		return err
	}
	s.writer.exec("INSERT INTO meta(name, value) VALUES ('secret', ?)", secret)
	s.writer.exec(fmt.Sprintf("PRAGMA user_version = %d", schemaVersion))
	s.writer.exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID))
	s.writer.exec("COMMIT")
	return s.writer.failed()
}

// release closes everything that has been opened.
func (s *store) release() {
	for range cap(s.reading) {
		s.reading <- struct{}{} // waits for reads
	}
	for len(s.pool) > 0 {
		_ = (<-s.pool).close()
	}
	if s.writer != nil {
		if s.stale {
			_ = s.overwrite() // nothing more can be done
		}
		if s.cfg.Sync > 0 {
			_ = s.syncLog() // orphans are removed at the next start
		}
		if err := s.writer.close(); err != nil {
			s.log.Error("closing the store failed", zap.Error(err))
		}
	}
	if s.fs != nil {
		s.fs.unregister()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}
