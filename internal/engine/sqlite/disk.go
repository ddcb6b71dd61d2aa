package sqlite

import (
	"io"
	"os"
)

// disk is what bodies are written through. A test replaces it to record what a
// power failure could undo.
type disk interface {
	// makeFolder creates a folder, and those above it, for the owner alone.
	makeFolder(name string) error
	// create creates a file in a folder under a new name; see [os.CreateTemp].
	create(folder, pattern string) (bodyFile, error)
	rename(from, to string) error
	remove(name string) error
	// syncFolder makes the names in a folder durable.
	syncFolder(name string) error
}

// bodyFile is a file that a body is written to.
type bodyFile interface {
	io.WriteCloser
	Name() string
	Sync() error
}

// systemDisk is the system's disk.
type systemDisk struct{}

func (systemDisk) makeFolder(name string) error { return os.MkdirAll(name, 0o700) }

func (systemDisk) create(folder, pattern string) (bodyFile, error) { return os.CreateTemp(folder, pattern) }

func (systemDisk) rename(from, to string) error { return os.Rename(from, to) }

func (systemDisk) remove(name string) error { return os.Remove(name) }

func (systemDisk) syncFolder(name string) error { return syncFolder(name) }
