package encode

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// ErrSpool is wrapped by errors of the folder of large bodies, such as a full disk. The
// callback was not attempted, and can be attempted later.
var ErrSpool = errors.New("a large callback cannot be stored")

// files are the bodies in files.
type files struct {
	used atomic.Int64 // bytes of bodies in memory

	mu      sync.Mutex
	folder  string // empty until created
	ready   bool   // the folder exists, and is ours
	byTask  map[string]*file
	waiting list.List // of *file: files not in use, least recently used first
	size    int64     // bytes of the files in waiting
	max     int
	maxSize int64
}

// file is a body in a file.
type file struct {
	owner *files
	task  string
	path  string
	head  form.Callback
	size  int64

	// Guarded by owner.mu.
	users   int           // bodies and readers
	waits   *list.Element // the element in owner.waiting; nil while in use
	dropped bool          // removed when the last user leaves
}

func (fs *files) init(o Options) {
	if o.Folder != "" {
		_ = os.RemoveAll(o.Folder) // remaining files do no harm
	}
	fs.folder, fs.max, fs.maxSize = o.Folder, o.Files, o.FilesSize
	fs.byTask = make(map[string]*file)
}

// prepare creates the folder. The caller holds fs.mu.
func (fs *files) prepare() (err error) {
	if fs.ready {
		return nil
	}
	if fs.folder == "" {
		fs.folder, err = os.MkdirTemp("", "caddy-callback-")
	} else {
		err = os.MkdirAll(fs.folder, 0o700)
	}
	fs.ready = err == nil
	return err
}

// find returns the body of a task if it is in a file, or nil.
func (fs *files) find(taskID string) *Body {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.byTask[taskID]
	if f == nil {
		return nil
	}
	if _, err := os.Stat(f.path); err != nil {
		fs.discard(f) // the file was removed from outside
		return nil
	}
	return fs.use(f)
}

// use returns a body that is in a file. The caller holds fs.mu.
func (fs *files) use(f *file) *Body {
	f.users++
	if f.waits != nil {
		fs.waiting.Remove(f.waits)
		f.waits = nil
		fs.size -= f.size
	}
	return &Body{Head: f.head, Size: f.size, file: f, files: fs}
}

// leave ends one use of a file.
func (fs *files) leave(f *file) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.users--
	switch {
	case f.users > 0:
	case f.dropped:
		_ = os.Remove(f.path) // remaining files are removed at the next start
	default:
		f.waits = fs.waiting.PushBack(f)
		fs.size += f.size
		for fs.waiting.Len() > fs.max || fs.size > fs.maxSize {
			fs.discard(fs.waiting.Front().Value.(*file))
		}
	}
}

// discard removes a file now, or when its last user leaves. The caller holds fs.mu.
func (fs *files) discard(f *file) {
	if fs.byTask[f.task] == f {
		delete(fs.byTask, f.task)
	}
	f.dropped = true
	if f.waits != nil {
		fs.waiting.Remove(f.waits)
		f.waits = nil
		fs.size -= f.size
		_ = os.Remove(f.path)
	}
}

func (fs *files) drop(taskID string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.byTask[taskID]; f != nil {
		fs.discard(f)
	}
}

// add writes a body to a new file.
func (fs *files) add(taskID string, cb form.Callback) (*Body, error) {
	path, err := fs.write(cb.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSpool, err)
	}
	f := &file{owner: fs, task: taskID, path: path, size: int64(len(cb.Body)), head: cb}
	f.head.Body = nil
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if old := fs.byTask[taskID]; old != nil {
		fs.discard(old)
	}
	fs.byTask[taskID] = f
	return fs.use(f), nil
}

func (fs *files) write(content []byte) (path string, err error) {
	fs.mu.Lock()
	err = fs.prepare()
	folder := fs.folder
	fs.mu.Unlock()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(folder, "body-*")
	if errors.Is(err, os.ErrNotExist) { // the folder was removed from outside
		if err = os.MkdirAll(folder, 0o700); err == nil {
			f, err = os.CreateTemp(folder, "body-*")
		}
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// open opens the file for a reader.
func (f *file) open() (io.ReadCloser, error) {
	opened, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSpool, err)
	}
	f.owner.mu.Lock()
	f.users++
	f.owner.mu.Unlock()
	return &reader{File: opened, file: f}, nil
}

func (fs *files) close() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.byTask {
		fs.discard(f)
	}
	if !fs.ready {
		return nil
	}
	fs.ready = false
	return os.RemoveAll(fs.folder)
}
