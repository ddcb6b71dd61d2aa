//go:build linux

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// smallDisk gives a gateway its own disk for its store and returns the disk's folder. It
// must be called before the gateway starts.
func smallDisk(t *testing.T, g *gatewaytest.Gateway, size string) string {
	t.Helper()
	disk := filepath.Join(g.Dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	// Only this process sees the mount, see inOwnNamespace.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatalf("making mounts private: %v; this needs root or user namespaces", err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "mode=700,size="+size); err != nil {
		t.Fatalf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("files on the disk:\n%s", filesOn(disk))
			_, stacks, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/debug/pprof/goroutine?debug=2", nil)
			t.Logf("goroutines of the gateway: %v\n%s", err, stacks)
		}
		g.Kill()
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.Symlink(disk, filepath.Join(g.Dir, "store")); err != nil {
		t.Fatal(err)
	}
	return disk
}

// filesOn lists the files of a folder with their sizes, and the free space.
func filesOn(folder string) string {
	var list strings.Builder
	_ = filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // files are removed meanwhile
		}
		if info, err := entry.Info(); err == nil {
			fmt.Fprintf(&list, "%10d %s\n", info.Size(), strings.TrimPrefix(path, folder))
		}
		return nil
	})
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err == nil {
		fmt.Fprintf(&list, "%10d free\n", fs.Bavail*uint64(fs.Bsize))
	}
	return list.String()
}

// fill writes a file until the disk has at most rest bytes free, like another program on
// the same disk.
func fill(t *testing.T, disk string, rest int64) (file string) {
	t.Helper()
	file = filepath.Join(disk, "other program")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 4 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, info.Size()-rest)); err != nil {
		t.Fatal(err)
	}
	return file
}

// outage is a gateway whose disk fails, and a receiver of its callbacks.
type outage struct {
	g    *gatewaytest.Gateway
	l    *gatewaytest.Ledger
	body string
}

// newOutage returns a gateway that is not started yet. Its receiver refuses callbacks
// while refuse returns true.
func newOutage(t *testing.T, refuse func() bool) *outage {
	t.Helper()
	o := new(outage)
	o.l = gatewaytest.NewLedger(&gatewaytest.Receiver{}, t.Context().Done())
	url := receive(t, func(w http.ResponseWriter, _ string, c gatewaytest.Callback) {
		if refuse() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		o.l.Arrive(c)
	})
	// Failed attempts rewrite their tasks. Retries every two seconds would leave a slow
	// machine no time for anything else.
	waits := "retry 2s 5s" + strings.Repeat(" 15s", 100)
	o.g = gatewaytest.New(t, gatewaytest.Delivering(waits), mixed(t, func(w http.ResponseWriter, r *http.Request) {
		// Results take space, so the gateway's own tasks fill the disk too.
		fmt.Fprint(w, r.Header.Get("beam-task-id"), strings.Repeat(" result", 20_000))
	}))
	o.body = fmt.Sprintf(`{"callback_url":%q}`, url)
	return o
}

// send sends a request for a callback and reports whether it was accepted.
func (o *outage) send() bool {
	o.g.T.Helper()
	resp, text := o.g.Post([]string{"/", "/q"}[rand.N(2)], o.body)
	switch {
	case resp.StatusCode < 300:
		o.l.Accept(resp.Header.Get("beam-task-id"))
		return true
	case resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "":
		o.g.T.Errorf("a request for a callback got %s %v %s", resp.Status, resp.Header, text)
	}
	return false
}

// refuses waits until requests for callbacks are refused and plain ones are served.
func (o *outage) refuses() {
	o.g.T.Helper()
	o.g.Eventually("callbacks are refused", func() error {
		if o.send() {
			return errors.New("a callback was accepted")
		}
		return nil
	})
	if resp, text := o.g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		o.g.T.Errorf("a plain request got %s %s", resp.Status, text)
	}
}

// recovers waits until requests for callbacks are accepted again.
func (o *outage) recovers() {
	o.g.T.Helper()
	o.g.Eventually("callbacks are accepted again, without a restart", func() error {
		if !o.send() {
			return errors.New("still refused")
		}
		return nil
	})
}

// fillWithTasks sends tasks until many have been refused. Some are accepted in between,
// because failed attempts rewrite their tasks and the engine frees space.
func (o *outage) fillWithTasks() {
	o.g.T.Helper()
	const many, refusals = 10_000, 30
	accepted := 0
	for refused := 0; refused < refusals && accepted < many; {
		if o.send() {
			accepted++
			continue
		}
		refused++
		gatewaytest.Pause(100 * time.Millisecond)
	}
	if accepted == many {
		o.g.T.Errorf("a small disk has room for %d tasks", many)
	}
	o.g.T.Logf("%d tasks were accepted before the disk was full", accepted)
}

// gate is closed until open is called. Then callbacks are accepted.
type gate struct{ opened chan struct{} }

func newGate() gate { return gate{make(chan struct{})} }

func (g gate) open() { close(g.opened) }

func (g gate) isClosed() bool {
	select {
	case <-g.opened:
		return false
	default:
		return true
	}
}

// drains waits until every accepted task has its callback and requests for callbacks are
// accepted again, one after the other.
func (o *outage) drains() {
	o.g.T.Helper()
	o.l.Drain(o.g.T)
	o.g.Eventually("callbacks are accepted again, one after the other", func() error {
		for n := range 40 {
			if !o.send() {
				return fmt.Errorf("request %d is refused", n+1)
			}
		}
		return nil
	})
	o.l.Drain(o.g.T)
}

func TestFullDiskRefusesNewCallbacks(t *testing.T) {
	t.Parallel()
	rounds := pick(2, 2, 20)
	receiver := newGate()
	o := newOutage(t, receiver.isClosed)
	disk := smallDisk(t, o.g, "64m")
	o.g.Start()
	for range 20 {
		o.send()
	}
	for round := range rounds {
		other := fill(t, disk, 0)
		o.refuses()
		gatewaytest.Pause(time.Second) // for callbacks to fail on the full disk
		if round%2 == 1 {
			o.g.Kill()
			o.g.Launch()
			o.g.Eventually("plain requests are served", func() error {
				_, _, err := gatewaytest.Send(http.MethodPost, o.g.URL("/"), strings.NewReader("{}"), "Content-Type", "application/json")
				return err
			})
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
		o.recovers()
	}
	// The gateway's own tasks fill most of the disk, and the other program fills the
	// rest.
	o.fillWithTasks()
	other := fill(t, disk, 0)
	gatewaytest.Pause(2 * time.Second)
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	receiver.open()
	o.drains()
	undamaged(o.g)
	report(t, "4. disk filled by another program, and by tasks", rounds+1, o.l.Tally())
}

func TestFullDiskDrains(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 1, 10)
	var receiver atomic.Pointer[gate]
	o := newOutage(t, func() bool { return receiver.Load().isClosed() })
	disk := smallDisk(t, o.g, "64m")
	fill(t, disk, 40<<20) // another program's file, which is not removed
	o.g.Start()
	for range rounds {
		shut := newGate()
		receiver.Store(&shut)
		o.fillWithTasks()
		gatewaytest.Pause(3 * time.Second) // for callbacks to fail repeatedly
		o.g.Kill()
		o.g.Start()
		shut.open()
		o.drains()
	}
	undamaged(o.g)
	report(t, "4. disk filled by tasks and by a permanent file", rounds, o.l.Tally())
}

// limit sets a limit of a gateway's process and returns the previous one.
func limit(g *gatewaytest.Gateway, resource int, n uint64) (before uint64) {
	g.T.Helper()
	var l syscall.Rlimit
	prlimit := func(to, from *syscall.Rlimit) {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(g.Cmd.Process.Pid), uintptr(resource),
			uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(from)), 0, 0)
		if errno != 0 {
			g.T.Fatal(errno)
		}
	}
	prlimit(nil, &l)
	before, l.Cur = l.Cur, n
	prlimit(&l, nil)
	return before
}

func TestFailingDiskRefusesNewCallbacks(t *testing.T) {
	t.Parallel()
	rounds := pick(1, 2, 20)
	o := newOutage(t, func() bool { return false })
	o.g.Start()
	for range rounds {
		for range 20 {
			o.send()
		}
		before := limit(o.g, syscall.RLIMIT_FSIZE, 0) // every write fails, as on a disk with errors
		o.refuses()
		gatewaytest.Pause(time.Second)
		limit(o.g, syscall.RLIMIT_FSIZE, before)
		o.recovers()
	}
	o.l.Drain(o.g.T)
	undamaged(o.g)
	report(t, "4. disk that returns errors", rounds, o.l.Tally())
}
