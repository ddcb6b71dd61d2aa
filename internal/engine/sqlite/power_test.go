package sqlite

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// work is a random workload whose file operations are recorded.
type work struct {
	seed uint64
	sync time.Duration
	keep bool // results are kept
	// failSync is the probability that an fsync fails.
	failSync float64
	// dies makes every process die during an fsync.
	dies     bool
	unsynced bool // the log is not synced, whatever sync is
	// spoil breaks the engine.
	spoil func(*process, *store)
	skips precaution

	recording *recording
	clients   []*client
	history   *history
	secret    []byte
	opened    []int // positions when the store was open
}

// perform runs the workload, and kills or closes the process in between. It returns the
// first violation after the store was opened again.
func (w *work) perform(t *testing.T) error {
	t.Helper()
	rng := rand.New(rand.NewPCG(w.seed, 1))
	w.keep = rng.IntN(2) == 0
	w.recording = newRecording(t.TempDir())
	for i := range 4 {
		w.clients = append(w.clients, &client{
			t: t, rng: rand.New(rand.NewPCG(w.seed, uint64(i)+2)), name: fmt.Sprintf("c%d", i), keep: w.keep, keys: map[string]string{},
		})
	}
	for life := range 3 {
		if err := w.live(t, rng, life); err != nil {
			return fmt.Errorf("seed %d, process %d: %w", w.seed, life, err)
		}
		if t.Failed() {
			t.FailNow() // a client reports the reason
		}
	}
	w.history = newHistory(w.recording, w.sync > 0)
	return nil
}

// live runs the workload for the life of one process.
func (w *work) live(t *testing.T, rng *rand.Rand, life int) error {
	t.Helper()
	p := &process{recording: w.recording, rng: rand.New(rand.NewPCG(w.seed, uint64(life)+100))}
	if w.spoil != nil {
		w.spoil(p, nil)
	}
	begin, interval := p.position(), w.sync
	if w.unsynced {
		interval = time.Hour
	}
	s, err := open(context.Background(), Config{
		Folder: filepath.Join(w.recording.root, storeName), Sync: interval, Settings: engine.Settings{KeepResults: w.keep},
		vfs: p, disk: p, skips: w.skips, holder: 1 + rng.Int64N(1<<62), checkpointPages: 20 + rng.IntN(100),
	})
	must(t, err)
	end := p.position()
	if w.spoil != nil {
		w.spoil(p, s)
	}
	if life == 0 {
		w.secret = slices.Clone(s.secret)
	}
	w.opened = append(w.opened, end)
	h := newHistory(w.recording, false)
	for _, c := range w.clients {
		c.p, c.e = p, s
		for _, k := range c.tasks {
			now, err := h.match(s, k, forever)
			if err != nil {
				return errors.Join(err, s.Close(context.Background()))
			}
			k.now, k.steps = now, append(k.steps, stepTaken{what: "reopen", begin: begin, end: end, after: now})
			if k.key != "" && now.state != "" {
				c.keys[k.key] = k.id // the enqueue may not have been acknowledged
			}
		}
	}
	p.mu.Lock()
	p.failSync = w.failSync
	if w.dies || rng.IntN(3) > 0 {
		p.dieAt, p.dieInSync = end+20+rng.IntN(300), w.dies || rng.IntN(2) == 0
	}
	p.mu.Unlock()
	runAll(w.clients, 40)
	return s.Close(context.Background())
}

// runAll runs clients concurrently.
func runAll(clients []*client, n int) {
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { c.run(context.Background(), n) })
	}
	wg.Wait()
}

// cut returns the first violation after power failures at random positions.
func (w *work) cut(t *testing.T, n int) error {
	t.Helper()
	rng := rand.New(rand.NewPCG(w.seed, 3))
	changes := w.recording.changes
	special, telling := []int(nil), slices.Clone(w.opened)
	for i, c := range changes {
		if c.kind != written {
			special = append(special, i)
		}
		if c.kind == removed || c.kind == syncFailed {
			telling = append(telling, i+1)
		}
	}
	cuts := make([]int, n)
	for i := range cuts {
		if cuts[i] = rng.IntN(len(changes) + 1); rng.IntN(2) == 0 {
			cuts[i] = special[rng.IntN(len(special))] + rng.IntN(2)
		} else if rng.IntN(2) == 0 {
			cuts[i] = telling[rng.IntN(len(telling))]
		}
	}
	slices.Sort(cuts)
	disk, pool := newModelDisk(), t.TempDir()
	for i, at := range cuts {
		disk.replay(changes, at)
		folder := filepath.Join(pool, "cut-"+strconv.Itoa(i))
		must(t, os.Mkdir(folder, 0o700))
		l := newLuck(rng)
		disk.leave(t, l, folder, pool)
		if err := w.check(folder, at); err != nil {
			return fmt.Errorf("seed %d, power failure %d at %d of %d (%d bytes a sector, %v arrive, %v names, torn %v): %w",
				w.seed, i, at, len(changes), l.sector, l.arrives, l.named, l.torn, err)
		}
		must(t, os.RemoveAll(folder))
	}
	return nil
}

// powerCuts is the number of power failures per workload.
const powerCuts = 20

// seeds returns how many workloads are recorded. Set CALLBACK_POWER_SEEDS for more.
func seeds(t *testing.T) uint64 {
	text := os.Getenv("CALLBACK_POWER_SEEDS")
	if text == "" {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 32)
	must(t, err)
	return n
}

func TestPowerFailure(t *testing.T) {
	t.Parallel()
	base := uint64(time.Now().UnixNano())
	for name, w := range map[string]work{
		"always":               {},
		"always, fsyncs fail":  {failSync: 0.03},
		"relaxed":              {sync: 2 * time.Millisecond},
		"relaxed, fsyncs fail": {sync: 2 * time.Millisecond, failSync: 0.03},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range seeds(t) {
				w := w
				w.seed = base + i
				must(t, w.perform(t))
				must(t, w.cut(t, powerCuts))
			}
		})
	}
}

// TestPowerFailureFindsBrokenEngines breaks the engine in ways that a kill or a power
// failure reveals.
func TestPowerFailureFindsBrokenEngines(t *testing.T) {
	t.Parallel()
	base := uint64(time.Now().UnixNano())
	for name, w := range map[string]work{
		"bodies are not synced":                   {spoil: func(p *process, _ *store) { p.keepBodiesUnsynced = true }},
		"folders are not synced":                  {spoil: func(p *process, _ *store) { p.keepFoldersUnsynced = true }},
		"the log is not synced":                   {unsynced: true},
		"what a process has left is not synced":   {skips: skipAdopt, failSync: 0.03, dies: true},
		"commits that failed are not overwritten": {skips: skipOverwrite, failSync: 0.1},
		"bodies are removed before their rows":    {skips: skipRetire, sync: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const most = 200
			for i := range uint64(most) {
				w := w
				w.seed = base + i
				err := w.perform(t)
				if err == nil {
					err = w.cut(t, powerCuts)
				}
				if err != nil {
					t.Log("found:", err)
					return
				}
			}
			t.Errorf("%d workloads did not find it", most)
		})
	}
}
