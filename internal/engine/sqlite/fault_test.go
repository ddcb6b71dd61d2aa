package sqlite

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

func TestSecondOpenNamesTheHolder(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	_, err := Open(t.Context(), Config{Folder: s.cfg.Folder})
	if !errors.Is(err, engine.ErrHeld) || !strings.Contains(err.Error(), "is in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("the error is %v", err)
	}
}

func TestFolderOfAnEarlierEngineIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "jetstream"), 0o700))
	_, err := Open(t.Context(), Config{Folder: dir})
	if err == nil || !strings.Contains(err.Error(), "earlier version (jetstream)") {
		t.Errorf("the error is %v", err)
	}
}

func TestFolderIsForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	openTest(t, Config{Folder: dir})
	for name, want := range map[string]os.FileMode{"": 0o700, databaseName: 0o600, databaseName + "-wal": 0o600, lockName: 0o600, bodiesName: 0o700} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has mode %o, not %o", name, got, want)
		}
	}
}

// unsyncedDisk is a disk that does not support syncing folders.
type unsyncedDisk struct {
	systemDisk
	err error
}

func (d unsyncedDisk) syncFolder(string) error { return d.err }

func TestFoldersThatCannotBeSynced(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want error
	}{
		{&os.PathError{Op: "sync", Err: syscall.EINVAL}, nil},
		{&os.PathError{Op: "sync", Err: syscall.ENOTSUP}, nil},
		{&os.PathError{Op: "open", Err: syscall.EACCES}, nil},
		{&os.PathError{Op: "sync", Err: syscall.EIO}, engine.ErrUnavailable},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			t.Parallel()
			s, err := open(t.Context(), Config{Folder: filepath.Join(t.TempDir(), "a", "b"), disk: unsyncedDisk{err: tt.err}})
			if !errors.Is(err, tt.want) {
				t.Fatalf("opening returns %v, not %v", err, tt.want)
			}
			if err == nil {
				settled(t, s, newTask("a.test:443"), strings.Repeat("x", maxInline+1))
				closeTest(t, s)
			}
		})
	}
}

func TestDeletedFilesAreNoticed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{databaseName, databaseName + "-wal"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Config{})
			file, aside := filepath.Join(s.cfg.Folder, name), filepath.Join(t.TempDir(), name)
			must(t, os.Rename(file, aside))
			if _, err := s.Claim(t.Context(), newTask("a.test:443")); !errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("a claim returns %v", err)
			}
			if err := s.Ready(); !errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("Ready returns %v", err)
			}
			must(t, os.Rename(aside, file))
			must(t, s.present())
			must(t, s.Ready())
			_, err := s.Claim(t.Context(), newTask("a.test:443"))
			must(t, err)
		})
	}
}

// A commit that is stored must be answered so, or its task would have no holder that knows
// of it.
func TestFilesMovedDuringCommit(t *testing.T) {
	t.Parallel()
	disk := &faultyDisk{VFS: vfs.Find("os")}
	s := openTest(t, Config{vfs: disk})
	log, aside := filepath.Join(s.cfg.Folder, databaseName+"-wal"), filepath.Join(t.TempDir(), "log")
	var moved error
	move := func() { moved = os.Rename(log, aside) }
	disk.atSync.Store(&move)
	l, err := s.Claim(t.Context(), newTask("a.test:443"))
	must(t, moved)
	must(t, err)
	if _, err := s.Claim(t.Context(), newTask("a.test:443")); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("the next claim returns %v", err)
	}
	must(t, os.Rename(aside, log))
	must(t, l.Release(t.Context()))
}

func TestFullDiskIsErrFullAndPasses(t *testing.T) {
	t.Parallel()
	disk := &faultyDisk{VFS: vfs.Find("os")}
	s := openTest(t, Config{vfs: disk})
	disk.noSpace.Store(true)
	if _, err := s.Claim(t.Context(), newTask("a.test:443")); !errors.Is(err, engine.ErrFull) {
		t.Errorf("a claim returns %v", err)
	}
	disk.noSpace.Store(false)
	settled(t, s, newTask("a.test:443"), "result")
	must(t, s.Ready())
}

// TestRefusedCommitDoesNotComeBack copies a database whose last commit failed at its
// fsync, in the state that a crash at that moment would leave.
func TestRefusedCommitDoesNotComeBack(t *testing.T) {
	t.Parallel()
	disk := &faultyDisk{VFS: vfs.Find("os")}
	s := openTest(t, Config{vfs: disk})
	kept := newTask("a.test:443")
	settled(t, s, kept, "result")
	disk.syncFails.Store(true)
	refused := newTask("a.test:443")
	if _, err := s.Claim(t.Context(), refused); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("a claim returns %v", err)
	}
	crashed := t.TempDir()
	for _, name := range []string{databaseName, databaseName + "-wal"} {
		must(t, copyFile(filepath.Join(crashed, name), filepath.Join(s.cfg.Folder, name)))
	}
	disk.syncFails.Store(false)
	for _, other := range []*store{s, openTest(t, Config{Folder: crashed, holder: 1})} {
		if _, err := other.Get(t.Context(), refused.ID); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("what was refused: %v", err)
		}
		if _, err := other.Get(t.Context(), kept.ID); err != nil {
			t.Errorf("what was acknowledged: %v", err)
		}
	}
}

func TestUnchangedLogIsNotSynced(t *testing.T) {
	t.Parallel()
	disk := &faultyDisk{VFS: vfs.Find("os")}
	s := openTest(t, Config{vfs: disk, Sync: time.Hour})
	settled(t, s, newTask("a.test:443"), "result")
	must(t, s.syncLog())
	synced := false
	record := func() { synced = true }
	disk.atSync.Store(&record)
	must(t, s.syncLog())
	if synced {
		t.Error("it is synced again without a change")
	}
	settled(t, s, newTask("a.test:443"), "result")
	must(t, s.syncLog())
	if !synced {
		t.Error("it is not synced after a change")
	}
}

func TestLargeBodiesAreFiles(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Settings: engine.Settings{KeepResults: true}})
	large := strings.Repeat("x", maxInline+1)
	rec := newTask("a.test:443")
	settled(t, s, rec, large)
	orphan := filepath.Join(s.cfg.Folder, bodiesName, "orphan")
	must(t, os.WriteFile(orphan, nil, 0o600))
	closeTest(t, s)
	s = openTest(t, Config{Folder: s.cfg.Folder})
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan is still there: %v", err)
	}
	if got := s.room.bodies.Load(); got != int64(len(large)) {
		t.Errorf("files of %d bytes are counted, not %d", got, len(large))
	}
	must(t, takeOne(t, s, "a.test:443").Dead(t.Context()))
	r, err := s.Open(t.Context(), rec.ID, engine.ResultBody)
	must(t, err)
	must(t, s.Act(t.Context(), rec.ID, engine.Action{Kind: engine.Delete}))
	// A body that is being read can be read to its end.
	if got, err := io.ReadAll(r); err != nil || string(got) != large {
		t.Errorf("%d bytes were read: %v", len(got), err)
	}
	must(t, r.Close())
	if files, err := os.ReadDir(filepath.Join(s.cfg.Folder, bodiesName)); err != nil || len(files) != 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
}

func TestDamagedBodiesEndWithAnError(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", maxInline+1)
	for name, damage := range map[string]func(file string) error{
		"flipped":   func(file string) error { return os.WriteFile(file, []byte(large[1:]+"y"), 0o600) },
		"truncated": func(file string) error { return os.Truncate(file, maxInline/2) },
		"missing":   os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Config{})
			settled(t, s, newTask("a.test:443"), large)
			files, err := filepath.Glob(filepath.Join(s.cfg.Folder, bodiesName, "*"))
			must(t, err)
			must(t, damage(files[0]))
			r, err := takeOne(t, s, "a.test:443").Result(t.Context())
			if err == nil {
				_, err = io.ReadAll(r)
				must(t, r.Close())
			}
			if !errors.Is(err, engine.ErrNotFound) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestSchemaIsDocumented checks that each column has a comment.
func TestSchemaIsDocumented(t *testing.T) {
	t.Parallel()
	column := regexp.MustCompile(`^  [a-z_]+ +(INTEGER|TEXT|BLOB)\b`)
	for i, line := range strings.Split(schema, "\n") {
		if column.MatchString(line) && !strings.Contains(line, "-- ") && !strings.HasPrefix(strings.TrimSpace(line), "name ") && !strings.HasPrefix(strings.TrimSpace(line), "id ") {
			t.Errorf("line %d has no comment: %s", i+1, line)
		}
		if strings.HasPrefix(line, ")") && !strings.Contains(line, "STRICT") {
			t.Errorf("line %d: the table is not strict", i+1)
		}
	}
}

func TestRelaxedSyncStoresToo(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{Sync: time.Millisecond})
	rec := newTask("a.test:443")
	settled(t, s, rec, "result")
	must(t, s.fs.syncLog(false))
	closeTest(t, s)
	s = openTest(t, Config{Folder: s.cfg.Folder})
	if _, err := s.Get(t.Context(), rec.ID); err != nil {
		t.Error(err)
	}
}
