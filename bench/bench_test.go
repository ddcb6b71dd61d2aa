package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The measurements start this program again as Caddy and as nats-server.
func TestMain(m *testing.M) {
	if runAsCaddy() || runAsNATS() {
		return
	}
	os.Exit(m.Run())
}

// TestTrialWritesEveryTableAndPicture runs all measurements with small numbers. The
// figures mean nothing, so it checks only that they are written.
func TestTrialWritesEveryTableAndPicture(t *testing.T) {
	docs := t.TempDir()
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join("../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(docs, page)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(cleared(string(text))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{docs: docs}
	b.try()
	if err := b.main("", true); err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join(docs, page))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), " -->\n"+endMark) {
			t.Errorf("%s has an empty table:\n%s", page, text)
		}
	}
	for _, c := range pictures {
		f, err := os.Open(filepath.Join(docs, "images", c.file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for d := xml.NewDecoder(f); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", c.file, err)
			}
		}
	}
}

// cleared removes the tables from a page.
func cleared(text string) string {
	parts := strings.Split(text, "<!-- bench:")
	for i, part := range parts[1:] {
		mark, rest, _ := strings.Cut(part, " -->\n")
		_, after, _ := strings.Cut(rest, endMark)
		parts[i+1] = mark + " -->\n" + endMark + after
	}
	return strings.Join(parts, "<!-- bench:")
}

// fillingTime is how long it takes to fill the stores and copy them.
const fillingTime = 2 * time.Minute

func TestMeasurementsFitInTwentyMinutes(t *testing.T) {
	sum := fillingTime
	for _, m := range measurements {
		sum += m.budget
	}
	if sum > 20*time.Minute {
		t.Errorf("the measurements take %v", sum)
	}
}

func TestTurnsEndWithTheBudget(t *testing.T) {
	for _, c := range []struct {
		name   string
		budget time.Duration
		want   []int
	}{
		{"no time left", 0, []int{0, 1}},
		{"enough time", time.Hour, []int{0, 1, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{rounds: 3, budget: c.budget}
			if got := slices.Collect(b.turns(1)); !slices.Equal(got, c.want) {
				t.Errorf("the rounds are %v; expected %v", got, c.want)
			}
		})
	}
}

func TestSpansFindTheLongestPause(t *testing.T) {
	s := newSpans()
	s.begin("a")
	s.end("a")
	s.end("b") // before its begin
	s.begin("b")
	if len(s.took) != 2 || s.took[1] != 0 || len(s.open) != 0 {
		t.Errorf("the tasks took %v, and %d are open", s.took, len(s.open))
	}
	s.last = s.last.Add(-time.Minute)
	s.end("c")
	if s.pause < time.Minute || s.len() != 2 {
		t.Errorf("the longest pause is %v", s.pause)
	}
}

func TestAlternateMeasuresTheOtherSideBetweenTheParts(t *testing.T) {
	var calls []string
	sample := func(name string, took time.Duration) sampler {
		return func(rate int, d time.Duration) ([]time.Duration, error) {
			calls = append(calls, fmt.Sprintf("%s%d %v", name, rate, d))
			took--
			return []time.Duration{took}, nil
		}
	}
	ours, theirs, err := alternate(200, sample("ours", 10), sample("theirs", 20), 50*time.Second, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Repeat([]string{"theirs200 1s", "ours200 10s"}, 5); !slices.Equal(calls, want) {
		t.Errorf("the calls are %q; expected %q", calls, want)
	}
	if !slices.Equal(ours, []time.Duration{5, 6, 7, 8, 9}) || !slices.Equal(theirs, []time.Duration{15, 16, 17, 18, 19}) {
		t.Errorf("the latencies are %d and %d", ours, theirs)
	}
}
