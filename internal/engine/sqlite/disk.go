package sqlite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// disk is the disk that bodies are written to. A test replaces it to record the
// operations that a power failure could undo.
type disk interface {
	// makeFolder creates a folder for the owner alone; see [os.Mkdir].
	makeFolder(name string) error
	// create creates a new file for the owner alone.
	create(name string) (bodyFile, error)
	remove(name string) error
	// syncFolder makes the names in a folder durable, as fsync of the folder does.
	syncFolder(name string) error
}

// bodyFile is the file of a body that is being written.
type bodyFile interface {
	io.WriteCloser
	Sync() error
}

// systemDisk is the disk of the operating system.
type systemDisk struct{}

func (systemDisk) makeFolder(name string) error { return os.Mkdir(name, 0o700) }

func (systemDisk) create(name string) (bodyFile, error) {
	return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

func (systemDisk) remove(name string) error { return os.Remove(name) }

func (systemDisk) syncFolder(name string) error { return syncFolder(name) }

// createFolder creates a folder and its parents if they do not exist. Caddy itself may
// create a parent at the same time.
func createFolder(d disk, name string) error {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := createFolder(d, parent); err != nil {
			return err
		}
	}
	if err := d.makeFolder(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncNames(d, parent)
}

// syncNames makes the names in folders durable. It skips a folder that this process may
// not read and has therefore not created, and a folder on a file system that does not
// support syncing folders (EINVAL or ENOTSUP).
func syncNames(d disk, folders ...string) error {
	for _, folder := range folders {
		err := d.syncFolder(folder)
		if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("syncing the folder %s: %w", folder, err)
		}
	}
	return nil
}
