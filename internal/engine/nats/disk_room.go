package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// What was accepted comes before what can be looked up. So when the disk has
// little room, ended tasks are dropped before their time, the oldest first, and
// before new tasks are refused.

// meter measures what tasks under way take. It is used by one goroutine.
type meter struct {
	last use       // what was measured last
	due  time.Time // when the files may be measured next
}

const (
	// infoTimeout bounds the wait for a server that writes no more: the free space
	// is to be looked at all the same.
	infoTimeout = time.Second
	// filesShare is the part of the time that looking at the files may take: a store
	// of a hundred gigabytes has 25,000.
	filesShare = 20
)

// read measures. If the messages could be written once more and leave enough, it
// does not look at the files.
func (m *meter) read(ctx context.Context, e *Engine, enough uint64) use {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info, err := e.link().live.Info(ctx)
	if err != nil {
		return m.last // it is about what it was
	}
	m.last.messages = info.State.Bytes
	if m.last.messages < enough {
		m.last.files = m.last.messages
		return m.last
	}
	if start := time.Now(); start.After(m.due) {
		m.last.files = filesOf(filepath.Join(e.home.streams(), liveStream, "msgs"))
		m.due = time.Now().Add(filesShare * time.Since(start))
	}
	return m.last
}

// filesOf returns how long the files of a stream are that have messages in them.
func filesOf(folder string) (sum uint64) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".blk") {
			continue
		}
		if info, err := entry.Info(); err == nil { // or it is gone meanwhile
			sum += uint64(info.Size())
		}
	}
	return sum
}

const (
	// roomInterval is how often ended tasks are dropped while the disk is crowded.
	// The free space is measured in between.
	roomInterval = 2 * spaceInterval
	// roomShare is the part of the ended tasks that is dropped at once, or else
	// roomLeast.
	roomShare = 4
	roomLeast = 1000
	// roomAge is how long an ended task stays all the same: for a moment, that it has
	// ended keeps a lapse of its lease from becoming another verdict. A large result
	// stays as long, for its task may be about to name it.
	roomAge = 10 * time.Second
)

// watchRoom has ended tasks make room while there is little, until ctx ends.
func (e *Engine) watchRoom(ctx context.Context) {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	var swept, told, failed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if e.disk.crowded.Load() {
			err := e.makeRoom(ctx, &swept)
			if err != nil && ctx.Err() == nil && time.Since(failed) >= remindInterval {
				failed = time.Now()
				e.log.Warn("ended tasks have made no room", zap.Error(err))
			}
		}
		if n := e.disk.dropped.Load(); n > 0 && time.Since(told) >= remindInterval {
			told = time.Now()
			e.disk.dropped.Add(-n)
			e.log.Warn("the disk of the store has little room: ended tasks, or their results, are dropped early",
				zap.Uint64("tasks", n))
		}
	}
}

// makeRoom drops some of the ended tasks, and their bodies. Of a server that
// stores nothing more, because the files of another stream have no room, it drops
// the tasks alone: that may be the room in which it is opened anew.
func (e *Engine) makeRoom(ctx context.Context, swept *time.Time) error {
	n, err := e.dropEnded(ctx)
	if err != nil || e.Stores() != nil {
		return err
	}
	if n > 0 {
		err = e.dropResults(ctx)
	}
	if now := time.Now(); now.Sub(*swept) >= sweepAge {
		*swept = now
		err = errors.Join(err, e.sweep(ctx, now.Add(-sweepAge), now.Add(-uploadAge)))
	}
	return err
}

// dropEnded drops the oldest of the ended tasks, and returns how many.
func (e *Engine) dropEnded(ctx context.Context) (dropped uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	ended := e.link().ended
	info, err := ended.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("counting ended tasks: %w", err)
	}
	first, span := info.State.FirstSeq, info.State.LastSeq+1-info.State.FirstSeq
	if info.State.Msgs == 0 {
		return 0, nil
	}
	n := max(span/roomShare, min(span, roomLeast))
	for ; n > 0; n /= 2 {
		youngest, err := ended.GetMsg(ctx, first+n-1)
		if err == nil && time.Since(youngest.Time) >= roomAge {
			break
		} else if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return 0, fmt.Errorf("looking at ended tasks: %w", err)
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := ended.Purge(ctx, jetstream.WithPurgeSequence(first+n)); err != nil {
		return 0, fmt.Errorf("dropping ended tasks: %w", err)
	}
	n = min(n, info.State.Msgs) // there may be gaps
	e.disk.dropped.Add(n)
	return n, nil
}

// dropResults drops the large results of tasks that are not there any more. The
// sweep waits until an object is older, for a request's may be stored long before
// its task. A result's is stored a moment before its task names it.
func (e *Engine) dropResults(ctx context.Context) error {
	objects, err := e.link().blobs.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil
	} else if err != nil {
		return fmt.Errorf("listing bodies: %w", err)
	}
	for _, object := range objects {
		if !strings.Contains(object.Name, resultBlob) || time.Since(object.ModTime) < roomAge {
			continue
		}
		needed, err := e.needsBlob(ctx, object)
		if err != nil {
			return err
		}
		if !needed {
			e.dropBlob(ctx, object.Name)
		}
	}
	return nil
}

// isScarce says that there is hardly room to settle what is under way.
func (e *Engine) isScarce() bool { return e.disk != nil && e.disk.isScarce() }

// isTight says that the reserve is being used.
func (e *Engine) isTight() bool { return e.disk != nil && e.disk.isTight() }

// keepsResult says whether the result of a task that ends is kept, for whoever
// looks it up. While the reserve is used, one that was delivered is not: it is
// the room that was to be made.
func (e *Engine) keepsResult(rec *task.Record) bool {
	if rec.Queue == "" {
		return false // nobody can fetch it
	}
	if rec.Callback == nil || !e.isTight() {
		return true
	}
	e.disk.dropped.Add(1)
	return false
}

// goneBlob is the name of a body that is not kept.
const goneBlob = resultBlob + "gone"
