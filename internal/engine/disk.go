package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap"
)

// disk watches the free space of the store's disk. Before there is none new
// tasks are refused: what is under way needs room to be settled in, and a server
// whose disk is full stores nothing any more until it is opened anew.
type disk struct {
	folder string
	log    *zap.Logger
	space  func(folder string) (free, total uint64, err error)
	// low says that what is free is the reserve, scarce that half of that is used.
	low, scarce atomic.Bool
}

const (
	// maxReserve is what 256 deliveries, as many as are attempted at once, can
	// store with the largest records there are.
	maxReserve = 256 * recordRoom
	// reserveShare is the part of a small disk that is kept free instead.
	reserveShare = 8
	// spaceInterval is how often the free space is looked at, for a microsecond. A
	// disk that takes 250 MB a second fills the reserve in that time.
	spaceInterval = 250 * time.Millisecond
)

func newDisk(cfg Config) *disk {
	d := &disk{folder: cfg.Store, log: cfg.Logger, space: cfg.space}
	if d.space == nil {
		d.space = diskSpace
	}
	return d
}

func reserveOf(total uint64) uint64 { return min(maxReserve, total/reserveShare) }

// watch looks at the free space until ctx ends.
func (d *disk) watch(ctx context.Context) {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		d.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look finds out whether the disk is full.
func (d *disk) look() {
	free, total, err := d.space(d.folder)
	if err != nil {
		return // what cannot be measured is found out by writing
	}
	reserve := reserveOf(total)
	d.scarce.Store(free < reserve/2)
	wasLow := d.low.Load()
	if wasLow {
		reserve += reserve / 4 // the state must not change with every task
	}
	low := free < reserve
	if low == wasLow {
		return
	}
	d.low.Store(low)
	room := []zap.Field{
		zap.String("store", d.folder), zap.String("free", humanize.IBytes(free)),
		zap.String("reserve", humanize.IBytes(reserveOf(total))),
	}
	if low {
		d.log.Error("the disk of the store is full; requests for callbacks are refused", room...)
	} else {
		d.log.Info("the disk of the store has room again", room...)
	}
}

// trialSize is what is written to find out whether a disk takes anything.
const trialSize = 64 << 10

// canStore says why a server must not be started on the folder. A server that
// cannot write removes the streams that it fails to open, with all that is in
// them.
func (d *disk) canStore() error {
	if free, total, err := d.space(d.folder); err == nil && free < reserveOf(total)/4 {
		return fmt.Errorf("%w: %s are free", ErrFull, humanize.IBytes(free))
	}
	if err := d.tryWrite(); err != nil {
		return fmt.Errorf("writing to the store: %w", full(err))
	}
	return nil
}

func (d *disk) tryWrite() (err error) {
	trial, err := os.CreateTemp(d.folder, "trial-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, trial.Close(), os.Remove(trial.Name()))
	}()
	if _, err := trial.Write(make([]byte, trialSize)); err != nil {
		return err
	}
	return trial.Sync()
}

// full makes ErrFull of an error that says so.
func full(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
