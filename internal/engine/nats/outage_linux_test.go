package engine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestWhatIsUnderWayIsSettledInTheReserveOfADiskThatIsFull(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		core, logs := observer.New(zap.InfoLevel)
		e := openOn(t, Config{Store: disk.store(), Logger: zap.New(core)})
		rec := record("c.example:443")
		l := claim(t, e, rec)
		waiting := queued("c.example:443")
		enqueue(t, e, &waiting, nil)

		awaitBallast(t, e)
		disk.fill(t, 6<<20)
		eventually(t, "the full disk is noticed", func() bool { return e.Ready() != nil })
		if err := e.Ready(); !errors.Is(err, ErrFull) {
			t.Errorf("it is not ready because of %v, not ErrFull", err)
		}
		if err := e.Stores(); err != nil {
			t.Errorf("what is under way cannot be stored: %v", err)
		}
		settle(t, l, rec, make([]byte, 100<<10))
		if err := fetch(t, e).Done(t.Context()); err != nil {
			t.Error(err)
		}
		hand(t, e).Release() // a queue's tasks are still begun

		disk.free(t)
		eventually(t, "the room is noticed", func() bool { return e.Ready() == nil })
		for _, message := range []string{
			"the disk of the store is full; requests for callbacks are refused",
			"the disk of the store has room again",
		} {
			if n := logs.FilterMessage(message).Len(); n != 1 {
				t.Errorf("%q is logged %d times, not once", message, n)
			}
		}
		if n := logs.FilterMessage("the embedded engine was opened anew").Len(); n != 0 {
			t.Errorf("the engine was opened anew %d times without need", n)
		}
	})
}

func TestAQueueBeginsNoTaskOnceTheReserveIsHalfUsed(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		waiting := queued("c.example:443")
		enqueue(t, e, &waiting, nil)
		q, err := e.Queue(t.Context(), "q")
		if err != nil {
			t.Fatal(err)
		}
		awaitBallast(t, e)
		disk.fill(t, 1<<20)
		eventually(t, "the full disk is noticed", e.disk.isScarce)
		for w, err := range q.Fetch(1) {
			t.Fatalf("a task was handed out: %v %v", w, err)
		}
		disk.free(t)
		eventually(t, "the room is noticed", func() bool { return !e.disk.isScarce() })
		hand(t, e).Release()
	})
}

func TestAnEngineIsNotStartedOnAFullDisk(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := open(t, disk.store(), time.Minute)
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, nil)
		e.Close()
		if err := removeIfThere(filepath.Join(disk.store(), ballastName)); err != nil {
			t.Fatal(err)
		}
		disk.fill(t, 0)
		for range 2 {
			_, err := Open(t.Context(), Config{Store: disk.store()})
			if !errors.Is(err, ErrFull) || !IsAway(err) {
				t.Fatalf("opening says %v, not ErrFull", err)
			}
		}
		disk.free(t)
		e = openOn(t, Config{Store: disk.store()})
		if d := fetch(t, e); d.Record.ID != rec.ID || d.Record.Status != task.Complete {
			t.Errorf("due is %+v", d.Record)
		}
	})
}

func TestAnEngineIsNotStartedOnADiskThatIsReadOnly(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := open(t, disk.store(), time.Minute)
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, nil)
		e.Close()
		remount := func(flags uintptr) {
			if err := syscall.Mount("tmpfs", disk.folder, "tmpfs", syscall.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		remount(syscall.MS_RDONLY)
		_, err := Open(t.Context(), Config{Store: disk.store()})
		if !errors.Is(err, syscall.EROFS) || IsAway(err) {
			t.Errorf("opening says %v", err)
		}
		remount(0)
		e = openOn(t, Config{Store: disk.store()})
		if d := fetch(t, e); d.Record.ID != rec.ID {
			t.Errorf("due is %+v", d.Record)
		}
	})
}

func TestAnEngineClosesAndReconfiguresWhileItsDiskIsFull(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openWith(t, Config{Store: disk.store(), space: unmeasured})
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, nil)
		disk.fill(t, 0)
		overflow(t, e)
		cfg := e.cfg
		cfg.Retention = 2 * time.Hour
		if err := e.Reconfigure(t.Context(), cfg); err != nil {
			t.Errorf("a reload fails: %v", err)
		}
		e.Close()
		disk.free(t)
		e = openOn(t, Config{Store: disk.store()})
		if d := fetch(t, e); d.Record.ID != rec.ID {
			t.Errorf("due is %+v", d.Record)
		}
	})
}

// overflow claims tasks until the engine finds out that its disk is full.
func overflow(t *testing.T, e *Engine) {
	t.Helper()
	eventually(t, "the full disk is noticed", func() bool {
		if l, err := e.Claim(t.Context(), record("c.example:443"), func() {}); err == nil {
			l.timer.Stop() // its holder died
		}
		return e.Stores() != nil
	})
}

func TestAChangeOfRetentionDuringAnOutageComesAfterIt(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 32<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store(), space: unmeasured})
		disk.fill(t, 0)
		overflow(t, e)
		cfg := e.cfg
		cfg.Retention, cfg.RetentionCount = 2*time.Hour, 77
		if err := e.Reconfigure(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		disk.free(t)
		eventually(t, "the retention is changed", func() bool {
			info, err := e.link().ended.Info(t.Context())
			return err == nil && info.Config.MaxAge == 2*time.Hour && info.Config.MaxMsgs == 77
		})
	})
}

// inLimitedProcess says to a test that it is to run the engine.
const inLimitedProcess = "ENGINE_IN_LIMITED_PROCESS"

// A limit of the size of files makes every write beyond it fail, as a disk does
// that returns errors, and lets small files be written. It is a process's, so
// the test runs in one of its own.
func TestADiskThatReturnsErrorsIsSurvivedWithoutARestart(t *testing.T) {
	t.Parallel()
	if os.Getenv(inLimitedProcess) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inLimitedProcess+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := func(size uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	e := openOn(t, Config{Store: t.TempDir()})
	owed := make(map[string]bool)
	for range 20 {
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, make([]byte, 16<<10))
		owed[rec.ID] = true
	}
	limit(128 << 10)
	overflow(t, e)
	limit(before.Cur)
	eventually(t, "the engine stores again", func() bool { return e.Ready() == nil })
	due, err := e.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for len(owed) > 0 {
		d := fetchFrom(t, due)
		if d.Record.Status == task.Complete && !owed[d.Record.ID] {
			t.Fatalf("due is %+v", d.Record)
		}
		delete(owed, d.Record.ID)
		if err := d.Done(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestWhoWaitsForATaskWaitsOnWhileTheEngineIsOpenedAnew(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := queued("c.example:443")
	enqueue(t, e, &rec, nil)
	found := make(chan error, 1)
	go func() {
		f, err := e.Await(t.Context(), rec.ID)
		if err == nil && f.Record.Status != task.Failed {
			err = errors.New("it has the verdict " + string(f.Record.Status))
		}
		found <- err
	}()
	if err := e.reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.Cancel(t.Context(), rec.ID, "canceled"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-found:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the one who waits was not told")
	}
}

func TestADeliveryInHandIsNotHandedOutAgainByAnEngineThatWasOpenedAnew(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	due, err := e.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inHand := fetchFrom(t, due)
	if err := e.reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	for d, err := range due.fetch(t.Context(), 1, 2*outstandingDelay) {
		t.Fatalf("it is handed out twice: %+v %v", d, err)
	}
	if err := inHand.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, e, liveStream, dueSubject+">")
	if n := len(e.outstanding); n != 0 {
		t.Errorf("%d deliveries count as outstanding", n)
	}
}

func TestNobodyElseCanReadTheStore(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "store")
	e := openOn(t, Config{Store: folder})
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, make([]byte, 4<<20))
	if err := fetch(t, e).Dead(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		// The folder keeps out everybody; what is in it should not rely on that.
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s has the mode %v", strings.TrimPrefix(path, folder), mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
