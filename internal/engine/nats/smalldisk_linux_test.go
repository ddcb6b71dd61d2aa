package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk is a disk of a few megabytes, in memory.
type smallDisk struct{ folder string }

// onSmallDisk runs a test with a disk of its own. Only root may mount one; for
// others the test runs in a process that is root in a namespace of its own.
func onSmallDisk(t *testing.T, bytes int, test func(*testing.T, smallDisk)) {
	t.Helper()
	if os.Geteuid() != 0 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	d := smallDisk{t.TempDir()}
	if err := syscall.Mount("tmpfs", d.folder, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatalf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		// What is still open is let go of when it is closed.
		if err := syscall.Unmount(d.folder, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting the small disk: %v", err)
		}
	})
	test(t, d)
}

func (d smallDisk) store() string { return filepath.Join(d.folder, "store") }

func (d smallDisk) filler() string { return filepath.Join(d.folder, "filler") }

// fill takes all the room that there is but for rest bytes, and at no moment more.
func (d smallDisk) fill(t *testing.T, rest uint64) {
	t.Helper()
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for free := rest + 1; err == nil && free > rest; {
		if free, _, err = diskSpace(d.folder); err == nil && free > rest {
			_, err = f.Write(block)
		}
	}
	if err != nil && (rest > 0 || !errors.Is(err, syscall.ENOSPC)) {
		t.Fatal(err)
	}
}

// free makes room again.
func (d smallDisk) free(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		t.Fatal(err)
	}
}
