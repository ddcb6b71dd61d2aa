package sqlite

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// modelDisk is a model of a disk after a power failure. It assumes only what POSIX
// guarantees; ext4 and xfs with data=ordered guarantee more:
//
//   - Data that was written to a file before its last fsync is present. Of later writes,
//     each sector is present or missing, in any combination: writes are lost, torn and
//     reordered. Sectors have 512 or 4096 bytes.
//   - The size of a file is one of the sizes that it had since its last fsync. Gaps
//     between the sectors that are present have zeros.
//   - A name that was created or removed after the last fsync of its folder is in its
//     state before or after the change. Changes of different names arrive in any order.
//     The fsync of a file does not make its name durable.
//   - After a failed fsync, the data that it should have written may be lost permanently:
//     the kernel marks it as written, reads still return it, and a later fsync that
//     succeeds does not write it.
//   - The index of the log (-shm) has arbitrary contents.
//
// Not modeled: changes of bytes next to a write (SQLite is told that overwriting is
// safe, IOCAP_POWERSAFE_OVERWRITE), disks that lie about fsync, sectors that become
// unreadable, and damage to synced data.
type modelDisk struct {
	files   map[int]*modelFile
	folders map[string]*modelFolder
	at      int // number of applied changes
}

// modelFile is a file with its durable contents and its pending writes.
type modelFile struct {
	durable []byte
	pending []pendingWrite
}

type pendingWrite struct {
	off  int64
	data []byte // nil if the file was truncated to off
	lost bool   // a failed fsync should have written it
}

// modelFolder is a folder with its durable names and its pending changes.
type modelFolder struct {
	durable map[string]int
	pending []change
}

func newModelDisk() *modelDisk {
	return &modelDisk{files: map[int]*modelFile{}, folders: map[string]*modelFolder{}}
}

func (d *modelDisk) file(inode int) *modelFile {
	f := d.files[inode]
	if f == nil {
		f = new(modelFile)
		d.files[inode] = f
	}
	return f
}

func (d *modelDisk) folder(path string) *modelFolder {
	f := d.folders[path]
	if f == nil {
		f = &modelFolder{durable: map[string]int{}}
		d.folders[path] = f
	}
	return f
}

// replay applies the changes up to a position.
func (d *modelDisk) replay(changes []change, to int) {
	for ; d.at < to; d.at++ {
		switch c := changes[d.at]; c.kind {
		case written:
			f := d.file(c.inode)
			f.pending = append(f.pending, pendingWrite{off: c.off, data: c.data})
		case truncated:
			f := d.file(c.inode)
			f.pending = append(f.pending, pendingWrite{off: c.off})
		case synced:
			d.file(c.inode).sync()
		case syncFailed:
			f := d.file(c.inode)
			for i := range f.pending {
				f.pending[i].lost = f.pending[i].data != nil // sizes are in the journal
			}
		case created, removed:
			f := d.folder(c.folder)
			f.pending = append(f.pending, c)
		case folderSynced:
			f := d.folder(c.folder)
			for _, c := range f.pending {
				changeName(f.durable, c)
			}
			f.pending = nil
		}
	}
}

// sync makes pending writes durable, except those that a failed fsync should have
// written.
func (f *modelFile) sync() {
	var lost []pendingWrite
	for _, w := range f.pending {
		if w.lost {
			lost = append(lost, w)
			continue
		}
		f.durable = w.apply(f.durable)
		if w.data == nil {
			lost = slices.DeleteFunc(lost, func(old pendingWrite) bool { return old.off+int64(len(old.data)) > w.off })
		}
		// A lost write does not undo the writes that were made over it.
		for i, old := range lost {
			from, to := max(old.off, w.off), min(old.off+int64(len(old.data)), w.off+int64(len(w.data)))
			if from < to {
				lost[i].data = bytes.Clone(old.data)
				copy(lost[i].data[from-old.off:to-old.off], w.data[from-w.off:])
			}
		}
	}
	f.pending = lost
}

func (w pendingWrite) apply(b []byte) []byte {
	if w.data == nil {
		return resize(b, w.off)
	}
	if end := w.off + int64(len(w.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[w.off:], w.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	b = slices.Grow(b, int(size)-len(b))
	old := len(b)
	b = b[:size]
	clear(b[old:])
	return b
}

// changeName applies a change of a name.
func changeName(names map[string]int, c change) {
	if c.kind == created {
		names[c.name] = c.inode
	} else {
		delete(names, c.name)
	}
}

// luck determines how much a power failure loses.
type luck struct {
	*rand.Rand
	sector  int64
	arrives float64 // probability that a sector is written
	named   float64 // probability that a change of a name is kept
	torn    bool    // all writes before one arrive, and that one in part
}

func newLuck(rng *rand.Rand) *luck {
	chances := []float64{0, 0.1, 0.5, 0.9, 0.99, 1}
	return &luck{
		Rand: rng, sector: []int64{512, 4096}[rng.IntN(2)], torn: rng.IntN(4) == 0,
		arrives: chances[rng.IntN(len(chances))], named: chances[rng.IntN(len(chances))],
	}
}

// after returns the contents of a file after a power failure.
func (f *modelFile) after(l *luck) []byte {
	if len(f.pending) == 0 {
		return f.durable
	}
	b := bytes.Clone(f.durable)
	sizes := []int64{int64(len(b))}
	last := l.IntN(len(f.pending))
	for i, w := range f.pending {
		switch {
		case w.data == nil:
			sizes = append(sizes, w.off)
			if l.arrive(i, last) {
				b = w.apply(b)
			}
			continue
		case l.torn && i < last && !w.lost:
			b = w.apply(b)
		default:
			for from := int64(0); from < int64(len(w.data)); {
				to := min(((w.off+from)/l.sector+1)*l.sector-w.off, int64(len(w.data)))
				if l.arrive(i, last) {
					b = pendingWrite{off: w.off + from, data: w.data[from:to]}.apply(b)
				}
				from = to
			}
		}
		sizes = append(sizes, max(sizes[len(sizes)-1], w.off+int64(len(w.data))))
	}
	if l.IntN(2) == 0 {
		b = resize(b, sizes[l.IntN(len(sizes))])
	}
	return b
}

// arrive reports whether a sector of a write is on the disk.
func (l *luck) arrive(write, last int) bool {
	if l.torn {
		return write < last || write == last && l.IntN(2) == 0
	}
	return l.Float64() < l.arrives
}

// after returns the names in a folder after a power failure.
func (f *modelFolder) after(l *luck) map[string]int {
	names := maps.Clone(f.durable)
	cut := l.IntN(len(f.pending) + 1)
	for i, c := range f.pending {
		if l.torn && i < cut || !l.torn && l.Float64() < l.named {
			changeName(names, c)
		}
	}
	return names
}

// leave writes the files that a power failure leaves to a folder. pool is a folder for
// bodies that several such folders share.
func (d *modelDisk) leave(t *testing.T, l *luck, path, pool string) {
	t.Helper()
	d.leaveFolder(t, l, ".", path, pool)
	if _, err := os.Stat(filepath.Join(path, storeName)); err == nil && l.IntN(2) == 0 {
		junk := make([]byte, 32<<10)
		for i := range junk {
			junk[i] = byte(l.Uint32())
		}
		must(t, os.WriteFile(filepath.Join(path, storeName, databaseName+"-shm"), junk, 0o600))
	}
}

// storeName is the folder of the recorded store.
const storeName = "store"

func (d *modelDisk) leaveFolder(t *testing.T, l *luck, rel, path, pool string) {
	names := d.folder(rel).after(l)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		inode, to := names[name], filepath.Join(path, name)
		if inode == 0 {
			must(t, os.Mkdir(to, 0o700))
			d.leaveFolder(t, l, filepath.Join(rel, name), to, pool)
			continue
		}
		f := d.file(inode)
		if filepath.Base(rel) != bodiesName || len(f.pending) > 0 {
			must(t, os.WriteFile(to, f.after(l), 0o600))
			continue
		}
		shared := filepath.Join(pool, fmt.Sprintf("%d-%d", inode, len(f.durable)))
		if _, err := os.Stat(shared); err != nil {
			must(t, os.WriteFile(shared, f.durable, 0o600))
		}
		must(t, os.Link(shared, to))
	}
}
