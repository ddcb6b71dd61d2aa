package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A server of the embedded engine that has failed may never end: one of its locks
// is held for good when a disk is full to the last byte. It knows its files by name,
// and has some of them open. So they are moved to where it does not know them, what
// it may still write to is copied, and another server is started there. It is back
// in its place when a process opens the store that has left no server behind in it.

// home is the folder in which the embedded server has its own, named jetstream.
type home struct {
	mu     sync.RWMutex
	folder string
}

func (h *home) get() string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.folder
}

// streams is where the embedded server has its streams.
func (h *home) streams() string { return streamsIn(h.get()) }

func streamsIn(home string) string { return filepath.Join(home, "jetstream", "$G", "streams") }

// homePrefix begins the names of the folders in a store that servers were moved to.
const homePrefix = "reopened-"

// leftBehind are the stores, by their folders, in which this process has left a
// server behind.
var leftBehind sync.Map

// homesIn returns the folders of a store that a server has its files in, one but for
// a store that is new, and those that it had them in.
func homesIn(store string) (homes, empty []string, _ error) {
	entries, err := os.ReadDir(store)
	if err != nil {
		return nil, nil, err
	}
	candidates := []string{store}
	for _, entry := range entries {
		if entry.IsDir() && strings.HasPrefix(entry.Name(), homePrefix) {
			candidates = append(candidates, filepath.Join(store, entry.Name()))
		}
	}
	for _, folder := range candidates {
		switch _, err := os.Stat(filepath.Join(folder, "jetstream")); {
		case err == nil:
			homes = append(homes, folder)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, nil, err
		case folder != store:
			empty = append(empty, folder)
		}
	}
	return homes, empty, nil
}

// findHome finds out where the files of a store are, and moves them back to their
// place unless a server is left there.
func findHome(store string) (folder string, _ error) {
	homes, empty, err := homesIn(store)
	if err != nil {
		return "", fmt.Errorf("reading the store: %w", err)
	}
	if len(homes) > 1 {
		return "", fmt.Errorf("there are two stores, in %s; move the one that is not to be used away", strings.Join(homes, " and "))
	}
	folder = store
	if len(homes) == 1 {
		folder = homes[0]
	}
	if _, left := leftBehind.Load(store); folder != store && !left {
		if err := errors.Join(moveHome(folder, store), syncFolders(folder, store)); err != nil {
			return "", fmt.Errorf("moving the files of the engine back: %w", err)
		}
		empty, folder = append(empty, folder), store
	}
	for _, folder := range empty {
		if err := os.Remove(folder); err != nil {
			return "", fmt.Errorf("removing what a server had its files in: %w", err)
		}
	}
	return folder, nil
}

// moveHome moves the files of a server, all at once.
func moveHome(from, to string) error {
	return os.Rename(filepath.Join(from, "jetstream"), filepath.Join(to, "jetstream"))
}

// syncFolders makes sure that what was renamed in folders stays so if the power fails.
func syncFolders(names ...string) (err error) {
	if runtime.GOOS == "windows" {
		return nil // there is no such thing there
	}
	for _, name := range names {
		folder, openErr := os.Open(name)
		if openErr != nil {
			return errors.Join(err, openErr)
		}
		err = errors.Join(err, folder.Sync(), folder.Close())
	}
	return err
}

// stands says whether the store is still where it was opened.
func (e *Engine) stands() bool {
	e.home.mu.RLock()
	defer e.home.mu.RUnlock()
	return e.lock.stands(e.cfg.Store, streamsIn(e.home.folder))
}

// closeLink closes an opening of the store. When it returns nil another server can be
// started, whether this one has ended or not.
func (e *Engine) closeLink(k *link) error {
	if k.server == nil {
		k.close()
		return nil
	}
	if !k.left.Load() {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			k.close()
		}()
		select {
		case <-closed:
			return nil
		case <-time.After(e.cfg.patience):
		}
	}
	if err := e.leaveBehind(k); err != nil {
		return fmt.Errorf("the server that failed does not end within %v, and cannot be left behind; "+
			"Caddy must be started again if this stays so: %w", e.cfg.patience, full(err))
	}
	return nil
}

// leaveBehind takes the files away from a server that does not end.
func (e *Engine) leaveBehind(k *link) error {
	if !k.left.Load() {
		folder, err := os.MkdirTemp(e.cfg.Store, homePrefix)
		if err != nil {
			return err
		}
		leftBehind.Store(e.cfg.Store, struct{}{})
		e.home.mu.Lock()
		if err = moveHome(e.home.folder, folder); err == nil {
			e.home.folder = folder
			k.left.Store(true)
		}
		e.home.mu.Unlock()
		if err != nil {
			return errors.Join(err, os.Remove(folder))
		}
		e.log.Error("a server that failed does not end; another takes its files, "+
			"and what it holds of memory and of the disk is free when Caddy is started again",
			zap.Duration("after", e.cfg.patience), zap.String("store", folder))
	}
	home := e.home.get()
	return errors.Join(detach(streamsIn(home)), syncFolders(e.cfg.Store, home))
}

// openBlocks is how many blocks of a stream a server may have open: the one that it
// writes to, and one that it was about to write to.
const openBlocks = 2

// detach puts copies in the place of the files that a server may have open.
func detach(folder string) error {
	streams, err := streamNames(folder)
	if err != nil {
		return err
	}
	for _, stream := range streams {
		blocks, err := blocksOf(folder, stream)
		if err != nil {
			return err
		}
		for _, index := range blocks[max(0, len(blocks)-openBlocks):] {
			name := filepath.Join(folder, stream, blockFile(index))
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if err := writeSynced(name, data); err != nil {
				return err
			}
		}
		if len(blocks) == 0 {
			continue
		}
		if err := syncFolders(filepath.Join(folder, stream, "msgs")); err != nil {
			return err
		}
	}
	return nil
}
