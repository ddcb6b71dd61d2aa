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
	// crowded says that ended tasks should make room; low that new tasks are refused;
	// tight that the reserve is being used.
	crowded, low, tight atomic.Bool
	need                atomic.Uint64 // what must be free for a new task, as it was last
	dropped             atomic.Uint64 // ended tasks that have made room, or their results
	// gone says that the folder is not there any more.
	gone atomic.Bool
	// storing is what is being stored: many that look at the free space at once must
	// not each take all of it for theirs. The server acknowledges before it writes: what
	// was stored a moment ago is fresh, then late, and then written.
	storing, fresh, late atomic.Int64
	made                 time.Time
	aged                 atomic.Int64 // when fresh became late last, in nanoseconds since made

	noBallast time.Time // when it could not be made; of watchDisk
}

const (
	// maxReserve is what 256 deliveries, as many as are attempted at once, can
	// store with the largest records there are.
	maxReserve = 256 * recordRoom
	// reserveShare is the part of a small disk that is kept free instead. It is not
	// less than leastReserve, which the server needs to clear its files out: the one
	// that it writes to is as long as it gets, and another is rewritten. Of a disk
	// that is smaller still it is largestShare.
	reserveShare = 8
	leastReserve = 8 << 20
	largestShare = 4
	// spaceInterval is how often the free space is looked at, for a microsecond, and
	// what need be free. A disk that takes 250 MB a second fills the reserve in that
	// time, and a small one's sooner: so who is about to store looks too.
	spaceInterval = 250 * time.Millisecond
	// writeLag is how long a message counts as unwritten after its acknowledgement, and
	// half of it at least. The server writes within milliseconds, and promises nothing.
	// Longer would refuse tasks on a small disk for what stands in its files already.
	writeLag = 40 * time.Millisecond
)

func newDisk(cfg Config) *disk {
	d := &disk{folder: cfg.Store, log: cfg.Logger, space: cfg.space, made: time.Now()}
	if d.space == nil {
		d.space = diskSpace
	}
	return d
}

func reserveOf(total uint64) uint64 {
	return min(maxReserve, max(total/reserveShare, min(leastReserve, total/largestShare)))
}

// use is the room that tasks under way take: their messages, and the files of
// these, in which there are messages too that are gone.
type use struct{ messages, files uint64 }

// rewriting is what the files can still grow by if no task comes. An attempt that
// fails writes its task anew, and the server clears a file out only when more than
// half of it is gone.
func (u use) rewriting() uint64 {
	if 2*u.messages < u.files {
		return 0
	}
	return 2*u.messages - u.files
}

// watchDisk looks at the free space until ctx ends.
func (e *Engine) watchDisk(ctx context.Context) {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	var m meter
	for {
		e.disk.lookForFolder(e.stands())
		e.disk.look(func(enough uint64) use { return m.read(ctx, e, enough) })
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookForFolder notes whether the folder is still the one that was opened. Files that
// were removed while they are open can be written all the same, and are gone when the
// process ends: what would be accepted into them is not stored.
func (d *disk) lookForFolder(stands bool) {
	if d.gone.Swap(!stands) != stands {
		return
	}
	if stands {
		d.log.Info("the folder of the store is there again", zap.String("store", d.folder))
		return
	}
	d.log.Error("the folder of the store was removed or replaced; requests for callbacks are refused until it is back, "+
		"and what is under way is lost if the process ends", zap.String("store", d.folder))
}

// look finds out whether the disk is full. underWay measures what tasks under way
// take, but for the files if there is room enough in any case.
func (d *disk) look(underWay func(enough uint64) use) {
	free, total, err := d.space(d.folder)
	if err != nil {
		return // what cannot be measured is found out by writing
	}
	reserve := reserveOf(total)
	d.tight.Store(free < reserve)
	// What clears out files, and what rewrites them, moves room to and fro between
	// what is free and what they can grow by. The sum of both stays.
	margin := reserve / 2
	u := underWay(free - min(free, reserve+margin))
	need := reserve + u.rewriting()
	d.crowded.Store(free < need+margin)
	wasLow := d.low.Load()
	if wasLow {
		need += reserve / 4 // the state must not change with every task
	}
	d.need.Store(need)
	if low := free < need; low != wasLow {
		d.turn(low, free, need)
	}
	if ballast := ballastOf(total); free >= need+margin+ballast && free < reserve*ballastShare {
		d.takeBallast(ballast)
	}
}

// turn says that new tasks are refused from now on, or no longer.
func (d *disk) turn(low bool, free, need uint64) {
	if !d.low.CompareAndSwap(!low, low) {
		return
	}
	room := []zap.Field{
		zap.String("store", d.folder), zap.String("free", humanize.IBytes(free)), zap.String("needed", humanize.IBytes(need)),
	}
	if low {
		d.log.Error("the disk of the store is full; requests for callbacks are refused", room...)
	} else {
		d.log.Info("the disk of the store has room again", room...)
	}
}

// isFull says whether new tasks are to be refused.
func (d *disk) isFull() bool {
	if d.low.Load() {
		return true
	}
	free, uses := d.uses(wholeReserve)
	if uses {
		d.turn(true, free, d.need.Load())
	}
	return uses
}

// isTight says whether the reserve is being used.
func (d *disk) isTight() bool {
	if d.tight.Load() {
		return true
	}
	_, uses := d.uses(wholeReserve)
	return uses
}

// isScarce says whether half of the reserve is used: there is hardly room to settle
// what is under way.
func (d *disk) isScarce() bool {
	_, uses := d.uses(halfReserve)
	return uses
}

// Parts of the reserve, as what it is divided by.
const (
	wholeReserve = 1
	halfReserve  = 2
)

// uses says whether less than a part of the reserve is free, or will be once what is
// stored is written. What cannot be measured is found out by writing.
func (d *disk) uses(part uint64) (free uint64, uses bool) {
	free, total, err := d.space(d.folder)
	return free, err == nil && free < reserveOf(total)/part+d.unwritten()
}

// unwritten is what may not be in the files yet, in bytes: at most.
func (d *disk) unwritten() uint64 {
	d.age()
	return uint64(d.storing.Load() + d.fresh.Load() + d.late.Load())
}

// begin takes n bytes for what is about to be stored. From end on they are about to
// be written. In a cluster there is no disk of ours.
func (d *disk) begin(n int) {
	if d != nil {
		d.storing.Add(int64(n))
	}
}

func (d *disk) end(n int) {
	if d != nil {
		d.age()
		d.fresh.Add(int64(n))
		d.storing.Add(-int64(n))
	}
}

// age makes what is fresh late, and what is late written, if it is time.
func (d *disk) age() {
	now, last := int64(time.Since(d.made)), d.aged.Load()
	if now-last < int64(writeLag/2) || !d.aged.CompareAndSwap(last, now) {
		return
	}
	fresh := d.fresh.Load()
	d.late.Store(fresh)
	d.fresh.Add(-fresh)
	if now-last >= int64(writeLag) {
		d.late.Store(0)
	}
}

// trialSize is what is written to find out whether a disk takes anything.
const trialSize = 64 << 10

// canStore says why a server must not be started on the folder: one that cannot
// open a file, or write, does not come to serve, or panics.
func (d *disk) canStore() error {
	if free, total, err := d.space(d.folder); err == nil && free < reserveOf(total)/4 {
		return fmt.Errorf("%w: %s are free", ErrFull, humanize.IBytes(free))
	}
	if err := tryOpen(); err != nil {
		return fmt.Errorf("opening the store: %w", err)
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
