package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"go.uber.org/zap"
)

// The embedded server removes a stream that it fails to open, with all that is in
// it: for want of a file descriptor, or because one write failed. So while it opens
// them, the files of the streams have second names, hard links. What has lost its
// first name by the next opening gets it back.

// openingFiles is how many files must be free to be opened for a server to be
// started: it opens about twenty, and others in the process take some meanwhile.
const openingFiles = 64

// tryOpen returns an error if fewer files can be opened than a server needs.
func tryOpen() (err error) {
	var files [openingFiles]*os.File
	defer func() {
		for _, f := range files {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	for i := range files {
		if files[i], err = os.Open(os.DevNull); err != nil {
			return fmt.Errorf("only %d of %d files could be opened: %w", i, len(files), err)
		}
	}
	return nil
}

// openingFolder is where the second names are.
func openingFolder(store string) string { return filepath.Join(store, "opening") }

// streamNames returns the names of the streams under a folder, in which there are
// others that a server was about to remove.
func streamNames(folder string) (names []string, _ error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// irreplaceable returns which files of a stream a server cannot make anew.
func irreplaceable(folder, stream string) (files []string, _ error) {
	blocks, err := blocksOf(folder, stream)
	for _, index := range blocks {
		files = append(files, filepath.Join(stream, blockFile(index)))
	}
	// What describes the stream comes last: with it, the stream is whole.
	return append(files, filepath.Join(stream, "meta.sum"), filepath.Join(stream, "meta.inf")), err
}

// linkStreams gives what is irreplaceable under one folder the same names under
// another, but for what is there.
func linkStreams(from, to string) error {
	streams, err := streamNames(from)
	if err != nil {
		return err
	}
	for _, stream := range streams {
		files, err := irreplaceable(from, stream)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(to, stream, "msgs"), 0o700); err != nil {
			return err
		}
		for _, file := range files {
			err := os.Link(filepath.Join(from, file), filepath.Join(to, file))
			// A stream whose description is damaged has none: it is made anew.
			if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// secureStreams gives the files of the streams their second names.
func (e *Engine) secureStreams() error {
	if runtime.GOOS == "windows" {
		return nil // nobody can remove them there while a server has the files open
	}
	err := linkStreams(e.home.streams(), openingFolder(e.cfg.Store))
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		e.log.Warn("the file system of the store has no hard links: a server that fails to open a stream removes it",
			zap.String("store", e.cfg.Store), zap.Error(err))
		return e.releaseStreams()
	} else if err != nil {
		return fmt.Errorf("securing the streams: %w", full(err))
	}
	return nil
}

// releaseStreams removes the second names.
func (e *Engine) releaseStreams() error {
	if err := os.RemoveAll(openingFolder(e.cfg.Store)); err != nil {
		return fmt.Errorf("removing the links to the streams: %w", err)
	}
	return nil
}

// restoreStreams puts back what a server removed that could not open it.
func (e *Engine) restoreStreams() error {
	from, to := openingFolder(e.cfg.Store), e.home.streams()
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := linkStreams(from, to); err != nil {
		return fmt.Errorf("putting the streams back: %w", full(err))
	}
	return e.releaseStreams()
}

// checkOpened returns an error if the server lacks a stream that it was given. It
// would be made anew, empty.
func (e *Engine) checkOpened(ctx context.Context, k *link) error {
	streams, err := streamNames(openingFolder(e.cfg.Store))
	if err != nil {
		return fmt.Errorf("looking which streams there were: %w", err)
	}
	for _, name := range streams {
		if _, err := os.Stat(filepath.Join(openingFolder(e.cfg.Store), name, "meta.inf")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, err := k.js.Stream(ctx, name); err != nil {
			return fmt.Errorf("the embedded engine did not open the stream %s; nothing of it is lost: %w", name, err)
		}
	}
	return e.releaseStreams()
}
