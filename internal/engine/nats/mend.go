package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/highwayhash"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// The embedded server opens damaged files without a word of what is lost: it
// cuts a block off at the first bad record, leaves out a stream whose
// description is damaged, and removes one that it cannot read. So the files are
// looked through before it starts. What is damaged is kept aside, what is intact
// is left to it, and the loss is logged.

// mender looks through the files of a store.
type mender struct {
	folder string
	log    *zap.Logger
	aside  string // where damaged files are kept
	had    inventory
	again  bool              // a server of this process was started on the store before
	last   map[string]uint64 // the last message of each stream that is there
}

// mend makes the store fit for a server. An error means that a server must not be
// started on it.
func (e *Engine) mend() error {
	m := &mender{
		folder: e.home.streams(), log: e.log,
		aside: filepath.Join(e.cfg.Store, "damaged-"+time.Now().UTC().Format("20060102T150405.000Z")),
		had:   e.stock.has(),
		again: e.stock.begun(),
		last:  make(map[string]uint64),
	}
	names, err := streamNames(m.folder)
	if err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	m.missStreams(names)
	for _, name := range names {
		if err := m.mendStream(name); err != nil {
			return fmt.Errorf("looking through the stream %s: %w", name, full(err))
		}
	}
	return full(e.stock.begin(e.cfg.Store, m.last))
}

// missStreams tells of streams that were there: the inventory has them, or one that
// is created later is there.
func (m *mender) missStreams(have []string) {
	for i, name := range allStreams {
		_, was := m.had.Last[name]
		later := slices.ContainsFunc(allStreams[i+1:], func(name string) bool { return slices.Contains(have, name) })
		if (was || later) && !slices.Contains(have, name) {
			m.log.Error("the store is damaged: a stream is gone with all that was in it",
				zap.String("stream", name), zap.String("store", m.folder))
		}
	}
}

func (m *mender) mendStream(name string) error {
	if err := m.mendDescription(name); err != nil {
		return err
	}
	blocks, err := blocksOf(m.folder, name)
	if err != nil {
		return err
	}
	sizes := make(map[uint32]int64)
	var damages []*damage
	for _, index := range blocks {
		d, err := m.mendBlock(name, index, sizes)
		if err != nil {
			return err
		}
		if d != nil {
			damages = append(damages, d)
		}
	}
	// When schedules are due is in the messages too, and there it has a checksum.
	drop := []string{"sched.db"}
	if m.missFiles(name, sizes) || len(damages) > 0 {
		drop = append(drop, "index.db") // it is about the blocks as they were
	}
	left, err := m.leftovers(name)
	if err != nil {
		return err
	}
	for _, file := range append(drop, left...) {
		if err := os.Remove(filepath.Join(m.folder, name, "msgs", file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return m.tell(name, damages)
}

// missFiles tells of files that are gone, or end too early, and says whether the server
// must look through the blocks itself. Of a server that was killed nobody knows which it
// had: one in the midst of others that is gone may be one that it had cleared out.
func (m *mender) missFiles(stream string, sizes map[uint32]int64) bool {
	listed, wasListed := m.had.Files[stream]
	had := make(map[uint32]int64)
	empty := emptyAmong(sizes)
	if !m.again {
		for _, index := range empty {
			had[index] = 1
		}
	}
	maps.Copy(had, listed)
	var files []string
	for _, index := range slices.Sorted(maps.Keys(had)) {
		if sizes[index] < had[index] {
			files = append(files, fmt.Sprintf("%s has %d bytes", blockFile(index), sizes[index]))
		}
	}
	last := m.had.Last[stream]
	if len(files) == 0 && (wasListed || last <= m.last[stream]) {
		return len(empty) > 0 // it removes them then
	}
	m.log.Error("the store is damaged: what stood in files that are gone, or too short, is lost",
		zap.String("stream", stream), zap.String("store", m.folder), zap.Strings("files", files[:min(len(files), maxNamed)]),
		zap.Uint64("last_message", last), zap.Uint64("last_found", m.last[stream]))
	return true
}

// emptyAmong returns which blocks are empty and have others behind them that are not. The
// server clears a block out and removes it then, so that it leaves such a one only if it
// fails between the two, as for want of a file descriptor. Those at the end it leaves: in
// an empty stream it begins the next before it removes the last.
func emptyAmong(sizes map[uint32]int64) (indexes []uint32) {
	filled := false
	for _, index := range slices.Backward(slices.Sorted(maps.Keys(sizes))) {
		switch {
		case sizes[index] > 0:
			filled = true
		case filled:
			indexes = append(indexes, index)
		}
	}
	return indexes
}

// blocksOf returns which blocks a stream has, in their order.
func blocksOf(folder, stream string) (indexes []uint32, _ error) {
	entries, err := os.ReadDir(filepath.Join(folder, stream, "msgs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".blk")
		if index, err := strconv.ParseUint(name, 10, 32); ok && err == nil {
			indexes = append(indexes, uint32(index))
		}
	}
	slices.Sort(indexes) // those of the folder are in that of their names
	return indexes, nil
}

// leftovers returns the files that were about to be put in the place of blocks when
// the process was killed. The server never looks at them, and they take room.
func (m *mender) leftovers(stream string) (names []string, _ error) {
	entries, err := os.ReadDir(filepath.Join(m.folder, stream, "msgs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); ext == ".new" || ext == ".tmp" {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

func blockFile(index uint32) string {
	return filepath.Join("msgs", strconv.FormatUint(uint64(index), 10)+".blk")
}

// mendDescription keeps a stream's description aside if it is damaged: the stream
// is then described anew when it is opened, with the messages that are there.
func (m *mender) mendDescription(name string) error {
	file := filepath.Join(m.folder, name, "meta.inf")
	data, err := os.ReadFile(file)
	if err == nil {
		var sum []byte
		sum, err = os.ReadFile(filepath.Join(m.folder, name, "meta.sum"))
		if err == nil && isDescription(name, data, sum) {
			return nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, file := range []string{"meta.inf", "meta.sum"} {
		if err := m.keepAside(name, file, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	m.log.Error("the store is damaged: the description of a stream cannot be read; it is made anew",
		zap.String("stream", name), zap.String("kept", m.aside))
	return nil
}

func isDescription(name string, data, sum []byte) bool {
	key := sha256.Sum256([]byte(name))
	digest, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		return true // for the server to judge
	}
	_, _ = digest.Write(data) // it returns no error
	return hex.EncodeToString(digest.Sum(nil)) == string(sum) && json.Valid(data)
}

// keepAside keeps a file of a stream where an operator finds it, and takes it
// out of the stream if it is to be moved.
func (m *mender) keepAside(stream, file string, move bool) error {
	from := filepath.Join(m.folder, stream, file)
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	to := filepath.Join(m.aside, stream, filepath.Base(file))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := writeSynced(to, data); err != nil || !move {
		return err
	}
	return os.Remove(from)
}

// writeSynced writes a file that is whole or not there.
func writeSynced(name string, data []byte) error {
	temp, err := os.OpenFile(name+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp.Name()))
	}
	return err
}

// damage is what is damaged in a block.
type damage struct {
	file  string
	lost  []blockRecord
	bytes int
	torn  bool // nothing that is intact stands behind it
}

// mendBlock takes the damaged records out of a block, and notes its size as it was. It
// returns nil if there are none.
func (m *mender) mendBlock(stream string, index uint32, sizes map[uint32]int64) (*damage, error) {
	d := &damage{file: blockFile(index)}
	name := filepath.Join(m.folder, stream, d.file)
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	sizes[index] = int64(len(data))
	b, err := openBlock(stream, index, data)
	if err != nil {
		return nil, err
	}
	var good bytes.Buffer
	kept := 0
	for r, intact := range b.records() {
		if intact || r.sequence <= m.had.Last[stream] { // or it is noise
			m.last[stream] = max(m.last[stream], r.sequence)
		}
		if intact {
			continue
		}
		good.Write(data[kept:r.start])
		kept = r.end
		d.lost = append(d.lost, r)
		d.bytes += r.end - r.start
		d.torn = r.end == len(data)
	}
	if len(d.lost) == 0 {
		return nil, nil
	}
	good.Write(data[kept:])
	if err := m.keepAside(stream, d.file, false); err != nil {
		return nil, err
	}
	if good.Len() == 0 {
		return d, os.Remove(name)
	}
	return d, writeSynced(name, good.Bytes())
}

// maxNamed is how many tasks a log line names.
const maxNamed = 20

var taskID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// tell logs what is lost of a stream.
func (m *mender) tell(stream string, damages []*damage) error {
	if len(damages) == 0 {
		return nil
	}
	over, err := m.findOver(stream)
	if err != nil {
		return err
	}
	for _, d := range damages {
		var tasks []string
		unreadable, wasOver := 0, 0
		for _, r := range d.lost {
			switch id := idOf(r.subject); {
			case r.sequence != 0 && over(r):
				wasOver++
			case taskID.MatchString(id):
				tasks = append(tasks, id)
			default:
				unreadable++
			}
		}
		message := "the store is damaged: messages are lost; what is intact is used"
		if d.torn && len(d.lost) == 1 {
			message = "the store is damaged: what was written last is torn; what is intact is used"
		}
		m.log.Error(message,
			zap.String("stream", stream), zap.String("file", d.file), zap.Int("bytes", d.bytes),
			zap.Int("lost", len(tasks)), zap.Strings("lost_tasks", tasks[:min(len(tasks), maxNamed)]),
			zap.Int("unreadable", unreadable), zap.Int("no_longer_needed", wasOver), zap.String("kept", m.aside))
	}
	return nil
}

// findOver returns whether a message was deleted, or had another in its place,
// before it was damaged.
func (m *mender) findOver(stream string) (over func(blockRecord) bool, _ error) {
	deleted, last := make(map[uint64]bool), make(map[string]uint64)
	blocks, err := blocksOf(m.folder, stream)
	if err != nil {
		return nil, err
	}
	for _, index := range blocks {
		data, err := os.ReadFile(filepath.Join(m.folder, stream, blockFile(index)))
		if err != nil {
			return nil, err
		}
		b := &block{data: data}
		for i := 0; i < len(data); {
			r, ok := b.at(i) // all that is left is intact
			if !ok {
				break
			}
			if r.tombstone {
				deleted[r.sequence] = true
			} else {
				last[r.subject] = max(last[r.subject], r.sequence)
			}
			i = r.end
		}
	}
	return func(r blockRecord) bool { return r.tombstone || deleted[r.sequence] || last[r.subject] > r.sequence }, nil
}

// tellLost logs what the server itself misses: a file that it had written and
// that is gone.
func (e *Engine) tellLost(k *link) {
	for _, stream := range []jetstream.Stream{k.live, k.ended, k.dead} {
		info := stream.CachedInfo()
		if lost := info.State.Lost; lost != nil {
			e.log.Error("the store is damaged: messages are lost", zap.String("stream", info.Config.Name),
				zap.Int("messages", len(lost.Msgs)), zap.Uint64("bytes", lost.Bytes))
		}
	}
}
