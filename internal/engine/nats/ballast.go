package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"
)

// The ballast is a file of the store that nobody reads. It keeps room that neither
// another program nor the server can take: the server clears a file out by writing
// what is left of it anew, and on a disk without room for that it never comes to the
// end of it. So when a server stores nothing more and the disk is full, the ballast
// is thrown off, and what is under way is settled in its room.

const (
	// ballastName is the file's name in the store.
	ballastName = "ballast"
	// ballastShare is how many times the reserve is free on a disk with so much room
	// that it need not be taken yet: on a large one a gibibyte.
	ballastShare = 16
)

// ballastOf returns how large the ballast of a disk is, in bytes: on a disk of
// 64 MiB it is as much as the server takes at most to clear out one file of each of
// its larger streams.
func ballastOf(total uint64) uint64 { return reserveOf(total) / 4 * 3 }

func (d *disk) ballast() string { return filepath.Join(d.folder, ballastName) }

// takeBallast makes the ballast if there is none, or one for a smaller disk. The
// room for it is free.
func (d *disk) takeBallast(size uint64) {
	if info, err := os.Stat(d.ballast()); err == nil && uint64(info.Size()) >= size {
		return
	}
	if time.Since(d.noBallast) < remindInterval {
		return
	}
	if err := writeBallast(d.ballast(), size); err != nil {
		d.noBallast = time.Now()
		err = errors.Join(err, removeIfThere(d.ballast()))
		d.log.Warn("the store has no room of its own for a disk that is full", zap.Error(err))
	}
}

// writeBallast writes bytes that a file system cannot compress.
func writeBallast(file string, size uint64) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	noise := rand.NewChaCha8([32]byte{})
	piece := make([]byte, 1<<20)
	for size > 0 && err == nil {
		piece = piece[:min(uint64(len(piece)), size)]
		_, _ = noise.Read(piece) // it never fails
		_, err = f.Write(piece)
		size -= uint64(len(piece))
	}
	return err
}

// throwBallast makes the room of the ballast free, if there is one.
func (d *disk) throwBallast() error {
	info, err := os.Stat(d.ballast())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Remove(d.ballast())
	}
	if err != nil {
		return fmt.Errorf("making the room free that the store has kept: %w", err)
	}
	d.log.Warn("the disk of the store is full; what is under way takes the room that was kept for it",
		zap.String("store", d.folder), zap.String("room", humanize.IBytes(uint64(info.Size()))))
	return nil
}

func removeIfThere(file string) error {
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
