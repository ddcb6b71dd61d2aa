// Package sqlite is the embedded engine. It keeps tasks in a SQLite database in a local
// folder, which one process at a time has open. Bodies over 256 KiB are files next to
// the database.
//
// One goroutine owns the writing connection and commits pending operations as one
// transaction (commit.go). With the default options the log is synced before an
// operation is acknowledged. Reads use their own connections. schema.sql documents the
// tables.
package sqlite

import (
	"cmp"
	"context"
	_ "embed" // schema.sql
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3/vfs"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/folder"
)

// Config configures a store.
type Config struct {
	// Folder is the folder of the store. It is created if it does not exist.
	Folder string
	// MaxSize bounds the size of database and bodies together, in bytes. Zero means 10
	// GiB.
	MaxSize int64
	// Sync is how often the log is synced. Zero means before an operation is
	// acknowledged.
	Sync     time.Duration
	Settings engine.Settings
	// Logger may be nil.
	Logger *zap.Logger

	// vfs is the file system of the database. Nil means the operating system's.
	vfs vfs.VFSFilename
	// holder replaces the random ID of this process as a holder of leases.
	holder int64
	// disk is the disk for bodies. Nil means the operating system's.
	disk disk
	// checkpointPages replaces the constant of the same name.
	checkpointPages int
	// skips are the precautions that a test leaves out, to check that it detects their
	// absence.
	skips precaution
	// free replaces the measurement of the free disk space.
	free func(folder string) (int64, error)
}

// precaution is a measure against the effects of a power failure.
type precaution int

const (
	skipAdopt precaution = iota + 1
	skipOverwrite
	skipRetire
)

const (
	databaseName   = "callback.db"
	bodiesName     = "bodies"
	lockName       = "lock"
	defaultMaxSize = 10 << 30
	pageSize       = 4096
)

// errClosed is returned by all methods after Close.
var errClosed = fmt.Errorf("%w: it is closed", engine.ErrUnavailable)

// processHolder is the ID of this process as a holder of leases. It is random because
// process IDs are reused.
var processHolder = 1 + rand.Int64N(1<<62)

// store implements [engine.Engine].
type store struct {
	cfg    Config
	log    *zap.Logger
	file   string // the database
	fs     *fileSystem
	lock   *os.File
	holder int64

	batchMu  sync.Mutex // guards batch
	batch    *batch
	closed   chan struct{} // closed once the files are closed
	wake     chan struct{}
	patience *time.Timer     // wakes the writer if a batch has only patient operations
	life     context.Context // ends with Close
	end      context.CancelFunc
	written  chan struct{} // closed when the writer's goroutine ends
	tasks    sync.WaitGroup

	// The fields below belong to the writer.
	writer   *conn
	evicted  [states]evicted
	cache    jobCache
	logPages int
	stale    bool // a commit failed and was not overwritten yet
	measured time.Time

	mu       sync.Mutex // guards the state that commits change
	settings engine.Settings
	paused   map[engine.Target]bool
	queues   map[string]chan struct{} // wake the workers of a queue
	hosts    map[string]*host
	hostsAt  int     // the number of hosts at which some are dropped
	ready    []*host // to be reported
	passed   passed
	nextDue  int64 // when the index of due deliveries has more
	dueWake  chan struct{}
	inFlight map[int64]*delivery
	inMemory int // how many deliveries all hosts have in memory
	leases   map[int64]*lease
	waiters  map[string][]chan struct{} // of a task

	reading chan struct{} // has one entry for each read
	pool    chan *conn    // open connections that no read uses

	opened  time.Time // before the first commit
	secret  []byte
	room    room
	bodies  bodies
	trouble atomic.Pointer[error] // the store is damaged, permanently
	away    atomic.Pointer[error] // the folder was moved or deleted
	broken  atomic.Pointer[error] // the last commit failed
	files   [2]os.FileInfo        // database and log, as they were when opened
}

// Open opens a store. It returns an error that wraps ErrHeld if another process has the
// store open, and ErrUnavailable if the database is damaged.
func Open(ctx context.Context, cfg Config) (engine.Engine, error) {
	s, err := open(ctx, cfg)
	if err != nil {
		return nil, err // a nil interface, not a nil *store in one
	}
	return s, nil
}

func open(ctx context.Context, cfg Config) (_ *store, err error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.disk == nil {
		cfg.disk = systemDisk{}
	}
	if cfg.free == nil {
		cfg.free = freeSpace
	}
	cfg.MaxSize = cmp.Or(max(0, cfg.MaxSize), defaultMaxSize)
	cfg.checkpointPages = cmp.Or(cfg.checkpointPages, checkpointPages)
	if cfg.Folder, err = filepath.Abs(cfg.Folder); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	s := &store{
		cfg: cfg, log: cfg.Logger, settings: cfg.Settings,
		file: filepath.Join(cfg.Folder, databaseName), holder: cmp.Or(cfg.holder, processHolder),
		closed: make(chan struct{}), wake: make(chan struct{}, 1), patience: time.NewTimer(time.Hour), written: make(chan struct{}),
		paused: map[engine.Target]bool{}, queues: map[string]chan struct{}{}, hosts: map[string]*host{}, dueWake: make(chan struct{}, 1),
		inFlight: map[int64]*delivery{}, leases: map[int64]*lease{}, waiters: map[string][]chan struct{}{},
		reading: make(chan struct{}, readers), pool: make(chan *conn, readers), hostsAt: maxHosts, opened: time.Now(),
	}
	s.cache.reset()
	s.room.wake, s.room.max = make(chan struct{}, 1), cfg.MaxSize
	s.life, s.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.end()
			s.release()
		}
	}()
	if err := s.openFolder(); err != nil {
		return nil, err
	}
	if err := s.openDatabase(ctx); err != nil {
		return nil, fmt.Errorf("opening %s: %w", s.file, s.explain(err))
	}
	go s.write()
	s.tasks.Go(s.maintain)
	s.tasks.Go(s.watch)
	s.log.Info("store opened", zap.String("file", s.file))
	return s, nil
}

// openFolder creates, checks and locks the folder for this process.
func (s *store) openFolder() error {
	// The folder has results and signing material of other people's requests.
	if err := createFolder(s.cfg.disk, s.cfg.Folder); err != nil {
		return fmt.Errorf("%w: creating the store's folder: %w", engine.ErrUnavailable, err)
	}
	if err := folder.Check(s.cfg.Folder); err != nil {
		return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	lock, err := os.OpenFile(filepath.Join(s.cfg.Folder, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("%w: opening the store's lock: %w", engine.ErrUnavailable, err)
	}
	if held, err := lockFile(lock); err != nil {
		defer lock.Close()
		if held {
			pid, _ := io.ReadAll(lock) // only for the message
			return fmt.Errorf("%w: %s is in use by process %s", engine.ErrHeld, s.cfg.Folder, cmp.Or(strings.TrimSpace(string(pid)), "(unknown)"))
		}
		return fmt.Errorf("%w: locking the store: %w", engine.ErrUnavailable, err)
	}
	s.lock = lock
	// The text in the lock file is only for the error message of other processes.
	if err := lock.Truncate(0); err == nil {
		_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	for _, old := range []string{"jetstream", "inventory.json"} {
		if _, err := os.Lstat(filepath.Join(s.cfg.Folder, old)); err == nil {
			return fmt.Errorf("the folder %s has files of the engine of an earlier version (%s), which this version does not read; "+
				"choose another folder for the engine", s.cfg.Folder, old)
		}
	}
	if err := createFolder(s.cfg.disk, filepath.Join(s.cfg.Folder, bodiesName)); err != nil {
		return fmt.Errorf("%w: creating the folder of bodies: %w", engine.ErrUnavailable, err)
	}
	return nil
}

// Ready implements [engine.Engine].
func (s *store) Ready() error {
	if err := s.usableForNew(); err != nil {
		return err
	}
	if err := s.broken.Load(); err != nil {
		return *err
	}
	return s.room.check(0)
}

// usableForNew returns the reason why new tasks are refused, apart from lack of room. A
// failed commit is not a reason: the next one may succeed.
func (s *store) usableForNew() error {
	if err := s.trouble.Load(); err != nil {
		return *err
	}
	if err := s.away.Load(); err != nil {
		return *err
	}
	if s.isClosing() {
		return errClosed
	}
	return nil
}

// Reconfigure implements [engine.Engine].
func (s *store) Reconfigure(ctx context.Context, settings engine.Settings) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.settings = settings
	s.mu.Unlock()
	wake(s.room.wake)
	return nil
}

// Secret implements [engine.Engine].
func (s *store) Secret(ctx context.Context) ([]byte, error) {
	return append([]byte(nil), s.secret...), s.usable(ctx)
}

// Close implements [engine.Engine].
func (s *store) Close(ctx context.Context) error {
	s.batchMu.Lock()
	first := !s.isClosing()
	s.end() // with the lock held: no operation follows the last batch
	s.batchMu.Unlock()
	if first {
		go func() {
			<-s.written
			s.tasks.Wait()
			s.release()
			close(s.closed)
		}()
	}
	select {
	case <-s.closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing the store: %w", ctx.Err())
	}
}

func (s *store) isClosing() bool { return s.life.Err() != nil }

// wait waits for a signal, at most for a time. It returns an error if ctx or the store
// ends.
func (s *store) wait(ctx context.Context, signal <-chan struct{}, most time.Duration) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-signal:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.life.Done():
		return errClosed
	}
}
