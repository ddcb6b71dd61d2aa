package soak

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// share is the part of the machine's throughput that the test sends.
const share = 0.8

// kept is how many finished tasks the gateway keeps. Once there are as many, the
// store must not grow.
const kept = 10_000

// sample is the gateway at one moment.
type sample struct {
	at         time.Duration
	memory     float64 // MiB
	goroutines float64
	files      float64
	store      float64 // MiB
	rate       float64 // accepted per second since the previous sample
	latency    [2]time.Duration
	lag        [2]time.Duration
	unfinished float64 // tasks that wait, run or are delivered
}

var columns = []string{
	"seconds", "memory MiB", "goroutines", "open files", "store MiB", "tasks/s",
	"latency p50 ms", "latency p99 ms", "callback after p50 ms", "callback after p99 ms", "unfinished",
}

func (s *sample) fields() []string {
	ms := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) }
	n := func(x float64) string { return strconv.FormatFloat(x, 'f', 0, 64) }
	return []string{
		n(s.at.Seconds()), n(s.memory), n(s.goroutines), n(s.files), n(s.store), n(s.rate),
		ms(s.latency[0]), ms(s.latency[1]), ms(s.lag[0]), ms(s.lag[1]), n(s.unfinished),
	}
}

// briefly is how long the soak takes among the other tests. It checks that nothing
// is lost, repeated or left unfinished, but does not compare growth: that needs more
// than seconds.
const briefly = 8 * time.Second

// duration is how long the soak takes.
func duration(t *testing.T) time.Duration {
	text := os.Getenv("CALLBACK_SOAK")
	if text == "" {
		return briefly
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("CALLBACK_SOAK is %q; expected a duration such as 30m", text)
	}
	return d
}

func TestNothingGrowsUnderSustainedLoad(t *testing.T) {
	d := duration(t)
	l := newLoad(t)
	app := gatewaytest.NewApp(t, gatewaytest.AnswerSoon)
	timeout := "timeout 2s"
	if d <= briefly {
		timeout = "timeout 5m" // an attempt that a busy machine delays is not repeated
	}
	options := fmt.Sprintf("retention 24h %d\nqueue q {\nworkers 32\n}\n", kept) + gatewaytest.Delivering(timeout, "retry 1s 5s 10s", "per_host 32")
	g := gatewaytest.New(t, options, "callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}\nreverse_proxy "+app)
	g.Edit("level DEBUG", "level ERROR")
	g.Start()
	l.gateway = g

	rate := heldRate(t, l, d)
	samples, late := soak(t, l, rate, d)
	close(l.over)
	save(t, samples)
	settle(t, l)
	broken := 0
	for _, err := range l.failures {
		if !errors.Is(err, gatewaytest.ErrBroken) {
			t.Errorf("a request failed: %v", err)
		}
		broken++
	}
	t.Logf("%d tasks accepted, %d callbacks arrived, %d repeated, %d undeliverable; %d requests were late, %d interrupted by reloads",
		l.accepted.Load(), l.arrived.Load(), l.repeated.Load(), l.unreachable.Load(), late, broken)
	if n := l.repeated.Load(); n > 0 {
		t.Errorf("%d callbacks were repeated although nothing was killed", n)
	}
	g.Eventually("no task is unfinished", func() error {
		if s := look(l); s.unfinished > 0 {
			return fmt.Errorf("%.0f are", s.unfinished)
		}
		return nil
	})
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway exited with %d", code)
	}
	if d > briefly {
		judge(t, samples)
	}
}

// heldRate returns how many tasks per second the test sends: a share of the machine's
// throughput, or CALLBACK_SOAK_RATE, to repeat a measurement or to leave capacity for
// other programs.
func heldRate(t *testing.T, l *load, d time.Duration) float64 {
	if text := os.Getenv("CALLBACK_SOAK_RATE"); text != "" {
		rate, err := strconv.ParseFloat(text, 64)
		if err != nil || rate <= 0 {
			t.Fatalf("CALLBACK_SOAK_RATE is %q; expected a number of tasks per second", text)
		}
		t.Logf("sending %.0f tasks per second for %v", rate, d)
		return rate
	}
	most := l.measure(32, min(time.Minute, max(d/10, 2*time.Second)))
	t.Logf("the machine handles %.0f tasks per second; sending %.0f for %v", most, share*most, d)
	return share * most
}

// settle waits until every accepted task has its callback, for as long as the number
// of missing callbacks falls: on a shared machine the gateway may lag behind.
func settle(t *testing.T, l *load) {
	left, _ := l.missing()
	for left > 0 {
		l.gateway.Eventually("every accepted task has its callback", func() error {
			n, one := l.missing()
			if n < left {
				left = n
				return nil
			}
			_, doc, err := gatewaytest.Send(http.MethodGet, "http://"+l.gateway.Admin+"/callback/tasks/"+one, http.NoBody)
			return fmt.Errorf("%d tasks have no callback, such as %s %v", n, doc, err)
		})
	}
}

// reloadInterval is longer than idle connections are kept: those of a replaced
// generation are closed after two idle minutes.
const reloadInterval = 3 * time.Minute

// soak keeps up the load, reloads repeatedly, and takes samples.
func soak(t *testing.T, l *load, rate float64, d time.Duration) (samples []*sample, late int64) {
	stop, held := make(chan struct{}), make(chan int64)
	go func() { held <- l.hold(rate, stop) }()
	end := time.After(d)
	take := time.NewTicker(max(d/60, 500*time.Millisecond))
	defer take.Stop()
	reload := time.NewTimer(min(reloadInterval, d/8)) // at least once, before the compared samples
	defer reload.Stop()
	began, before, accepted := time.Now(), time.Now(), l.accepted.Load()
	perHost := 32
	for {
		select {
		case <-end:
			close(stop)
			return samples, <-held
		case <-reload.C:
			reload.Reset(reloadInterval)
			l.gateway.Edit(fmt.Sprintf("per_host %d", perHost), fmt.Sprintf("per_host %d", perHost+1))
			perHost++
			if err := l.gateway.Reload(); err != nil {
				t.Error(err)
			}
		case <-take.C:
			s := look(l)
			now := time.Now()
			s.at, s.rate = now.Sub(began), float64(l.accepted.Load()-accepted)/now.Sub(before).Seconds()
			before, accepted = now, l.accepted.Load()
			samples = append(samples, s)
		}
	}
}

// look takes a sample.
func look(l *load) *sample {
	s := new(sample)
	for name, value := range l.gateway.Metrics() {
		switch {
		case name == "process_resident_memory_bytes":
			s.memory = value / (1 << 20)
		case name == "go_goroutines":
			s.goroutines = value
		case name == "process_open_fds":
			s.files = value
		case strings.HasPrefix(name, "caddy_callback_tasks{") && !strings.Contains(name, `"done"`) && !strings.Contains(name, `"dead"`):
			s.unfinished += value
		}
	}
	// Files are created and removed while they are counted.
	_ = filepath.WalkDir(filepath.Join(l.gateway.Dir, "store"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			s.store += float64(info.Size()) / (1 << 20)
		}
		return nil
	})
	latencies, lags := l.taken()
	at := func(sorted []time.Duration, hundredths int) time.Duration {
		if len(sorted) == 0 {
			return 0
		}
		return sorted[(len(sorted)-1)*hundredths/100]
	}
	s.latency = [2]time.Duration{at(latencies, 50), at(latencies, 99)}
	s.lag = [2]time.Duration{at(lags, 50), at(lags, 99)}
	return s
}

// save writes the samples as CSV if a file is named, and logs a few of them as a
// table.
func save(t *testing.T, samples []*sample) {
	var table strings.Builder
	fmt.Fprintf(&table, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for i, s := range samples {
		if i%max(1, len(samples)/12) == 0 || i == len(samples)-1 {
			fmt.Fprintf(&table, "| %s |\n", strings.Join(s.fields(), " | "))
		}
	}
	t.Logf("samples:\n%s", table.String())
	name := os.Getenv("CALLBACK_SOAK_CSV")
	if name == "" {
		return
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := csv.NewWriter(f)
	rows := [][]string{columns}
	for _, s := range samples {
		rows = append(rows, s.fields())
	}
	if err := w.WriteAll(rows); err != nil {
		t.Error(err)
	}
}

// judge compares the first quarter after the warm-up with the last quarter.
func judge(t *testing.T, samples []*sample) {
	n := len(samples)
	if n < 8 {
		t.Fatalf("there are %d samples", n)
	}
	first, last := samples[n/4:n/2], samples[n-n/4:]
	mean := func(of []*sample, value func(*sample) float64) (sum float64) {
		for _, s := range of {
			sum += value(s)
		}
		return sum / float64(len(of))
	}
	for _, bound := range []struct {
		what  string
		value func(*sample) float64
		share float64 // allowed growth, as a part of the first value
		spare float64 // allowed growth in addition
	}{
		{"memory in MiB", func(s *sample) float64 { return s.memory }, 0.15, float64(gatewaytest.Growth(32))},
		{"goroutines", func(s *sample) float64 { return s.goroutines }, 0.10, 100},
		{"open files", func(s *sample) float64 { return s.files }, 0.10, 50},
		{"store in MiB", func(s *sample) float64 { return s.store }, 0.15, 32},
		{"unfinished tasks", func(s *sample) float64 { return s.unfinished }, 0.10, 500},
	} {
		from, to := mean(first, bound.value), mean(last, bound.value)
		t.Logf("%s: %.0f at the start, %.0f at the end, limit %.0f", bound.what, from, to, from*(1+bound.share)+bound.spare)
		if to > from*(1+bound.share)+bound.spare {
			t.Errorf("%s grew from %.0f to %.0f", bound.what, from, to)
		}
	}
}
