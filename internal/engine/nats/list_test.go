package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// put stores a task at once where one of that state stands.
func put(t *testing.T, e *Engine, state task.State, change func(*task.Record)) string {
	t.Helper()
	rec := record("c.example:443")
	if state == task.Queued {
		rec.Queue, rec.Status, rec.Error, rec.StartedAt = "q", "", "", time.Time{}
	}
	if change != nil {
		change(&rec)
	}
	subject := map[task.State]string{
		task.Queued: queuedSubject + rec.Queue + ".", task.Delivering: heldSubject + hostToken(rec.CallbackHost) + ".",
		task.Done: doneSubject, task.Dead: deadSubject, task.Running: leaseSubject,
	}[state] + rec.ID
	if _, err := e.publish(t.Context(), step{subject: subject, rec: &rec}); err != nil {
		t.Fatal(err)
	}
	return rec.ID
}

// listAll reads all pages and returns the tasks' IDs in their order.
func listAll(t *testing.T, e *Engine, f Filter, limit int, between func()) (ids []string) {
	t.Helper()
	var from Cursor
	for {
		page, err := e.List(t.Context(), f, from, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Tasks) > limit {
			t.Fatalf("a page of %d has %d tasks", limit, len(page.Tasks))
		}
		for _, rec := range page.Tasks {
			ids = append(ids, rec.ID)
		}
		if page.Next == nil {
			return ids
		}
		from = page.Next
		if between != nil {
			between()
		}
	}
}

var allStates = []task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead}

func TestAListIsNewestFirstAcrossAllPlaces(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	var want []string
	for i := range 500 {
		want = append(want, put(t, e, allStates[i%len(allStates)], nil))
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 7, 1000} {
		if got := listAll(t, e, Filter{}, limit, nil); !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %d tasks, not the %d in their order", limit, len(got), len(want))
		}
	}
}

func TestPagesNeitherRepeatNorLoseWhileTasksArrive(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	var want []string
	for i := range 1000 {
		want = append(want, put(t, e, allStates[i%len(allStates)], nil))
	}
	slices.Reverse(want)
	n := 0
	got := listAll(t, e, Filter{}, 30, func() {
		for range 5 {
			put(t, e, allStates[n%len(allStates)], nil)
			n++
		}
	})
	if !slices.Equal(got, want) {
		t.Errorf("%d tasks were listed, not the %d that were there at first", len(got), len(want))
	}
}

func TestAListCrossesLongGaps(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	var want []string
	var wg sync.WaitGroup
	for i := range 6000 {
		id := put(t, e, task.Queued, nil)
		if i%1000 == 0 || i > 5990 {
			want = append(want, id)
			continue
		}
		wg.Go(func() {
			if err := e.link().live.Purge(t.Context(), purgeOf("queued.q."+id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Reverse(want)
	page, err := e.List(t.Context(), Filter{}, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Tasks) != len(want) || page.Next != nil {
		t.Fatalf("%d tasks, not %d; next is %v", len(page.Tasks), len(want), page.Next)
	}
	if page.Scanned > 200 {
		t.Errorf("%d messages were looked at for %d tasks", page.Scanned, len(want))
	}
}

func TestAListCanBeFiltered(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	old := time.Now().Add(-2 * time.Hour)
	ids := map[string]string{
		"queued":     put(t, e, task.Queued, nil),
		"other":      put(t, e, task.Queued, func(r *task.Record) { r.Queue = "other" }),
		"again":      put(t, e, task.Queued, func(r *task.Record) { r.CreatedAt = old }),
		"running":    put(t, e, task.Running, func(r *task.Record) { r.Queue = "q" }),
		"delivering": put(t, e, task.Delivering, func(r *task.Record) { r.Status = task.Complete }),
		"host":       put(t, e, task.Delivering, func(r *task.Record) { r.CallbackHost = "other.example:8443" }),
		"done":       put(t, e, task.Done, func(r *task.Record) { r.Status, r.Queue = task.Complete, "q" }),
		"v6":         put(t, e, task.Done, func(r *task.Record) { r.CallbackHost = "[2001:db8::1]:443" }),
		"dead":       put(t, e, task.Dead, func(r *task.Record) { r.Status, r.CreatedAt = task.TimedOut, old }),
	}
	for name, c := range map[string]struct {
		filter Filter
		want   []string
	}{
		"by state":            {Filter{States: []task.State{task.Queued}}, []string{"queued", "other", "again"}},
		"by two states":       {Filter{States: []task.State{task.Done, task.Dead}}, []string{"done", "v6", "dead"}},
		"by queue":            {Filter{Queue: "q"}, []string{"queued", "again", "running", "done"}},
		"by queue and state":  {Filter{Queue: "other", States: []task.State{task.Queued}}, []string{"other"}},
		"by no queue":         {Filter{Queue: "*"}, nil},
		"by host":             {Filter{Host: "other.example"}, []string{"host"}},
		"by host and port":    {Filter{Host: "other.example:8443"}, []string{"host"}},
		"by address":          {Filter{Host: "2001:db8::1"}, []string{"v6"}},
		"by status":           {Filter{Statuses: []task.Verdict{task.Complete}}, []string{"delivering", "done"}},
		"by age, older":       {Filter{Before: time.Now().Add(-time.Hour)}, []string{"again", "dead"}},
		"by age, newer":       {Filter{After: time.Now().Add(-time.Hour), States: []task.State{task.Dead, task.Queued}}, []string{"queued", "other"}},
		"by all that exclude": {Filter{States: []task.State{task.Dead}, Statuses: []task.Verdict{task.Complete}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got, want []string
			got = listAll(t, e, c.filter, 2, nil)
			for _, name := range c.want {
				want = append(want, ids[name])
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%d tasks, not %v", len(got), c.want)
			}
		})
	}
}

func TestWhatIsStoredOfARunningTaskForItsDeathIsNotItsVerdict(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	claim(t, e, record("c.example:443"))
	page, err := e.List(t.Context(), Filter{}, nil, 10)
	if err != nil || len(page.Tasks) != 1 {
		t.Fatal(page, err)
	}
	if rec := page.Tasks[0]; rec.State != task.Running || rec.Status != "" || rec.Error != "" {
		t.Errorf("it is listed as %+v", rec.Task)
	}
}

func TestADamagedRecordIsListedShownAndPurged(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	id := record("").ID
	if _, err := e.send(t.Context(), &nats.Msg{Subject: deadSubject + id, Data: []byte("{\x00 no record")}); err != nil {
		t.Fatal(err)
	}
	if got := listAll(t, e, Filter{States: []task.State{task.Dead}}, 10, nil); !slices.Equal(got, []string{id}) {
		t.Errorf("listed are %v", got)
	}
	f, err := e.Find(t.Context(), id)
	if err != nil || f.Record.State != task.Dead || !strings.Contains(f.Record.Error, "damaged") {
		t.Errorf("it is found as %+v: %v", f, err)
	}
	var refused *RefusedError
	if err := e.Redeliver(t.Context(), id); !errors.As(err, &refused) {
		t.Errorf("its redelivery says %v", err)
	}
	if err := e.Purge(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := e.Find(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestAFilterThatMatchesNothingEndsInBoundedSteps(t *testing.T) {
	t.Parallel()
	e := openTemp(t, time.Minute)
	for range 2 * listBudget {
		put(t, e, task.Dead, nil)
	}
	pages := 0
	var from Cursor
	for {
		page, err := e.List(t.Context(), Filter{Host: "nobody.example"}, from, 10)
		if err != nil || len(page.Tasks) > 0 {
			t.Fatal(page, err)
		}
		if page.Scanned > listBudget+minWindow*growth {
			t.Errorf("%d messages were looked at for one page", page.Scanned)
		}
		pages++
		if from = page.Next; from == nil {
			break
		}
	}
	if pages < 2 || pages > 4 {
		t.Errorf("it took %d pages", pages)
	}
}

func TestHostsAreReadBackFromTheirNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 300)
	for host, want := range map[string]string{
		"c.example:443": "c.example:443", "[2001:db8::1]:80": "[2001:db8::1]:80", "a_b.example:80": "a_b.example:80",
		"ü%.example:80": "ü%.example:80", "": "", long: hostToken(long),
	} {
		if got := HostOfToken(hostToken(host)); got != want {
			t.Errorf("%q is read back as %q", host, got)
		}
	}
	if got := fmt.Sprintf("%q", HostOfToken("%")); got != `"%"` {
		t.Errorf("a lone escape is read as %s", got)
	}
}
