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

// change is an operation on the files of a store.
type change struct {
	kind   changeKind
	inode  int    // of the file
	off    int64  // of a write; the size of a truncation
	data   []byte // of a write
	folder string // of a name
	name   string
}

type changeKind int

const (
	written changeKind = iota
	truncated
	synced
	syncFailed
	created // folders too; their inode is 0
	removed
	folderSynced
)

// recording has the operations on the files in a folder, in order, by all processes
// that had the store open. No fsync is really made.
type recording struct {
	root string

	mu      sync.Mutex
	changes []change
	live    map[string]int // inodes by path relative to root
	inodes  int
}

func newRecording(root string) *recording {
	return &recording{root: root, live: map[string]int{}}
}

// position returns how many operations were recorded.
func (r *recording) position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.changes)
}

// split returns the folder and the name of a path. The folder is relative to the root.
func (r *recording) split(path string) (folder, name string) {
	rel, err := filepath.Rel(r.root, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		panic("recorded a path outside of the folder: " + path)
	}
	return filepath.Dir(rel), filepath.Base(rel)
}

// add records a change. r.mu is held.
func (r *recording) add(c change) { r.changes = append(r.changes, c) }

// find returns the inode of a path. It creates a new one if necessary. r.mu is held.
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

// process is a process that has the store open. It is both the file system of the
// database and the disk of the bodies.
type process struct {
	*recording
	rng      *rand.Rand // guarded by recording.mu
	failSync float64    // probability that an fsync fails
	dead     atomic.Bool
	// dieAt is the position after which the process dies, with its next write or during
	// its next fsync. 0 means never.
	dieAt     int
	dieInSync bool

	// The precautions that a broken engine leaves out.
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
	// The library syncs the folder of a log or journal at the first sync of the file.
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

// fails reports whether an fsync fails. p.mu is held.
func (p *process) fails() bool {
	p.age(true)
	return p.dead.Load() || p.rng.Float64() < p.failSync
}

// age kills the process when it is time. p.mu is held.
func (p *process) age(inSync bool) {
	if p.dieAt > 0 && len(p.changes) >= p.dieAt && inSync == p.dieInSync {
		p.dead.Store(true)
	}
}

// recordedFile is a database file whose writes are recorded.
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

// SizeHint disables the system's SizeHint, which allocates space.
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
		// Like the library, it does not retry after an error.
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
		// If a process dies during an fsync, it is unknown whether the fsync failed.
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
func (p *process) create(path string) (bodyFile, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead.Load() {
		return nil, errWrite
	}
	f, err := systemDisk{}.create(path)
	if err != nil {
		return nil, err
	}
	return &recordedBody{f: f, p: p, inode: p.find(path)}, nil
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

// recordedBody is the file of a body whose writes are recorded.
type recordedBody struct {
	f     bodyFile
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

// Close closes the file.
func (f *recordedBody) Close() error { return f.f.Close() }

func (f *recordedBody) Sync() error {
	if f.p.keepBodiesUnsynced {
		return nil
	}
	return f.p.sync(f.inode)
}
