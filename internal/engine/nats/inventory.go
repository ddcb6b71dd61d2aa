package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
)

// The embedded server takes a file that is gone, or that ends after one of its
// records, for one from which messages were removed, and says nothing. So beside its
// files the store has an inventory: of each stream the last message, and, once the
// server has ended, each file with its size. What is not there any more at the next
// start is lost, and the log says so.

// inventory is what a store has.
type inventory struct {
	// Last is the sequence of the last message of each stream, as it was less than a
	// second ago, or, of what the server stores by itself, less than ten.
	Last map[string]uint64 `json:"last"`
	// Files are the sizes of the blocks of each stream, in bytes, by their numbers;
	// only while no server runs.
	Files map[string]map[uint32]int64 `json:"files,omitempty"`
}

// stock keeps the inventory of an open store.
type stock struct {
	mu    sync.Mutex
	file  *os.File
	known inventory         // as it is in the file
	seen  map[string]uint64 // what Last becomes if all is well the next time
}

const (
	inventoryName = "inventory.json"
	// inventorySize is how much of the file is written while a server runs, in one
	// piece and in its place: with blanks at its end it does not change its size, so
	// that a full disk is no matter, and whoever kills the process finds it whole.
	inventorySize = 512
	// stockInterval is how often the last messages are looked at.
	stockInterval = 250 * time.Millisecond
	// While the engine stores nothing only every idleLooks-th look is taken, after the
	// stockLooks that it takes for what was stored last to count.
	stockLooks = 3
	idleLooks  = 16
)

// open reads the inventory. A store that is new, or of a version that had none, has
// nothing in it.
func (s *stock) open(store string) error {
	data, err := os.ReadFile(filepath.Join(store, inventoryName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the inventory of the store: %w", err)
	}
	if err := json.Unmarshal(data, &s.known); err != nil {
		return fmt.Errorf("%w: %w", errNoInventory, err)
	}
	return nil
}

var errNoInventory = errors.New("the inventory of the store cannot be read")

func (s *stock) has() inventory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// begun says whether begin has been called since the store was opened.
func (s *stock) begun() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file != nil
}

// begin says what the store has now that a server is about to be started.
func (s *stock) begin(store string, last map[string]uint64) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.seen = inventory{Last: last}, nil
	if s.file != nil {
		return s.write()
	}
	name := filepath.Join(store, inventoryName)
	data, err := s.known.padded()
	if err == nil {
		err = writeSynced(name, data)
	}
	if err == nil {
		err = syncFolders(store)
	}
	if err == nil {
		s.file, err = os.OpenFile(name, os.O_WRONLY, 0)
	}
	if err != nil {
		return fmt.Errorf("writing the inventory of the store: %w", err)
	}
	return nil
}

func (inv inventory) padded() ([]byte, error) {
	data, err := json.Marshal(inv)
	if err == nil && len(data) > inventorySize {
		err = fmt.Errorf("%d bytes are more than there is room for", len(data))
	}
	return append(data, bytes.Repeat([]byte{' '}, max(0, inventorySize-len(data)))...), err
}

func (s *stock) write() error {
	data, err := s.known.padded()
	if err == nil {
		_, err = s.file.WriteAt(data, 0)
	}
	if err != nil {
		return fmt.Errorf("writing the inventory of the store: %w", err)
	}
	return nil
}

// see takes note of the last messages of a server. It acknowledges what it has not
// written yet, so they count from the next time on, if all is well until then. Nil
// stands for a server that is not well.
func (s *stock) see(k *link, last map[string]uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.life.Err() != nil {
		last = nil // another may be about to begin
	}
	written := s.seen
	s.seen = last
	if last == nil || written == nil || maps.Equal(written, s.known.Last) {
		return nil
	}
	s.known.Last = written
	return s.write()
}

func (s *stock) close() error {
	if s.file == nil {
		return nil
	}
	file := s.file
	s.file = nil
	return file.Close()
}

// watchStock keeps the inventory up to date until ctx ends. A server that does not
// answer may hang, and there may be nobody who stores and so finds out: deliveries that
// do not come are missed by no one.
func (e *Engine) watchStock(ctx context.Context) {
	tick := time.NewTicker(stockInterval)
	defer tick.Stop()
	var told time.Time
	var failing time.Time // since when it has not answered
	var stored, idle uint64
	var before map[string]uint64 // of the look before, if nothing has been stored since
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		idle++
		if n := e.stored.Load(); n != stored || !failing.IsZero() {
			stored, idle, before = n, 0, nil
		}
		if idle > stockLooks && idle%idleLooks != 0 {
			continue
		}
		k := e.link()
		last, err := lastMessages(ctx, k, before)
		switch {
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) >= publishTimeout:
			e.health.suspect.Store(true)
		}
		if e.health.err() != nil || e.health.suspect.Load() {
			last = nil
		}
		if idle > stockLooks {
			before = last
		}
		err = e.stock.see(k, last)
		if err != nil && time.Since(told) >= remindInterval {
			told = time.Now()
			e.log.Warn("what is lost with a file of the store may not be told", zap.Error(err))
		}
	}
}

// lastMessages returns the last message of each stream, or an error, and then nil. Given
// what they were when the engine last stored anything, it looks first at the stream in
// which the server stores by itself.
func lastMessages(ctx context.Context, k *link, before map[string]uint64) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	last := make(map[string]uint64)
	for _, name := range allStreams {
		stream, err := k.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("looking at the stream %s: %w", name, err)
		}
		last[name] = stream.CachedInfo().State.LastSeq
		if before != nil && name == liveStream && last[name] == before[name] {
			return before, nil
		}
	}
	return last, nil
}

// closeStock takes the inventory of the files when no server writes to them any more.
func (e *Engine) closeStock() {
	// A file that is open cannot be replaced on Windows.
	if err := errors.Join(e.stock.close(), e.listFiles()); err != nil {
		e.log.Warn("what is lost with a file of the store may not be told", zap.Error(err))
	}
}

func (e *Engine) listFiles() error {
	inv := inventory{Last: e.stock.has().Last, Files: make(map[string]map[uint32]int64)}
	streams := e.home.streams()
	for _, name := range allStreams {
		blocks, err := blocksOf(streams, name)
		if err != nil {
			return err
		}
		inv.Files[name] = make(map[uint32]int64, len(blocks))
		for _, index := range blocks {
			info, err := os.Stat(filepath.Join(streams, name, blockFile(index)))
			if err != nil {
				return err
			}
			inv.Files[name][index] = info.Size()
		}
	}
	data, err := json.Marshal(inv)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(e.cfg.Store, inventoryName), data)
}
