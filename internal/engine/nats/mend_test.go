package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A damaged store is one in which tasks are due, and then something happens to
// its files.
type damagedStore struct {
	folder string
	tasks  []task.Record // in the order in which they were stored
}

const damagedTasks = 30

// bodyOf is what a task's result holds.
func bodyOf(rec *task.Record) []byte { return bytes.Repeat([]byte(rec.ID), 50) }

// newDamagedStore makes a store with tasks that are due. One whose process was
// killed lacks what a server writes when it closes.
func newDamagedStore(t *testing.T, kill bool) *damagedStore {
	t.Helper()
	s := &damagedStore{folder: filepath.Join(t.TempDir(), "store")}
	e := open(t, s.folder, time.Minute)
	defer e.Close()
	for range damagedTasks {
		rec := record("c.example:443")
		settle(t, claim(t, e, rec), rec, bodyOf(&rec))
		s.tasks = append(s.tasks, rec)
	}
	if kill {
		s.folder = killed(t, e)
	}
	return s
}

func (s *damagedStore) file(name string) string {
	return filepath.Join(streamsIn(s.folder), liveStream, filepath.FromSlash(name))
}

// change makes something else of a file.
func (s *damagedStore) change(t *testing.T, name string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(s.file(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file(name), change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// of returns where the delivery of a task begins in a block, and where its body
// does.
func (s *damagedStore) of(t *testing.T, block []byte, n int) (start, body int) {
	t.Helper()
	id := s.tasks[n].ID
	subject := bytes.LastIndex(block, []byte("callback.due."+hostToken("c.example:443")+"."+id))
	body = bytes.Index(block, bodyOf(&s.tasks[n]))
	if subject < 0 || body < 0 {
		t.Fatalf("the task %s is not in the block", id)
	}
	return subject - recordHeader, body
}

func TestOfADamagedStoreWhatCanBeReadIsDeliveredAndTheLossIsLogged(t *testing.T) {
	t.Parallel()
	const blk = "msgs/1.blk"
	flip := func(at func(start, body int) int) func(*testing.T, *damagedStore) {
		return func(t *testing.T, s *damagedStore) {
			s.change(t, blk, func(data []byte) []byte {
				start, body := s.of(t, data, 10)
				data[at(start, body)] ^= 0x10
				return data
			})
		}
	}
	everything := make([]int, damagedTasks)
	for n := range everything {
		everything[n] = n
	}
	for _, test := range []struct {
		name   string
		damage func(*testing.T, *damagedStore)
		lost   []int  // the tasks
		says   string // at the error level; empty if nothing needs to be said
		named  bool   // the log names the lost tasks
	}{
		{name: "nothing", damage: func(*testing.T, *damagedStore) {}},
		{
			name: "a bit of a body", damage: flip(func(_, body int) int { return body + 5 }),
			lost: []int{10}, says: "messages are lost", named: true,
		},
		{
			name: "a bit of a record's length", damage: flip(func(start, _ int) int { return start }),
			lost: []int{10}, says: "messages are lost", named: true,
		},
		{
			name: "the high byte of a record's length", damage: flip(func(start, _ int) int { return start + 3 }),
			lost: []int{10}, says: "messages are lost", named: true,
		},
		{
			name: "a bit of a subject's length", damage: flip(func(start, _ int) int { return start + 21 }),
			lost: []int{10}, says: "messages are lost",
		},
		{
			name: "a kilobyte of zeros in the middle",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func(data []byte) []byte {
					start, _ := s.of(t, data, 10)
					clear(data[start : start+1024])
					return data
				})
			},
			lost: []int{10}, says: "messages are lost",
		},
		{
			name: "a torn end",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func(data []byte) []byte {
					_, body := s.of(t, data, damagedTasks-1)
					return data[:body+100]
				})
			},
			lost: []int{damagedTasks - 1}, says: "what was written last is torn", named: true,
		},
		{
			name: "zeros at the end",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func(data []byte) []byte { return append(data, make([]byte, 4096)...) })
			},
			says: "what was written last is torn",
		},
		{
			name: "a block of noise",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func(data []byte) []byte { return bytes.Repeat([]byte{0x5a, 0x01, 0x02}, len(data)/3) })
			},
			lost: everything, says: "what was written last is torn",
		},
		{
			name: "no description",
			damage: func(t *testing.T, s *damagedStore) {
				if err := os.Remove(s.file("meta.inf")); err != nil {
					t.Fatal(err)
				}
			},
			says: "the description of a stream cannot be read",
		},
		{
			name: "a bit of the description",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, "meta.inf", func(data []byte) []byte { data[20] ^= 1; return data })
			},
			says: "the description of a stream cannot be read",
		},
		{
			name: "an empty checksum of the description",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, "meta.sum", func([]byte) []byte { return nil })
			},
			says: "the description of a stream cannot be read",
		},
		{
			name: "noise in the indexes",
			damage: func(t *testing.T, s *damagedStore) {
				for _, name := range []string{"msgs/index.db", "msgs/sched.db"} {
					if err := os.WriteFile(s.file(name), bytes.Repeat([]byte{1, 0xff, 7}, 100), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			},
		},
		{
			name: "a block that is empty",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func([]byte) []byte { return nil })
			},
			lost: everything, says: "files that are gone, or too short",
		},
		{
			name: "a block that is empty, before another",
			damage: func(t *testing.T, s *damagedStore) {
				if err := os.WriteFile(s.file("msgs/0.blk"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			says: "files that are gone, or too short",
		},
		{
			name: "blocks that were begun",
			damage: func(t *testing.T, s *damagedStore) {
				for n := 2; n < 4; n++ {
					if err := os.WriteFile(s.file(fmt.Sprintf("msgs/%d.blk", n)), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
			},
		},
		{
			name: "a block that is gone",
			damage: func(t *testing.T, s *damagedStore) {
				if err := os.Remove(s.file(blk)); err != nil {
					t.Fatal(err)
				}
			},
			lost: everything, says: "files that are gone, or too short",
		},
		{
			name: "a block that ends between two records",
			damage: func(t *testing.T, s *damagedStore) {
				s.change(t, blk, func(data []byte) []byte {
					start, _ := s.of(t, data, damagedTasks-3)
					return data[:start]
				})
			},
			lost: everything[damagedTasks-3:], says: "files that are gone, or too short",
		},
		{
			name: "no messages at all",
			damage: func(t *testing.T, s *damagedStore) {
				if err := os.RemoveAll(s.file("msgs")); err != nil {
					t.Fatal(err)
				}
			},
			lost: everything, says: "files that are gone, or too short",
		},
		{
			name: "a stream that is gone",
			damage: func(t *testing.T, s *damagedStore) {
				if err := os.RemoveAll(s.file("")); err != nil {
					t.Fatal(err)
				}
			},
			lost: everything, says: "a stream is gone",
		},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", test.name, killed), func(t *testing.T) {
				t.Parallel()
				s := newDamagedStore(t, killed)
				test.damage(t, s)
				core, logs := observer.New(zap.ErrorLevel)
				e := openOn(t, Config{Store: s.folder, Logger: zap.New(core)})
				s.deliver(t, e, test.lost)
				s.checkLog(t, logs, test.says, test.named, test.lost)
			})
		}
	}
}

// deliver wants every task but the lost ones to be due, once and whole, and
// nothing else.
func (s *damagedStore) deliver(t *testing.T, e *Engine, lost []int) {
	t.Helper()
	owed := make(map[string]bool)
	for n, rec := range s.tasks {
		if !slices.Contains(lost, n) {
			owed[rec.ID] = true
		}
	}
	last := record("c.example:443") // what is stored from now on works
	settle(t, claim(t, e, last), last, bodyOf(&last))
	owed[last.ID] = true
	due, err := e.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for len(owed) > 0 {
		d := fetchFrom(t, due)
		body, err := d.Body(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !owed[d.Record.ID] || !bytes.Equal(body, bodyOf(d.Record)) {
			t.Fatalf("due is %+v with %d bytes", d.Record, len(body))
		}
		delete(owed, d.Record.ID)
		if err := d.Done(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	gone(t, e, liveStream, dueSubject+">")
}

func (s *damagedStore) checkLog(t *testing.T, logs *observer.ObservedLogs, says string, named bool, lost []int) {
	t.Helper()
	if says == "" {
		for _, entry := range logs.All() {
			t.Errorf("logged without need: %s %v", entry.Message, entry.ContextMap())
		}
		return
	}
	found := logs.Filter(func(entry observer.LoggedEntry) bool { return strings.Contains(entry.Message, says) }).All()
	if len(found) != 1 {
		t.Fatalf("%q is logged %d times, not once: %v", says, len(found), logs.All())
	}
	fields := found[0].ContextMap()
	if fields["stream"] != liveStream {
		t.Errorf("the log names the stream %v", fields["stream"])
	}
	if named && !strings.Contains(fmt.Sprint(fields["lost_tasks"]), s.tasks[lost[0]].ID) {
		t.Errorf("the log does not name the lost task: %v", fields)
	}
	if kept, ok := fields["kept"].(string); ok {
		if entries, err := os.ReadDir(kept); err != nil || len(entries) == 0 {
			t.Errorf("the damaged files are not in %s: %v", kept, err)
		}
	}
}

func TestABlockThatAFailedServerClearedOutIsNoDamage(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.ErrorLevel)
	s := newDamagedStore(t, false)
	e := openOn(t, Config{Store: s.folder, Logger: zap.New(core)})
	cleared := s.file("msgs/0.blk")
	if err := os.WriteFile(cleared, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cleared); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there, and damage at the next start: %v", err)
	}
	s.deliver(t, e, nil)
	for _, entry := range logs.All() {
		t.Errorf("logged without need: %s %v", entry.Message, entry.ContextMap())
	}
}

func TestWhatAKilledServerLeftOfAFileIsRemoved(t *testing.T) {
	t.Parallel()
	s := newDamagedStore(t, true)
	left := s.file("msgs/1.new")
	if err := os.WriteFile(left, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	e := open(t, s.folder, time.Minute)
	defer e.Close()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	s.deliver(t, e, nil)
}

func TestAStreamThatAServerCannotOpenIsPutBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{liveStream, deadStream} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", name, killed), func(t *testing.T) {
				t.Parallel()
				s := newDamagedStore(t, killed)
				// A server that cannot make its folder of consumers removes the stream.
				consumers := filepath.Join(streamsIn(s.folder), name, "obs")
				if err := errors.Join(os.RemoveAll(consumers), os.WriteFile(consumers, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
				e, err := Open(t.Context(), Config{Store: s.folder, Logger: zap.NewNop()})
				if err == nil {
					e.Close()
				}
				if err == nil || !strings.Contains(err.Error(), "did not open the stream "+name) {
					t.Fatalf("it was opened: %v", err)
				}
				if _, err := os.Stat(consumers); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the server did not remove the stream: %v", err)
				}
				e = openOn(t, Config{Store: s.folder})
				s.deliver(t, e, nil)
				if _, err := os.Stat(openingFolder(s.folder)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the links are still there: %v", err)
				}
			})
		}
	}
}
