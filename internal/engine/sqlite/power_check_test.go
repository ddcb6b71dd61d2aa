package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// history has the syncs of the log in a recording. They determine which steps are
// durable.
type history struct {
	relaxed bool
	syncs   []int // positions of successful syncs of the log
	failed  []int // positions of failed syncs
}

// newHistory finds the log in a recording.
func newHistory(r *recording, relaxed bool) *history {
	h := &history{relaxed: relaxed}
	logs := map[int]bool{}
	r.mu.Lock() // a store that is open syncs in the background
	defer r.mu.Unlock()
	for i, c := range r.changes {
		switch {
		case c.kind == created && c.name == databaseName+"-wal":
			logs[c.inode] = true
		case c.kind == synced && logs[c.inode]:
			h.syncs = append(h.syncs, i)
		case c.kind == syncFailed && logs[c.inode]:
			h.failed = append(h.failed, i)
		}
	}
	return h
}

// durable returns the position up to which acknowledged steps must survive a power
// failure at the given position.
func (h *history) durable(at int) int {
	if !h.relaxed {
		return at
	}
	i := sort.SearchInts(h.syncs, at)
	if i == 0 {
		return 0
	}
	return h.syncs[i-1]
}

// undone reports whether a power failure at a position must not restore a refused step.
// A failed commit is in the log until another commit has been written over it, which
// happens before the step is refused. If the fsync of that commit fails too, the step
// may be restored until an fsync has succeeded.
func (h *history) undone(s stepTaken, at int) bool {
	i, j := sort.SearchInts(h.failed, s.begin), sort.SearchInts(h.failed, s.end)
	if j-i < 2 {
		return true
	}
	next := sort.SearchInts(h.syncs, h.failed[j-1])
	return next < len(h.syncs) && h.syncs[next] < at
}

// allowed returns the shapes that a task may have after a power failure at a position.
func (h *history) allowed(k *tracked, at int) []shape {
	list := []shape{{}}
	durable := h.durable(at)
	for _, s := range k.steps {
		if s.begin >= at {
			break
		}
		switch {
		case s.answer == acknowledged && s.end <= durable:
			list = []shape{s.after}
		case s.answer == refusedStep && s.end <= at && h.undone(s, at):
		default:
			list = append(list, s.after)
		}
	}
	return list
}

// reopened returns the shape of a task after the store was opened again.
func (s shape) reopened(callback bool) shape {
	if s.state != task.Running {
		return s
	}
	if s.job {
		s.state = task.Queued
		return s
	}
	s = shape{state: task.Done, status: task.Failed, failure: task.ErrorHolderDied}
	if callback {
		s.state = task.Delivering
	}
	return s
}

func (s shape) equal(o shape) bool {
	return s.state == o.state && s.job == o.job && s.status == o.status && s.failure == o.failure && s.tries == o.tries &&
		(s.request == nil) == (o.request == nil) && (s.result == nil) == (o.result == nil) &&
		bytes.Equal(s.request, o.request) && bytes.Equal(s.result, o.result)
}

func (s shape) String() string {
	if s.state == "" {
		return "absent"
	}
	size := func(b []byte) string {
		if b == nil {
			return "none"
		}
		return fmt.Sprint(len(b))
	}
	return fmt.Sprintf("%s(job %v, %q %q, %d tries, request %s, result %s)",
		s.state, s.job, s.status, s.failure, s.tries, size(s.request), size(s.result))
}

// look returns the shape of a task.
func look(e engine.Engine, id string) (s shape, err error) {
	rec, err := e.Get(context.Background(), id)
	if errors.Is(err, engine.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s = shape{state: rec.State, job: rec.Queue != "", status: rec.Status, failure: rec.Error, tries: rec.Tries}
	if s.request, err = readAll(e, id, engine.RequestBody); err != nil {
		return s, err
	}
	s.result, err = readAll(e, id, engine.ResultBody)
	return s, err
}

// readAll reads a body. It returns nil if the body is not kept.
func readAll(e engine.Engine, id string, part engine.Part) ([]byte, error) {
	r, err := e.Open(context.Background(), id, part)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if b == nil {
		b = []byte{}
	}
	return b, err
}

// match returns the shape of a task, and an error if that shape is not allowed.
func (h *history) match(e engine.Engine, k *tracked, at int) (shape, error) {
	got, err := look(e, k.id)
	if err != nil {
		return got, fmt.Errorf("reading %s: %w", k.id, err)
	}
	allowed := h.allowed(k, at)
	for i, s := range allowed {
		allowed[i] = s.reopened(k.callback)
		if allowed[i].equal(got) {
			return got, nil
		}
	}
	text := ""
	for _, s := range k.steps {
		text += fmt.Sprintf("\n\t%d-%d %s: answer %d, %v", s.begin, s.end, s.what, s.answer, s.after)
	}
	return got, fmt.Errorf("task %s is %v; allowed is %v; it took the steps%s", k.id, got, allowed, text)
}

// noSync is the system's file system without fsync.
type noSync struct{ vfs.VFSFilename }

// OpenFilename implements [vfs.VFSFilename].
func (n noSync) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	inner, flags, err := n.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	return &unsyncedFile{&file{File: inner, fs: new(fileSystem)}}, flags, nil
}

type unsyncedFile struct{ *file }

func (unsyncedFile) Sync(vfs.SyncFlag) error { return nil }

// noFolderSync is the system's disk without syncing folders.
type noFolderSync struct{ systemDisk }

func (noFolderSync) syncFolder(string) error { return nil }

// check opens the files that a power failure at a position has left, and returns the
// first violation.
func (w *work) check(folder string, at int) error {
	s, err := open(context.Background(), Config{
		Folder: filepath.Join(folder, storeName), Sync: w.sync, Settings: engine.Settings{KeepResults: w.keep},
		vfs: noSync{system}, disk: noFolderSync{}, holder: 1 + rand.Int64N(1<<62), checkpointPages: 20,
	})
	if err != nil {
		return fmt.Errorf("opening what is left: %w", err)
	}
	defer s.Close(context.Background())
	counts := map[task.State]int64{}
	for _, c := range w.clients {
		for _, k := range c.tasks {
			got, err := w.history.match(s, k, at)
			if err != nil {
				return err
			}
			if got.state != "" {
				counts[got.state]++
			}
		}
	}
	return errors.Join(w.checkCounts(s, counts), w.checkKeys(s, at), w.checkSecret(s, at), checkFiles(s))
}

// checkCounts compares the counts with the tasks.
func (w *work) checkCounts(s *store, counts map[task.State]int64) error {
	stats, err := s.Stats(context.Background())
	if err != nil {
		return err
	}
	listed := map[task.State]int64{}
	queues, hosts := map[string]int64{}, map[string]int64{}
	for cursor := engine.Cursor(""); ; {
		page, err := s.List(context.Background(), engine.Filter{}, cursor, 100)
		if err != nil {
			return err
		}
		for _, rec := range page.Tasks {
			listed[rec.State]++
			if rec.State == task.Queued {
				queues[rec.Queue]++
			}
			if rec.State == task.Delivering {
				hosts[rec.CallbackHost]++
			}
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	for _, state := range stateNames {
		if stats.Tasks[state] != listed[state] || listed[state] != counts[state] {
			return fmt.Errorf("%d tasks are %s, %d are counted, %d are listed", counts[state], state, stats.Tasks[state], listed[state])
		}
	}
	queueStats, err := s.Queues(context.Background())
	if err != nil {
		return err
	}
	for _, q := range queueStats {
		if q.Queued != queues[q.Queue] || q.Running != 0 {
			return fmt.Errorf("%d tasks wait in %s, %d are counted, %d run", queues[q.Queue], q.Queue, q.Queued, q.Running)
		}
	}
	hostStats, _, err := s.Hosts(context.Background(), "", 100)
	if err != nil {
		return err
	}
	for _, h := range hostStats {
		if h.Pending != hosts[h.Host] {
			return fmt.Errorf("%d deliveries to %s are pending, %d are counted", hosts[h.Host], h.Host, h.Pending)
		}
	}
	return nil
}

// checkKeys compares the idempotency keys with their tasks.
func (w *work) checkKeys(s *store, at int) error {
	stored := map[string]string{}
	for cursor := engine.Cursor(""); ; {
		keys, next, err := s.Keys(context.Background(), cursor, 100)
		if err != nil {
			return err
		}
		for _, k := range keys {
			stored[k.Hash] = k.TaskID
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	for _, c := range w.clients {
		for _, k := range c.tasks {
			if k.key == "" || c.keys[k.key] != k.id {
				continue
			}
			// The first step of a task enqueued it.
			if s := k.steps[0]; s.end <= w.history.durable(at) && s.answer == acknowledged && stored[k.key] != k.id {
				return fmt.Errorf("the key %s of %s has the task %q", k.key, k.id, stored[k.key])
			}
		}
	}
	return nil
}

func (w *work) checkSecret(s *store, at int) error {
	secret, err := s.Secret(context.Background())
	if err == nil && w.opened[0] <= w.history.durable(at) && !bytes.Equal(secret, w.secret) {
		err = errors.New("the secret is another one")
	}
	return err
}

// checkFiles checks the database, and that bodies and files match one to one.
func checkFiles(s *store) error {
	var rows []string
	err := s.read(context.Background(), func(c *conn) error {
		if result := c.text("PRAGMA integrity_check"); result != "ok" {
			return fmt.Errorf("the database is corrupt: %s", result)
		}
		wrong, _ := c.number(`SELECT count(*) FROM domain d WHERE bytes <>
			(SELECT coalesce(sum(length(doc) + coalesce(request, 0) + coalesce(result, 0)), 0) FROM task WHERE task.domain = d.name)`)
		if wrong != 0 {
			return fmt.Errorf("the bytes of %d domains are not the sum of their tasks", wrong)
		}
		wrong, _ = c.number(`SELECT count(*) FROM tally WHERE tasks <> (SELECT count(*) FROM task
			WHERE state = iif(tally.state = 'queued', 0, iif(tally.state = 'running', 1, iif(tally.state = 'delivering', 2, iif(tally.state = 'done', 3, 4)))))`)
		if wrong != 0 {
			return fmt.Errorf("the tally does not match the number of tasks")
		}
		c.query("SELECT file FROM body WHERE file IS NOT NULL ORDER BY file", nil, func(stmt *sqlite3.Stmt) bool {
			rows = append(rows, stmt.ColumnText(0))
			return true
		})
		return nil
	})
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(s.bodies.folder)
	var files []string
	for _, e := range entries {
		files = append(files, e.Name())
	}
	if err == nil && !slices.Equal(rows, files) {
		err = fmt.Errorf("the bodies are %v, their files %v", rows, files)
	}
	return err
}

// forever is a position after all others.
const forever = math.MaxInt - 1
