//go:build linux

package faults

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// logs waits until the log has an error that contains all of the texts.
func logs(g *gatewaytest.Gateway, texts ...string) {
	g.T.Helper()
	g.Eventually(fmt.Sprintf("the log contains %q", texts), func() error {
	lines:
		for line := range strings.Lines(g.Log.String()) {
			if !strings.Contains(line, `"level":"error"`) {
				continue
			}
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return nil
		}
		return errors.New("it does not contain them")
	})
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// Data in files that the next process does not open is lost, although every write
// succeeds.
func TestRemovedStoreFiles(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		gone string // in the folder; empty: the folder itself
		// back is set if the file or folder comes back while the gateway runs.
		back bool
		// lost is set if the stored data is lost too.
		lost bool
	}{
		"folder moved and back": {gone: "", back: true},
		"folder deleted":        {gone: "", lost: true},
		"log deleted":           {gone: "callback.db-wal"},
		"log moved and back":    {gone: "callback.db-wal", back: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			receiver := newGate()
			o := newOutage(t, receiver.isClosed)
			o.g.Start()
			for range 20 {
				o.send()
			}
			file, aside := filepath.Join(o.g.Folder(), test.gone), filepath.Join(o.g.Dir, "aside")
			rename(t, file, aside)
			logs(o.g, "store was moved or deleted", "callback.db")
			o.refuses()
			if test.back {
				rename(t, aside, file)
			} else {
				if err := os.RemoveAll(aside); err != nil {
					t.Fatal(err)
				}
				o.g.Stop()
				o.g.Start()
			}
			o.recovers()
			receiver.open()
			if test.lost {
				o.g.Eventually("tasks accepted since are delivered", func() error { return undelivered(o.g) })
				tally := o.l.Tally()
				if tally.Lost != 20 {
					t.Errorf("%d tasks are lost, want the 20 that were in the folder", tally.Lost)
				}
				reportLosses(t, "4. "+name, 1, tally)
				return
			}
			o.l.Drain(t)
			report(t, "4. "+name, 1, o.l.Tally())
		})
	}
}

func TestReadOnlyFolderIsRetried(t *testing.T) {
	t.Parallel()
	o := newOutage(t, func() bool { return false })
	disk := smallDisk(t, o.g, "96m")
	remount := func(flags uintptr) {
		if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	o.g.Start()
	o.send()
	o.g.Stop()
	remount(syscall.MS_RDONLY)
	o.g.Start()
	logs(o.g, "store not opened", "read-only file system")
	o.refuses()
	remount(0)
	o.recovers()
	o.l.Drain(t)
	report(t, "4. read-only folder, until it is writable", 1, o.l.Tally())
}

func TestSecondProcessOnFolderIsRefused(t *testing.T) {
	t.Parallel()
	o := newOutage(t, func() bool { return false })
	o.g.Start()
	other := gatewaytest.New(t, "engine sqlite "+o.g.Folder()+"\n"+gatewaytest.Delivering(), "callback\nrespond done")
	other.Launch()
	other.Eventually("the second process ends", func() error {
		select {
		case <-other.Done:
			return nil
		default:
			return errors.New("it runs")
		}
	})
	want := "in use by process " + strconv.Itoa(o.g.Cmd.Process.Pid)
	if code := other.Cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(other.Log.String(), want) {
		t.Errorf("it exited with %d without the message %q", code, want)
	}
	other.Log = new(gatewaytest.LogBuffer)
	other.Run("callback", "repair", o.g.Folder())
	<-other.Done
	if code := other.Cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(other.Log.String(), want) {
		t.Errorf("a repair exited with %d without the message %q: %s", code, want, other.Log)
	}
	if resp, text := o.g.Post("/", "{}"); resp.StatusCode != http.StatusOK {
		t.Errorf("a plain request got %s %s", resp.Status, text)
	}
	for range 10 {
		if !o.send() {
			t.Error("the first process refused a callback")
		}
	}
	o.l.Drain(t)
	undamaged(o.g)
	report(t, "4. second process on the folder, and a repair", 2, o.l.Tally())
}
