package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Filter says which tasks are meant. A zero field asks for nothing.
type Filter struct {
	States   []task.State
	Statuses []task.Verdict
	Queue    string
	// Host is that of the callback, with its port or without.
	Host string
	// Before and After bound when a task was accepted.
	Before, After time.Time
}

// Cursor says how far a list has been read: in each place, by the name of it, the
// newest message that is still to come. It stands for all places as they were
// when the list was begun, so that what arrives meanwhile does not shift it.
type Cursor map[string]uint64

// Page is a part of a list.
type Page struct {
	Tasks []*task.Record // with their State; newest first
	// Next goes on after this page; nil if there is no more. A page may be empty
	// and have a next one.
	Next Cursor
	// Scanned is how many messages were looked at.
	Scanned int
}

// listBudget bounds how many messages one call of List looks at: each is a
// request to the server. A filter that matches nothing would otherwise read a
// million of them.
const listBudget = 2000

// List returns up to limit tasks that match, newest first: the order is that in
// which they came to where they stand. What is in the store is never listed
// whole; a list costs what it looks at, however many tasks there are. A task
// that moves while the pages are read may be left out, none comes twice.
func (e *Engine) List(ctx context.Context, f Filter, from Cursor, limit int) (*Page, error) {
	l, err := e.newList(ctx, &f, from)
	if err != nil {
		return nil, err
	}
	page := new(Page)
	seen := make(map[string]bool)
	for taken := 0; len(page.Tasks) < limit && (taken == 0 || l.scanned < listBudget); taken++ {
		msg, err := l.next(ctx)
		if err != nil {
			return nil, fmt.Errorf("listing tasks: %w", err)
		}
		if msg == nil {
			break
		}
		rec := listed(msg)
		// While it is claimed a task stands in two places.
		if rec != nil && !seen[rec.ID] && f.matches(rec) {
			seen[rec.ID] = true
			page.Tasks = append(page.Tasks, rec)
		}
	}
	page.Scanned, page.Next = l.scanned, l.cursor()
	return page, nil
}

// listed is the record in a message, nil if it is no task's. One that cannot be
// read is listed all the same, so that an operator can purge it.
func listed(msg *jetstream.RawStreamMsg) *task.Record {
	rec, _, err := unframe(msg.Data)
	if err != nil {
		return damaged(msg)
	}
	if rec.ID == "" {
		return nil // a tick, which has no task yet
	}
	rec.State = stateAt(msg.Subject, rec)
	hideLapse(rec)
	return rec
}

// damaged stands for a record that cannot be read.
func damaged(msg *jetstream.RawStreamMsg) *task.Record {
	rec := new(task.Record)
	rec.ID, rec.CreatedAt, rec.Error = idOf(msg.Subject), msg.Time.UTC(), "the stored record is damaged"
	rec.State = stateAt(msg.Subject, rec)
	return rec
}

func (f *Filter) matches(rec *task.Record) bool {
	switch {
	case len(f.States) > 0 && !slices.Contains(f.States, rec.State),
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, rec.Status),
		f.Queue != "" && f.Queue != rec.Queue,
		f.Host != "" && f.Host != rec.CallbackHost && f.Host != hostOf(rec.CallbackHost),
		!f.Before.IsZero() && !rec.CreatedAt.Before(f.Before),
		!f.After.IsZero() && !rec.CreatedAt.After(f.After):
		return false
	}
	return true
}

// hostOf is a host and port without the port.
func hostOf(hostPort string) string {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort
	}
	return host
}

// place is where tasks stand, for a list.
type place struct {
	name   string // in a cursor
	stream func(*Engine) jetstream.Stream
	states []task.State
	// filter is the subject of the tasks there that can match.
	filter func(*Filter) string
}

func fixed(subject string) func(*Filter) string { return func(*Filter) string { return subject } }

// byHost narrows the tasks to those of a host, if the filter names its port.
func byHost(subject string) func(*Filter) string {
	return func(f *Filter) string {
		if _, _, err := net.SplitHostPort(f.Host); err == nil {
			return subject + hostToken(f.Host) + ".*"
		}
		return subject + "*.*"
	}
}

func byQueue(f *Filter) string {
	if f.Queue != "" && !strings.ContainsAny(f.Queue, ".*> \t") {
		return queuedSubject + f.Queue + ".*"
	}
	return queuedSubject + "*.*"
}

func inLive(e *Engine) jetstream.Stream  { return e.link().live }
func inEnded(e *Engine) jetstream.Stream { return e.link().ended }
func inDead(e *Engine) jetstream.Stream  { return e.link().dead }

var places = []place{
	{"queued", inLive, []task.State{task.Queued}, byQueue},
	{"lease", inLive, []task.State{task.Running}, fixed(leaseSubject + "*")},
	{"due", inLive, []task.State{task.Delivering}, byHost(dueSubject)},
	{"held", inLive, []task.State{task.Delivering}, byHost(heldSubject)},
	{"retry", inLive, []task.State{task.Queued, task.Delivering}, fixed(retrySubject + "*")},
	{"done", inEnded, []task.State{task.Done}, fixed(doneSubject + "*")},
	{"dead", inDead, []task.State{task.Dead}, fixed(deadSubject + "*")},
}

// holds says whether a task that matches may stand there.
func (p *place) holds(f *Filter) bool {
	for _, state := range p.states {
		if len(f.States) == 0 || slices.Contains(f.States, state) {
			return true
		}
	}
	return false
}

// list merges the places by the time at which tasks came there.
type list struct {
	walkers []*walker
	scanned int
	after   time.Time
}

func (e *Engine) newList(ctx context.Context, f *Filter, from Cursor) (*list, error) {
	l := &list{after: f.After}
	states := make(map[jetstream.Stream]jetstream.StreamState)
	for i := range places {
		p := &places[i]
		if !p.holds(f) {
			continue
		}
		stream := p.stream(e)
		state, ok := states[stream]
		if !ok {
			info, err := stream.Info(ctx)
			if err != nil {
				return nil, fmt.Errorf("listing tasks: %w", err)
			}
			state = info.State
			states[stream] = state
		}
		w := &walker{name: p.name, stream: stream, filter: p.filter(f), first: state.FirstSeq, top: state.LastSeq, window: minWindow}
		if from != nil {
			w.top = min(w.top, from[p.name])
		}
		if state.Msgs == 0 {
			w.top = 0
		}
		l.walkers = append(l.walkers, w)
	}
	return l, nil
}

// next returns the newest message that is left, nil if there is none.
func (l *list) next(ctx context.Context) (*jetstream.RawStreamMsg, error) {
	var newest *walker
	for _, w := range l.walkers {
		for len(w.ready) == 0 && w.top > 0 {
			n, err := w.fill(ctx)
			l.scanned += n
			if err != nil {
				return nil, err
			}
		}
		// Nothing is accepted after it was stored: from here on all is too old.
		if len(w.ready) > 0 && w.head().Time.Before(l.after) {
			w.ready, w.top = nil, 0
		}
		if len(w.ready) > 0 && (newest == nil || w.head().Time.After(newest.head().Time)) {
			newest = w
		}
	}
	if newest == nil {
		return nil, nil
	}
	msg := newest.head()
	newest.ready = newest.ready[:len(newest.ready)-1]
	return msg, nil
}

// cursor is where the list stands, nil at its end.
func (l *list) cursor() Cursor {
	c := make(Cursor)
	for _, w := range l.walkers {
		switch {
		case len(w.ready) > 0:
			c[w.name] = w.head().Sequence
		case w.top > 0:
			c[w.name] = w.top
		}
	}
	if len(c) == 0 {
		return nil
	}
	return c
}

// walker walks through the messages of a stream whose subject matches, newest
// first. The server only looks forward, so a window of sequences is read at a
// time, and the next one below it. What a busy stream has left behind are long
// gaps: windows grow until they hold something.
type walker struct {
	name       string
	stream     jetstream.Stream
	filter     string
	first, top uint64 // sequences still to be looked at; top is 0 at the end
	window     uint64
	ready      []*jetstream.RawStreamMsg // oldest first
}

const (
	// minWindow is the smallest window, and the most messages that are taken of one.
	minWindow = 64
	// growth is by how much windows grow, and shrink.
	growth = 8
)

func (w *walker) head() *jetstream.RawStreamMsg { return w.ready[len(w.ready)-1] }

// fill reads a window and returns how many messages it took for that. There may
// have been none in it.
func (w *walker) fill(ctx context.Context) (scanned int, err error) {
	for {
		bottom := w.first
		if w.top > w.window && w.top-w.window+1 > bottom {
			bottom = w.top - w.window + 1
		}
		n, whole, err := w.read(ctx, bottom)
		scanned += n
		if err != nil {
			return scanned, err
		}
		if !whole {
			// More than can be taken: what was read is the old end of the window. The new
			// end is wanted.
			left := w.top - w.head().Sequence
			w.ready, w.window = nil, max(minWindow, left/growth)
			continue
		}
		if n < minWindow/growth {
			w.window *= growth
		}
		if bottom <= w.first {
			w.top = 0
		} else {
			w.top = bottom - 1
		}
		return scanned, nil
	}
}

// read takes the messages from bottom to the top, and says whether those are all.
func (w *walker) read(ctx context.Context, bottom uint64) (n int, whole bool, err error) {
	for seq := max(bottom, 1); seq <= w.top; {
		if len(w.ready) >= minWindow {
			return n, false, nil
		}
		msg, err := w.stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(w.filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		} else if err != nil {
			return n, false, err
		}
		n++
		if msg.Sequence > w.top {
			break
		}
		w.ready = append(w.ready, msg)
		seq = msg.Sequence + 1
	}
	return n, true, nil
}
