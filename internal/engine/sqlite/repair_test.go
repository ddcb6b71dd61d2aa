package sqlite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestDamageNamesTheFileAndIsRepaired(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	var ids []string
	for range 400 {
		rec := newTask("a.test:443")
		settled(t, s, rec, strings.Repeat(rec.ID, 20))
		ids = append(ids, rec.ID)
	}
	secret := s.secret
	closeTest(t, s)
	name := filepath.Join(s.cfg.Folder, databaseName)
	data, err := os.ReadFile(name)
	must(t, err)
	for range 10 {
		data[pageSize*30+rand.IntN(len(data)-pageSize*30)] ^= 0x55
	}
	clear(data[10 : pageSize*3/4]) // the header and the schema
	must(t, os.WriteFile(name, data, 0o600))
	if s, err := open(t.Context(), Config{Folder: s.cfg.Folder}); err == nil {
		closeTest(t, s) // the damaged pages were not read
	} else if !errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "caddy callback repair") {
		t.Errorf("the error is %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(s.cfg.Folder, bodiesName))) // as in a backup of the database alone
	var out bytes.Buffer
	must(t, Repair(t.Context(), s.cfg.Folder, &out))
	s = openTest(t, Config{Folder: s.cfg.Folder})
	checkCounts(t, s)
	found := 0
	for _, id := range ids {
		if rec, err := s.Get(t.Context(), id); err == nil && rec.State == task.Delivering {
			found++
		}
	}
	t.Logf("%d of %d tasks are there again, %s", found, len(ids), out.String())
	if found < len(ids)*8/10 {
		t.Errorf("only %d of %d tasks were saved", found, len(ids))
	}
	if !bytes.Equal(secret, s.secret) && !strings.Contains(out.String(), "secret") {
		t.Error("the secret is another")
	}
}

// The first bytes of pages.
const (
	indexLeaf = 0x0a // also of a table without row IDs
	tableLeaf = 0x0d
)

// damageTest closes a store and changes its pages of a kind that contain text. The first
// page is not changed.
func damageTest(t *testing.T, s *store, kind byte, text []byte, change func(page []byte)) {
	t.Helper()
	closeTest(t, s)
	data, err := os.ReadFile(s.file)
	must(t, err)
	changed := 0
	for at := pageSize; at < len(data); at += pageSize {
		if page := data[at : at+pageSize]; page[0] == kind && bytes.Contains(page, text) {
			change(page)
			changed++
		}
	}
	if changed == 0 {
		t.Fatal("no page contains the text")
	}
	must(t, os.WriteFile(s.file, data, 0o600))
}

// repairTest repairs a closed store and opens it again. report is the report of the repair.
func repairTest(t *testing.T, s *store) (repaired *store, report string) {
	t.Helper()
	var out bytes.Buffer
	must(t, Repair(t.Context(), s.cfg.Folder, &out))
	repaired = openTest(t, Config{Folder: s.cfg.Folder})
	checkCounts(t, repaired)
	return repaired, out.String()
}

// TestRepairSavesAll repairs stores of which nothing is lost.
func TestRepairSavesAll(t *testing.T) {
	t.Parallel()
	const tasks = 100
	for name, change := range map[string]func(t *testing.T, file string){
		"vacuumed": func(t *testing.T, file string) { // other pages are the roots of its tables
			files := registerFileSystem(nil)
			defer files.unregister()
			c, err := openConn(file, files.name, sqlite3.OPEN_READWRITE)
			must(t, err)
			must(t, errors.Join(c.Exec("VACUUM"), c.close()))
		},
		"checksums turned off": func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			must(t, err)
			data[20] ^= 8 // the reserved bytes of each page
			must(t, os.WriteFile(file, data, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Config{})
			for range tasks {
				settled(t, s, newTask("a.test:443"), strings.Repeat("x", pageSize))
			}
			closeTest(t, s)
			change(t, s.file)
			_, report := repairTest(t, s)
			want := fmt.Sprintf("%d tasks saved, 0 of them from pages with a wrong checksum, 0 without a body\n0 tasks lost", tasks)
			if !strings.HasPrefix(report, want) {
				t.Errorf("the report is %q, not %q", report, want)
			}
		})
	}
}

// TestRepairCorrectsTimes flips a bit in each time of a task's row.
func TestRepairCorrectsTimes(t *testing.T) {
	t.Parallel()
	created := time.Now().Add(-time.Hour).UTC()
	finished := created.Add(time.Second)
	for name, tt := range map[string]struct {
		step  func(*testing.T, *store) // what happened to the callback; nil for a job
		state task.State
		since time.Time
	}{
		"job": {state: task.Queued},
		"callback": {func(t *testing.T, s *store) {
			must(t, takeOne(t, s, "a.test:443").Retry(t.Context(), created.Add(time.Minute)))
		}, task.Delivering, finished},
		"first delivery": {func(*testing.T, *store) {}, task.Delivering, finished},
		"delivered": {func(t *testing.T, s *store) {
			d := takeOne(t, s, "a.test:443")
			d.Record().DeliveredAt = finished.Add(time.Second)
			must(t, d.Done(t.Context()))
		}, task.Done, finished.Add(time.Second)},
		"dead letter": {func(t *testing.T, s *store) {
			must(t, takeOne(t, s, "a.test:443").Dead(t.Context()))
		}, task.Dead, finished},
	} {
		for direction, bit := range map[string]byte{"back": 0x10, "ahead": 0x40} {
			t.Run(name+" "+direction, func(t *testing.T) {
				t.Parallel()
				s := openTest(t, Config{})
				rec := newTask("a.test:443")
				rec.CreatedAt = created
				if tt.step == nil {
					rec.Queue, rec.Request = "q", &task.Request{}
					_, _, err := s.Enqueue(t.Context(), rec, nil, engine.EnqueueOptions{})
					must(t, err)
				} else {
					rec.FinishedAt = finished
					settled(t, s, rec, "result")
					tt.step(t, s)
				}
				at, since := times(t, s, rec.ID)
				damageTest(t, s, tableLeaf, []byte(rec.ID), func(page []byte) {
					for _, stored := range []int64{at, since} {
						if i := bytes.Index(page, binary.BigEndian.AppendUint64(nil, uint64(stored))); stored != 0 && i >= 0 {
							page[i] ^= bit
						}
					}
				})
				before := time.Now().UnixNano()
				s, report := repairTest(t, s)
				if !strings.HasPrefix(report, "1 tasks saved, 1 of them from pages with a wrong checksum") {
					t.Errorf("the report is %q", report)
				}
				_, err := s.trim(t.Context(), s.limits(), trimBatch)
				must(t, err)
				got, err := s.Get(t.Context(), rec.ID)
				must(t, err)
				if got.State != tt.state {
					t.Errorf("the task is %s", got.State)
				}
				at, since = times(t, s, rec.ID)
				now := time.Now().UnixNano()
				switch {
				case tt.state == task.Queued && (at != nanos(created) || since < before || since > now),
					tt.state == task.Delivering && (at < before || at > now),
					tt.state != task.Queued && since != nanos(tt.since):
					t.Errorf("at is %v, since is %v", timeOf(at), timeOf(since))
				}
			})
		}
	}
}

// times returns the times in the row of a task; 0 for NULL.
func times(t *testing.T, s *store, id string) (at, since int64) {
	t.Helper()
	must(t, s.read(t.Context(), func(c *conn) error {
		r, err := find(c, id)
		if err == nil {
			at, since = r.at, r.since
		}
		return err
	}))
	return at, since
}

// TestRepairCountsWhatIsLost damages the page with the counts and a page with tasks.
func TestRepairCountsWhatIsLost(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	const tasks = 100
	var id string
	for range tasks {
		rec := newTask("a.test:443")
		settled(t, s, rec, "result")
		id = rec.ID
	}
	damageTest(t, s, indexLeaf, []byte(task.Delivering), func(page []byte) { page[pageSize/2] ^= 1 }) // not in a row
	damageTest(t, s, tableLeaf, []byte(id), func(page []byte) { clear(page) })
	_, report := repairTest(t, s)
	var saved, doubtful, bodiless, lost int
	_, err := fmt.Sscanf(report, "%d tasks saved, %d of them from pages with a wrong checksum, %d without a body\n%d tasks lost",
		&saved, &doubtful, &bodiless, &lost)
	must(t, err)
	if saved == 0 || lost == 0 || saved+lost != tasks {
		t.Errorf("%d tasks are saved and %d are lost of %d", saved, lost, tasks)
	}
}

// TestRepairCountsTasksWithoutBody loses both bodies of a task.
func TestRepairCountsTasksWithoutBody(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	rec := newTask("a.test:443")
	rec.State, rec.Status, rec.Result = task.Delivering, task.Complete, &task.Result{Size: maxInline + 1}
	body := strings.Repeat("x", maxInline+1)
	must(t, s.Import(t.Context(), rec, strings.NewReader(body), strings.NewReader(body)))
	closeTest(t, s)
	must(t, os.RemoveAll(filepath.Join(s.cfg.Folder, bodiesName)))
	_, report := repairTest(t, s)
	if !strings.Contains(report, ", 1 without a body\n") {
		t.Errorf("the report is %q", report)
	}
}
