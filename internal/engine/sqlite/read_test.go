package sqlite

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// countingFiles counts how often a database is opened.
type countingFiles struct {
	vfs.VFSFilename
	databases atomic.Int32
}

func (f *countingFiles) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if flags&vfs.OPEN_MAIN_DB != 0 {
		f.databases.Add(1)
	}
	return f.VFSFilename.OpenFilename(name, flags)
}

// TestReadsShareFourConnections lists tasks while all connections are in use.
func TestReadsShareFourConnections(t *testing.T) {
	t.Parallel()
	files := &countingFiles{VFSFilename: vfs.Find("os").(vfs.VFSFilename)}
	s := openTest(t, Config{vfs: files})
	settled(t, s, newTask("a.test:443"), "result")
	var reads, lists sync.WaitGroup
	begun, finish := make(chan struct{}), make(chan struct{})
	for range 4 {
		reads.Go(func() {
			err := s.read(t.Context(), func(*conn) error {
				begun <- struct{}{}
				<-finish
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		<-begun
	}
	ended, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	go func() {
		_, err := s.List(ended, engine.Filter{}, "", 10)
		waits <- err
	}()
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("a list whose context ends returns %v", err)
	}
	for range 64 {
		lists.Go(func() {
			page, err := s.List(t.Context(), engine.Filter{}, "", 10)
			if err != nil || len(page.Tasks) != 1 {
				t.Errorf("the page is %+v, %v", page, err)
			}
		})
	}
	close(finish)
	reads.Wait()
	lists.Wait()
	if n := files.databases.Load(); n != 1+4 {
		t.Errorf("%d connections are open, not one that writes and 4 that read", n)
	}
}
