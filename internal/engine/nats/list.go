package nats

import (
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

// place is a position in a list, as in its cursor: of tasks the time and ID, of hosts
// the pending deliveries and name.
type place struct {
	n  int64
	id string
}

func (p place) cursor() engine.Cursor {
	return engine.Cursor(strconv.FormatInt(p.n, 36) + "." + p.id)
}

func parsePlace(c engine.Cursor) (place, error) {
	text, id, ok := strings.Cut(string(c), ".")
	n, err := strconv.ParseInt(text, 36, 64)
	if !ok || err != nil {
		return place{}, fmt.Errorf("%w: %q", engine.ErrCursor, c)
	}
	return place{n, id}, nil
}

// candidate is the step of a task that the index knows, which may not be the last one.
type candidate struct {
	place
	seq uint64
}

// List implements engine.Tasks.
func (e *Engine) List(ctx context.Context, f engine.Filter, after engine.Cursor, limit int) (*engine.Page, error) {
	if err := e.closed(); err != nil {
		return nil, err
	}
	at := &place{n: math.MaxInt64}
	if after != "" {
		parsed, err := parsePlace(after)
		if err != nil {
			return nil, err
		}
		at = &parsed
	}
	page := new(engine.Page)
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

// find looks for up to n tasks older than a place, newest first. next is where to go
// on, nil if there are no older tasks.
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
