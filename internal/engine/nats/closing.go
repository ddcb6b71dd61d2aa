package engine

import (
	"context"
	"fmt"
	"sync"
)

// closing are the folders whose engines this process is closing, each with a channel
// that is closed when the folder is free. A reload that goes back to a folder comes
// while the engine that had it writes its files; to be told that another process
// uses the folder would be wrong, and of no help.
var closing sync.Map // of chan struct{}

// beginClosing says that the folder will be free when the function that it returns
// is called.
func beginClosing(folder string) (free func()) {
	freed := make(chan struct{})
	closing.Store(folder, freed)
	return func() {
		closing.CompareAndDelete(folder, freed)
		close(freed)
	}
}

// awaitClosing waits for an engine of this process that is being closed, as long as
// that may take.
func awaitClosing(ctx context.Context, folder string) error {
	freed, ok := closing.Load(folder)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	select {
	case <-freed.(chan struct{}):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the store %s is being closed: %w", folder, ctx.Err())
	}
}
