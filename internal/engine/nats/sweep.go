package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// An object is stored before the message that names it, and retention forgets
// ended tasks without a word. So now and then objects that no task names are
// swept out.

const (
	sweepInterval = time.Hour
	// sweepAge is how old an object must be: its task may be about to be stored.
	sweepAge = time.Minute
	// uploadAge is how long an upload may make no progress before what was stored
	// of it counts as left by a node that died.
	uploadAge = time.Hour
)

// sweepBlobs sweeps at once and then every hour, until ctx ends.
func (e *Engine) sweepBlobs(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		now := e.link().theirs(time.Now())
		if err := e.sweep(ctx, now.Add(-sweepAge), now.Add(-uploadAge)); err != nil && ctx.Err() == nil {
			e.log.Warn("bodies not swept", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sweep removes the objects that no task needs and that are older than before,
// and what broken uploads left, if its last part is older than stalled.
func (e *Engine) sweep(ctx context.Context, before, stalled time.Time) error {
	stream, err := e.link().js.Stream(ctx, "OBJ_"+blobBucket)
	if err != nil {
		return fmt.Errorf("opening the object store's stream: %w", err)
	}
	// The parts are listed first: an upload that ends meanwhile has its object in
	// the second list.
	orphans, err := e.link().subjects(ctx, "OBJ_"+blobBucket, partSubject+"*")
	if err != nil {
		return fmt.Errorf("listing the parts of bodies: %w", err)
	}
	objects, err := e.link().blobs.List(ctx, jetstream.ListObjectsShowDeleted())
	if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
		return fmt.Errorf("listing bodies: %w", err)
	}
	for _, object := range objects {
		delete(orphans, partSubject+object.NUID)
		if object.ModTime.After(before) {
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
	return e.sweepParts(ctx, stream, orphans, stalled)
}

// partSubject is where the object store keeps the parts of an object, by its own
// ID.
const partSubject = "$O." + blobBucket + ".C."

// needsBlob says whether a task needs the body that an object is.
func (e *Engine) needsBlob(ctx context.Context, object *jetstream.ObjectInfo) (bool, error) {
	if object.Deleted {
		return false, nil
	}
	id, kind, _ := strings.Cut(object.Name, ".")
	found, err := e.Find(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !found.Record.Ended():
		return true, nil // it waits or runs; its result may be on its way
	default:
		return "."+kind != requestBlob && found.Record.Blob == object.Name, nil
	}
}

// sweepParts removes what was stored of objects that never became whole.
func (e *Engine) sweepParts(ctx context.Context, stream jetstream.Stream, orphans map[string]struct{}, stalled time.Time) error {
	for subject := range orphans {
		last, err := stream.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		} else if err != nil {
			return fmt.Errorf("looking at a part of a body: %w", err)
		}
		// Nobody else writes to an embedded engine: what was there when it was
		// opened nobody goes on with.
		left := !e.remote() && last.Time.Before(e.link().opened)
		if !left && last.Time.After(stalled) {
			continue
		}
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("removing a part of a body: %w", err)
		}
	}
	return nil
}
