package sqlite

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	if err := s.configure(); err != nil {
		return err
	}
	if err := s.create(); err != nil {
		return err
	}
	s.writer.WALHook(func(_ *sqlite3.Conn, _ string, pages int) error {
		s.logPages = pages
		return nil
	})
	// With a reader that is open already, deliveries go on when no file can be opened.
	reader, err := s.openReader()
	if err != nil {
		return err
	}
	s.pool <- reader
	if err := s.identify(); err != nil {
		return err
	}
	if err := s.adopt(); err != nil {
		return err
	}
	if err := s.apply((*tx).redate); err != nil {
		return err
	}
	if err := s.loadPauses(); err != nil {
		return err
	}
	if err := s.bodies.open(s); err != nil {
		return err
	}
	s.measure()
	if err := s.recover(ctx); err != nil {
		return err
	}
	return s.syncLog() // removes the files of what was recovered
}

// adopt makes the data of a killed process durable. That process may have written
// commits and created files without syncing them. From here on, this process acts on
// what it reads.
func (s *store) adopt() error {
	if s.cfg.skips == skipAdopt {
		return nil
	}
	if err := s.fs.rewriteLog(); err != nil {
		return fmt.Errorf("syncing the log: %w", err)
	}
	return syncNames(s.cfg.disk, s.cfg.Folder, filepath.Dir(s.cfg.Folder))
}

// configure sets the options of the writer's connection.
func (s *store) configure() error {
	c := s.writer
	if id, _, err := c.number("PRAGMA application_id"); err != nil {
		return err
	} else if id != 0 && id != applicationID {
		return errOtherDatabase
	}
	if n, _, err := c.number("PRAGMA page_count"); err != nil {
		return err
	} else if n == 0 {
		if err := c.Exec(fmt.Sprintf("PRAGMA page_size = %d", pageSize)); err != nil {
			return err
		}
		if err := c.EnableChecksums("main"); err != nil {
			return fmt.Errorf("enabling checksums: %w", err)
		}
	}
	mode := ""
	err := c.query("PRAGMA journal_mode = WAL", nil, func(stmt *sqlite3.Stmt) bool {
		mode = stmt.ColumnText(0)
		return true
	})
	if err == nil && mode != "wal" {
		err = fmt.Errorf("SQLite keeps no write-ahead log on this system or file system (journal_mode %s)", mode)
	}
	if err != nil {
		return err
	}
	synchronous := "FULL"
	if s.cfg.Sync > 0 {
		synchronous = "NORMAL"
	}
	return c.Exec("PRAGMA synchronous = " + synchronous + `;
		PRAGMA cache_size = -16384;
		PRAGMA temp_store = MEMORY;
		PRAGMA foreign_keys = OFF;
		PRAGMA wal_autocheckpoint = 0`)
}

// create creates the tables in a new database, and reads the secret.
func (s *store) create() error {
	version, _, err := s.writer.number("PRAGMA user_version")
	if err != nil {
		return err
	}
	if version != 0 && version != schemaVersion {
		return fmt.Errorf("its schema has version %d, of another release; this one knows version %d", version, schemaVersion)
	}
	if version == 0 {
		if err := s.createTables(); err != nil {
			return fmt.Errorf("creating the tables: %w", err)
		}
	}
	return s.writer.query("SELECT value FROM meta WHERE name = 'secret'", nil, func(stmt *sqlite3.Stmt) bool {
		s.secret = stmt.ColumnBlob(0, nil)
		return false
	})
}

func (s *store) createTables() error {
	tables, _, err := s.writer.number("SELECT count(*) FROM sqlite_schema")
	if err == nil && tables > 0 {
		err = errOtherDatabase
	}
	if err != nil {
		return err
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	err = s.writer.Exec("BEGIN IMMEDIATE;" + schema)
	if err == nil {
		err = s.writer.exec("INSERT INTO meta(name, value) VALUES ('secret', ?)", secret)
	}
	if err == nil {
		err = s.writer.Exec(fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d; COMMIT", schemaVersion, applicationID))
	}
	return err
}

// release closes everything that has been opened.
func (s *store) release() {
	s.endRead()
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
