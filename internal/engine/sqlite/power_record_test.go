package sqlite

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// change is something that was done to the files of a store.
type change struct {
	kind   changeKind
	inode  int    // of the file
	off    int64  // of a write; the size of a truncation
	data   []byte // of a write
	folder string // of a name
	name   string
	to     string // of a rename
}

type changeKind int

const (
	written changeKind = iota
	truncated
	synced
	syncFailed
	created // folders too; their inode is 0
	renamed
	removed
	folderSynced
)

// recording is what was done to the files in a folder, in order, by all processes
// that had the store open. Nothing is really synced.
type recording struct {
	root string

	mu      sync.Mutex
	changes []change
	live    map[string]int // inodes by path below root
	inodes  int
}

func newRecording(root string) *recording {
	return &recording{root: root, live: map[string]int{}}
}

// position is how much was recorded.
func (r *recording) position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.changes)
}

// split returns the folder and the name of a path, the folder relative to the root.
func (r *recording) split(path string) (folder, name string) {
	rel, err := filepath.Rel(r.root, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		panic("recorded a path outside of the folder: " + path)
	}
	return filepath.Dir(rel), filepath.Base(rel)
}

// add records a change. r.mu is held.
func (r *recording) add(c change) { r.changes = append(r.changes, c) }

// find returns the inode of a path, which is created if it is new. r.mu is held.
func (r *recording) find(path string) int {
	if inode, ok := r.live[path]; ok {
		return inode
	}
	r.inodes++
	r.live[path] = r.inodes
	folder, name := r.split(path)
	r.add(change{kind: created, inode: r.inodes, folder: folder, name: name})
	return r.inodes
}

// process is a process that has the store open. It is both the file system of its
// database and the disk of its bodies.
type process struct {
	*recording
	rng      *rand.Rand // guarded by recording.mu
	failSync float64    // how probable it is that an fsync fails
	dead     atomic.Bool
	// dieAt is the position after which the process dies, with its next write or
	// in its next fsync; 0 for never.
	dieAt     int
	dieInSync bool

	// What a broken engine leaves out.
	keepBodiesUnsynced, keepFoldersUnsynced bool
}

var system = vfs.Find("os").(vfs.VFSFilename)

// Open implements [vfs.VFS].
func (p *process) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	return system.Open(name, flags)
}

// Access implements [vfs.VFS].
func (p *process) Access(name string, flags vfs.AccessFlag) (bool, error) {
	return system.Access(name, flags)
}

// FullPathname implements [vfs.VFS].
func (p *process) FullPathname(name string) (string, error) { return system.FullPathname(name) }

// OpenFilename implements [vfs.VFSFilename].
func (p *process) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if name == nil {
		return system.OpenFilename(name, flags) // a temporary file
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	inner, out, err := system.OpenFilename(name, flags)
	if err != nil {
		return nil, out, err
	}
	f := &recordedFile{file: &file{File: inner, fs: new(fileSystem)}, p: p, path: name.String(), inode: p.find(name.String())}
	// The library syncs the folder of a log or journal with the file's first sync.
	const journal = vfs.OPEN_MAIN_JOURNAL | vfs.OPEN_SUPER_JOURNAL | vfs.OPEN_WAL
	f.syncFolder = flags&vfs.OPEN_CREATE != 0 && flags&journal != 0
	return f, out, nil
}

// Delete implements [vfs.VFS].
func (p *process) Delete(name string, syncFolder bool) error {
	if err := p.remove(name); err != nil {
		if os.IsNotExist(err) {
			return vfs.SystemError(err, sqlite3.IOERR_DELETE_NOENT)
		}
		return vfs.SystemError(err, sqlite3.IOERR_DELETE)
	}
	if syncFolder {
		if err := p.syncFolder(filepath.Dir(name)); err != nil {
			return vfs.SystemError(err, sqlite3.IOERR_DIR_FSYNC)
		}
	}
	return nil
}

// fails says whether an fsync fails. p.mu is held.
func (p *process) fails() bool {
	p.age(true)
	return p.dead.Load() || p.rng.Float64() < p.failSync
}

// age kills the process if it is time. p.mu is held.
func (p *process) age(inSync bool) {
	if p.dieAt > 0 && len(p.changes) >= p.dieAt && inSync == p.dieInSync {
		p.dead.Store(true)
	}
}

// recordedFile is a file of the database.
type recordedFile struct {
	*file
	p          *process
	path       string
	inode      int
	syncFolder bool
}

func (f *recordedFile) WriteAt(b []byte, off int64) (int, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	f.p.age(false)
	if f.p.dead.Load() {
		return 0, vfs.SystemError(errWrite, sqlite3.IOERR_WRITE)
	}
	f.p.add(change{kind: written, inode: f.inode, off: off, data: append([]byte(nil), b...)})
	return f.file.WriteAt(b, off)
}

func (f *recordedFile) Truncate(size int64) error {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if f.p.dead.Load() {
		return vfs.SystemError(errWrite, sqlite3.IOERR_TRUNCATE)
	}
	f.p.add(change{kind: truncated, inode: f.inode, off: size})
	return f.file.Truncate(size)
}

// SizeHint hides that of the system, which allocates.
func (f *recordedFile) SizeHint(int64) error { return sqlite3.NOTFOUND }

func (f *recordedFile) Sync(vfs.SyncFlag) error {
	if err := f.p.sync(f.inode); err != nil {
		return vfs.SystemError(err, sqlite3.IOERR_FSYNC)
	}
	f.p.mu.Lock()
	folder := f.syncFolder
	f.syncFolder = false
	f.p.mu.Unlock()
	if folder {
		// Like the library, it does not try again after an error.
		if err := f.p.syncFolder(filepath.Dir(f.path)); err != nil {
			return vfs.SystemError(err, sqlite3.IOERR_DIR_FSYNC)
		}
	}
	return nil
}

func (p *process) sync(inode int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	alive := !p.dead.Load()
	if p.fails() {
		// Of a process that dies in an fsync it is not known whether it failed.
		if alive && p.failSync > 0 {
			p.add(change{kind: syncFailed, inode: inode})
		}
		return errWrite
	}
	p.add(change{kind: synced, inode: inode})
	return nil
}

// makeFolder implements [disk].
func (p *process) makeFolder(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := os.Mkdir(path, 0o700); err != nil {
		if os.IsExist(err) {
			return nil
		}
		return err
	}
	folder, name := p.split(path)
	p.add(change{kind: created, folder: folder, name: name})
	return nil
}

// create implements [disk].
func (p *process) create(folder, pattern string) (bodyFile, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead.Load() {
		return nil, errWrite
	}
	f, err := os.CreateTemp(folder, pattern)
	if err != nil {
		return nil, err
	}
	return &recordedBody{f: f, p: p, inode: p.find(f.Name())}, nil
}

// rename implements [disk].
func (p *process) rename(from, to string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead.Load() {
		return errWrite
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	p.live[to] = p.live[from]
	delete(p.live, from)
	folder, name := p.split(from)
	p.add(change{kind: renamed, folder: folder, name: name, to: filepath.Base(to)})
	return nil
}

// remove implements [disk].
func (p *process) remove(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead.Load() {
		return errWrite
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	delete(p.live, path)
	folder, name := p.split(path)
	p.add(change{kind: removed, folder: folder, name: name})
	return nil
}

// syncFolder implements [disk].
func (p *process) syncFolder(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails() {
		return errWrite
	}
	if p.keepFoldersUnsynced {
		return nil
	}
	folder, name := p.split(path)
	p.add(change{kind: folderSynced, folder: filepath.Join(folder, name)})
	return nil
}

// recordedBody is the file of a body.
type recordedBody struct {
	f     *os.File // not embedded: it would be written to past Write
	p     *process
	inode int
	size  int64
}

func (f *recordedBody) Write(b []byte) (int, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if f.p.dead.Load() {
		return 0, errWrite
	}
	f.p.add(change{kind: written, inode: f.inode, off: f.size, data: append([]byte(nil), b...)})
	f.size += int64(len(b))
	return f.f.Write(b)
}

// Name returns the file's name.
func (f *recordedBody) Name() string { return f.f.Name() }

// Close closes the file.
func (f *recordedBody) Close() error { return f.f.Close() }

func (f *recordedBody) Sync() error {
	if f.p.keepBodiesUnsynced {
		return nil
	}
	return f.p.sync(f.inode)
}
