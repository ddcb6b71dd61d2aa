package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Defaults of the inbox.
const (
	defaultKeep         = 500
	defaultMaxBody      = 16 << 20 // a result of 8 MiB fits, though escaping lengthens it
	defaultTaskHeader   = "beam-task-id"
	defaultStatusHeader = "x-beam-task-status"
)

const (
	// maxReceiving bounds the bodies that are being received, of all senders
	// together: a thousand that each send 16 MiB at once must not take 16 GiB.
	// What does not fit is cut.
	maxReceiving = 64 << 20

	// maxRead is how much of a body is read at all, kept or not. A sender is let
	// finish, as it would take a connection that is closed before for an error;
	// but one that never ends would hold its goroutine for ever.
	maxRead = 1 << 30

	// maxViewers bounds the streams, lists and downloads that are under way. Each
	// may hold one callback for a reader that is slow, or that never reads.
	maxViewers = 64

	// viewTimeout is how long a viewer may take to take in one write. One that
	// reads no more would otherwise keep its place, and a stream hold up a reload.
	viewTimeout = 10 * time.Second

	// listShown and streamShown bound the part of a body that stands in the JSON
	// of a callback: one body of 16 MiB takes up to 96 MiB there, and a page
	// with hundreds of them would not be usable. All that is kept is at ?body=.
	listShown   = 1 << 20
	streamShown = 64 << 10
)

// InboxConfig says how an inbox behaves. The zero value is a working one.
type InboxConfig struct {
	// Keep is how many callbacks are remembered. Zero means 500. They take at
	// most 64 MiB together: of large ones, fewer are remembered.
	Keep int

	// Keys verify signatures. Without keys, signatures are not judged.
	Keys []webhook.Key

	// Respond is the status that senders get, from 200 to 599. Zero means 200.
	Respond int

	// MaxBody is how many bytes of a body are kept. Zero means 16 MiB.
	MaxBody int64

	// TaskHeader and StatusHeader name the headers with the task's ID and
	// status. Empty means beam-task-id and x-beam-task-status.
	TaskHeader, StatusHeader string

	// ForwardTo are the origins that callbacks may be forwarded to, as
	// [ParseForwardOrigin] returns them. Without one, none is forwarded.
	ForwardTo []string
}

// An Inbox records whatever is sent to it, in memory, and shows it. A request is
// a callback to be recorded and answered with the configured status unless it
// is one of these:
//
//	GET, Accept: text/html            the page, which shows callbacks as they come
//	GET, Accept: application/json     {"callbacks":[…]}, newest first; ?limit=n
//	GET, Accept: text/event-stream    the stream that the page reads (stream.go)
//	GET ?body=n                       the body of callback n, as it was sent
//	POST ?forward=n                   sends callback n on, see InboxConfig.ForwardTo
//	DELETE                            forgets the callbacks; not for other sites
//
// So a plain `curl <URL>` is recorded, as webhook.site has it: some senders
// call back by GET.
//
// Every path is an inbox of its own, which holds what was sent to that path and
// below it.
//
// Every client that reaches it can read and clear it: where that matters, put
// authentication in front of GET and DELETE. It may be used from several
// goroutines at once.
type Inbox struct {
	config  InboxConfig
	page    page
	foreign *http.CrossOriginProtection
	memory  *memory

	receiving atomic.Int64  // bytes of bodies not yet recorded, see maxReceiving
	viewers   chan struct{} // a place for each, see maxViewers
	closed    chan struct{}
	close     sync.Once
}

// NewInbox returns an empty inbox. It starts no goroutine.
func NewInbox(config InboxConfig) *Inbox {
	setDefault(&config.Keep, defaultKeep)
	setDefault(&config.Respond, http.StatusOK)
	setDefault(&config.MaxBody, defaultMaxBody)
	setDefault(&config.TaskHeader, defaultTaskHeader)
	setDefault(&config.StatusHeader, defaultStatusHeader)
	return &Inbox{
		config: config,
		page: newPage(inboxHTML, baseCSS+inboxCSS, baseJS+inboxJS, map[string]string{
			"keep":          strconv.Itoa(config.Keep),
			"task_header":   config.TaskHeader,
			"status_header": config.StatusHeader,
			"forward_to":    strings.Join(config.ForwardTo, " "),
		}),
		foreign: http.NewCrossOriginProtection(),
		memory:  newMemory(config.Keep),
		viewers: make(chan struct{}, maxViewers),
		closed:  make(chan struct{}),
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Close ends the streams and lets no new ones begin. It must be called when the
// server begins to shut down (http.Server.RegisterOnShutdown), not after that: a
// graceful shutdown waits for the streams, and they wait for Close. Everything
// else goes on. It does not wait, and may be called again; a stream whose reader
// is stuck ends within 10 s.
func (in *Inbox) Close() { in.close.Do(func() { close(in.closed) }) }

// ServeHTTP does what the request asks for, see Inbox.
func (in *Inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setSafeHeaders(w.Header())
	number, wantsBody := bodyWanted(r)
	forwarded, wantsForward := in.forwardWanted(r)
	switch {
	case r.Method == http.MethodDelete:
		in.clear(w, r)
	case wantsForward:
		in.view(w, func(w http.ResponseWriter) { in.forward(w, r, forwarded) })
	case r.Method != http.MethodGet:
		in.record(w, r)
	case wantsBody:
		in.view(w, func(w http.ResponseWriter) { in.download(w, r, number) })
	case accepts(r, "text/event-stream"):
		in.view(w, func(w http.ResponseWriter) { in.stream(w, r) })
	case accepts(r, "text/html"):
		in.page.serve(w)
	case accepts(r, "application/json"):
		in.view(w, func(w http.ResponseWriter) { in.list(w, r) })
	default:
		in.record(w, r)
	}
}

// bodyWanted is the number in the query ?body=n. A sender's query that is the
// same by accident is not provided for.
func bodyWanted(r *http.Request) (number uint64, ok bool) {
	digits, ok := strings.CutPrefix(r.URL.RawQuery, "body=")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// accepts reports whether the client names the media type. */* is not enough:
// senders, and curl, accept anything.
func accepts(r *http.Request, mediaType string) bool {
	for _, line := range r.Header.Values("Accept") {
		for accepted := range strings.SplitSeq(line, ",") {
			accepted, _, _ = strings.Cut(accepted, ";")
			if strings.EqualFold(strings.TrimSpace(accepted), mediaType) {
				return true
			}
		}
	}
	return false
}

// record remembers a request and answers its sender.
func (in *Inbox) record(w http.ResponseWriter, r *http.Request) {
	body := in.receive(r)
	c := in.newCallback(r, body)
	in.memory.add(c)
	in.receiving.Add(-int64(len(body.kept)))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(in.config.Respond)
	_, _ = fmt.Fprintf(w, "recorded as %d\n", c.Number) // an error is the sender's going away
}

// received is the body of a callback, as far as it came and is kept.
type received struct {
	kept []byte
	size int64 // of all that came
	err  error // why not more of it came
}

// receive reads a body. The bytes it keeps are counted in in.receiving.
func (in *Inbox) receive(r *http.Request) (b received) {
	if r.Body == nil {
		return b
	}
	piece := make([]byte, 32<<10)
	for cut := false; b.size < maxRead; {
		n, err := r.Body.Read(piece)
		b.size += int64(n)
		if room := in.config.MaxBody - int64(len(b.kept)); !cut && n > 0 {
			keep := min(int64(n), room)
			if in.receiving.Add(keep) > maxReceiving {
				in.receiving.Add(-keep)
				keep = 0
			}
			b.kept = append(b.kept, piece[:keep]...)
			cut = keep < int64(n) // from here on nothing: what is kept has no holes
		}
		if errors.Is(err, io.EOF) {
			return b
		}
		if err != nil {
			b.err = err
			return b
		}
	}
	b.err = fmt.Errorf("not read beyond %d bytes", b.size)
	return b
}

// view shows something if there is a place for one more viewer.
func (in *Inbox) view(w http.ResponseWriter, show func(http.ResponseWriter)) {
	select {
	case in.viewers <- struct{}{}:
		defer func() { <-in.viewers }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many are looking at the inbox", http.StatusServiceUnavailable)
		return
	}
	show(deadlineWriter{w, http.NewResponseController(w)})
}

// deadlineWriter gives each write viewTimeout, where the server can do that. The
// server lifts the deadline for the next request on the connection.
type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w deadlineWriter) Write(b []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(viewTimeout)) // unsupported: as patient as the server
	return w.ResponseWriter.Write(b)
}

// Unwrap lets an http.ResponseController find the server's writer.
func (w deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// clear forgets the callbacks of a path.
func (in *Inbox) clear(w http.ResponseWriter, r *http.Request) {
	// Any page that the viewer has open could otherwise empty the inbox: their
	// browser would send the request, with their credentials.
	if err := in.foreign.Check(r); err != nil {
		http.Error(w, "another site may not clear the inbox", http.StatusForbidden)
		return
	}
	in.memory.clear(scopeOf(r))
	w.WriteHeader(http.StatusNoContent)
}

// list writes the callbacks of a path, newest first, one a line. It fetches one
// at a time, so that a slow reader keeps no more than that in memory.
func (in *Inbox) list(w http.ResponseWriter, r *http.Request) {
	limit := in.config.Keep
	if s := r.URL.Query().Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 0 {
			http.Error(w, fmt.Sprintf("limit: %q is not a number of callbacks", s), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	separator := `{"callbacks":[` + "\n"
	for number := newest; limit > 0; limit-- {
		c := in.memory.before(scopeOf(r), number)
		if c == nil {
			break
		}
		number = c.Number
		if _, err := io.WriteString(w, separator); err != nil {
			return // the reader has gone away
		}
		// The encoder escapes <, > and &, so that no reader, however careless,
		// finds a tag in it; and it ends the line.
		if err := json.NewEncoder(w).Encode(c.shown(listShown)); err != nil {
			return
		}
		separator = ","
	}
	if separator != "," {
		_, _ = io.WriteString(w, separator)
	}
	_, _ = io.WriteString(w, "]}\n")
}

// download sends a body as it came. What strangers sent must not run as a page
// of this site: it is a file, of no type that a browser would show.
func (in *Inbox) download(w http.ResponseWriter, r *http.Request, number uint64) {
	c := in.memory.get(scopeOf(r), number)
	if c == nil {
		http.Error(w, "no such callback: never received, or forgotten", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment",
		map[string]string{"filename": fmt.Sprintf("callback-%d", number)}))
	w.Header().Set("Content-Length", strconv.Itoa(len(c.body)))
	// Piece by piece (the bytes.Reader is hidden, it would write all at once):
	// a slow reader makes some progress within each write's deadline.
	_, _ = io.Copy(w, struct{ io.Reader }{bytes.NewReader(c.body)}) // an error is the reader's going away
}
