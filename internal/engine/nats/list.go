package nats

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// listTime limits the search for a page.
	listTime = 20 * time.Millisecond
	// listStep is how many tasks are scanned between two checks of the time.
	listStep = 1000
)

// place is a position in a list, as its cursor encodes it. In a list of tasks it has the
// creation time and ID of a task, in a list of hosts the number of pending deliveries and
// the name of a host.
type place struct {
	n  int64
	id string
}

func (p place) cursor() engine.Cursor {
	return engine.NewCursor(strconv.FormatInt(p.n, 36) + "." + p.id)
}

// parsePlace returns the place of a cursor, or start for an empty one.
func parsePlace(c engine.Cursor, start place) (place, error) {
	position, err := c.Position()
	if err != nil || position == "" {
		return start, err
	}
	text, id, ok := strings.Cut(position, ".")
	n, err := strconv.ParseInt(text, 36, 64)
	if !ok || err != nil {
		return start, fmt.Errorf("%w: %q", engine.ErrCursor, c)
	}
	return place{n, id}, nil
}

// candidate is the step of a task that the index has, which may not be the last one.
type candidate struct {
	id  string
	seq uint64
}

// List implements engine.Tasks.
func (e *Engine) List(ctx context.Context, f engine.Filter, after engine.Cursor, limit int) (*engine.Page, error) {
	if err := e.closed(); err != nil {
		return nil, err
	}
	start, err := parsePlace(after, place{n: math.MaxInt64})
	if err != nil {
		return nil, err
	}
	at, page := &start, new(engine.Page)
	deadline := time.Now().Add(listTime)
	for at != nil && len(page.Tasks) < limit {
		want := limit - len(page.Tasks)
		if f.NeedsRecord() {
			want = maxConcurrent
		}
		found, next, scanned := e.index.find(&f, *at, want, deadline)
		page.Scanned += scanned
		recs, err := each(found, func(c candidate) (*task.Record, error) { return e.Get(ctx, c.id) })
		if err != nil {
			return nil, fmt.Errorf("listing tasks: %w", err)
		}
		for i, rec := range recs {
			if !f.Match(rec) {
				continue
			}
			if page.Tasks = append(page.Tasks, rec); len(page.Tasks) == limit && i < len(recs)-1 {
				next = &place{fromTime(rec.CreatedAt), rec.ID}
				break
			}
		}
		if at = next; time.Now().After(deadline) {
			break
		}
	}
	if at != nil {
		page.Next = at.cursor()
	}
	return page, nil
}

// find looks for up to n tasks older than a place, newest first. next is where the next
// search continues, nil if there are no older tasks.
func (x *index) find(f *engine.Filter, before place, n int, deadline time.Time) (found []candidate, next *place, scanned int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := sort.Search(len(x.byAge), func(i int) bool {
		e := x.byAge[i]
		return e.created > before.n || e.created == before.n && e.id >= before.id
	})
	for i--; i >= 0; i-- {
		e := x.byAge[i]
		scanned++
		if e.state != removed && matches(f, e) {
			found = append(found, e.candidate())
		}
		if !f.After.IsZero() && e.created < f.After.UnixNano() {
			return found, nil, scanned
		}
		if len(found) == n || scanned%listStep == 0 && time.Now().After(deadline) {
			if i > 0 {
				next = &place{e.created, e.id}
			}
			return found, next, scanned
		}
	}
	return found, nil, scanned
}

// matches reports whether an entry matches the parts of a filter that the index has.
func matches(f *engine.Filter, e *entry) bool {
	switch {
	case len(f.States) > 0 && !slices.Contains(f.States, e.state),
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, e.status),
		f.Queue != "" && (e.queue == nil || e.queue.name != f.Queue),
		f.Host != "" && (e.host == nil || !isHost(e.host.name, f.Host)),
		!f.Before.IsZero() && e.created >= f.Before.UnixNano(),
		!f.After.IsZero() && e.created < f.After.UnixNano(),
		!strings.HasPrefix(e.id, f.IDPrefix):
		return false
	}
	return true
}

// isHost reports whether a host filter, with or without a port, matches a host and
// port.
func isHost(hostPort, host string) bool {
	if hostPort == host {
		return true
	}
	i := strings.LastIndexByte(hostPort, ':')
	return i >= 0 && (hostPort[:i] == host || strings.Trim(hostPort[:i], "[]") == host)
}

// Hosts implements engine.Tasks.
func (e *Engine) Hosts(_ context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error) {
	if err := e.closed(); err != nil {
		return nil, "", err
	}
	at, err := parsePlace(after, place{n: math.MaxInt64})
	if err != nil {
		return nil, "", err
	}
	shown := engine.HostStats{HostState: engine.HostState{Host: at.id}, Pending: at.n}
	all := slices.DeleteFunc(e.index.hostStats(), func(s engine.HostStats) bool { return compareHosts(s, shown) <= 0 })
	slices.SortFunc(all, compareHosts)
	if len(all) <= limit {
		return all, "", nil
	}
	last := all[limit-1]
	return all[:limit], place{last.Pending, last.Host}.cursor(), nil
}

func compareHosts(a, b engine.HostStats) int {
	return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.Host, b.Host))
}

func (x *index) hostStats() (all []engine.HostStats) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range x.hosts {
		if b.pending == 0 && b.state.Failures == 0 && !b.state.Paused {
			continue
		}
		s := engine.HostStats{HostState: b.state, Pending: b.pending, InFlight: b.pending - int64(len(b.entries))}
		if len(b.entries) > 0 {
			s.Next = toTime(b.entries[0].ready)
		}
		all = append(all, s)
	}
	return all
}

// Queues implements engine.Tasks.
func (e *Engine) Queues(context.Context) ([]engine.QueueStats, error) {
	if err := e.closed(); err != nil {
		return nil, err
	}
	x := e.index
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []engine.QueueStats
	for _, b := range x.queues {
		if b.pending == 0 && b.running == 0 && !b.state.Paused {
			continue
		}
		s := engine.QueueStats{Queue: b.name, Queued: b.pending, Running: b.running, Paused: b.state.Paused}
		var oldest *entry
		now := time.Now().UnixNano()
		for _, e := range b.entries {
			if e.ready > now {
				s.Delayed++
			} else if oldest == nil || e.ready < oldest.ready {
				oldest = e
			}
		}
		if oldest != nil {
			s.Oldest = toTime(oldest.created)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b engine.QueueStats) int { return cmp.Compare(a.Queue, b.Queue) })
	return all, nil
}

// Stats implements engine.Tasks. Used is some seconds old. Limit is zero unless an
// operator has limited a stream; in that case both values are of that stream.
func (e *Engine) Stats(context.Context) (engine.Stats, error) {
	if err := e.closed(); err != nil {
		return engine.Stats{}, err
	}
	x := e.index
	x.mu.Lock()
	defer x.mu.Unlock()
	s := engine.Stats{Tasks: make(map[task.State]int64, len(x.counts)), Used: e.used.Load(), Limit: e.limit.Load()}
	for state, n := range x.counts {
		if n > 0 {
			s.Tasks[state] = n
		}
	}
	now := time.Now().UnixNano()
	for _, b := range x.hosts {
		s.Due += int64(b.ready(now))
	}
	return s, nil
}
