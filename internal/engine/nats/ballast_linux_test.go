package engine

import (
	"os"
	"testing"
	"time"
)

func hasBallast(e *Engine) bool {
	_, total, err := diskSpace(e.cfg.Store)
	info, statErr := os.Stat(e.disk.ballast())
	return err == nil && statErr == nil && uint64(info.Size()) == ballastOf(total)
}

// awaitBallast waits for the ballast of a small disk, which takes room of its own.
func awaitBallast(t *testing.T, e *Engine) {
	t.Helper()
	eventually(t, "there is a ballast", func() bool { return hasBallast(e) })
}

// A server that writes no more while the disk is full, and stays so, settles what is
// under way in the room of the ballast, which is there again once there is room.
func TestAStoreThatIsFullForGoodSettlesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 64<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		awaitBallast(t, e)
		rec := record("c.example:443")
		lease := claim(t, e, rec)
		disk.fill(t, 0)
		overflow(t, e)
		eventually(t, "the engine stores again", func() bool { return e.Stores() == nil })
		if hasBallast(e) {
			t.Error("it stores with no room")
		}
		if e.Ready() == nil {
			t.Error("new tasks are taken into the room for those under way")
		}
		settle(t, lease, rec, make([]byte, 100<<10))
		disk.free(t)
		eventually(t, "there is a ballast again", func() bool { return hasBallast(e) && e.Ready() == nil })
	})
}

func TestAnEngineIsStartedOnAFullDiskIfItHasABallast(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 64<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		awaitBallast(t, e)
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, nil)
		e.Close()
		disk.fill(t, 0)
		e = openOn(t, Config{Store: disk.store()})
		d := fetch(t, e)
		if d.Record.ID != rec.ID {
			t.Errorf("due is %+v", d.Record)
		}
		if err := d.Done(t.Context()); err != nil {
			t.Errorf("a delivery is not ended: %v", err)
		}
		if e.Ready() == nil {
			t.Error("new tasks are taken into the room for those under way")
		}
	})
}

// A file that could not be written whole takes no room.
func TestABallastThatDoesNotFitIsNotLeftInPart(t *testing.T) {
	t.Parallel()
	onSmallDisk(t, 8<<20, func(t *testing.T, disk smallDisk) {
		e := openOn(t, Config{Store: disk.store()})
		awaitBallast(t, e)
		e.Close()
		d := newDisk(e.cfg)
		if err := d.throwBallast(); err != nil {
			t.Fatal(err)
		}
		d.takeBallast(9 << 20)
		if hasBallast(e) {
			t.Error("a part of it is there")
		}
		if time.Since(d.noBallast) > time.Minute {
			t.Error("it is tried again at once")
		}
	})
}
