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
	defaultMaxBody      = 16 << 20 // fits a result of 8 MiB, which escaping makes longer
	defaultTaskHeader   = "beam-task-id"
	defaultStatusHeader = "x-beam-task-status"
)

const (
	// maxReceiving bounds the memory for the bodies that are being received from all
	// senders. Otherwise a thousand senders of 16 MiB each would take 16 GiB. Bytes
	// over the bound are cut.
	maxReceiving = 64 << 20

	// maxRead bounds how much of a body is read, kept or not. The sender may send the
	// rest of a long body: it would report an error if the connection was closed early.
	// An endless body would hold its goroutine forever.
	maxRead = 1 << 30

	// maxViewers bounds the concurrent streams, lists and downloads. Each may hold one
	// callback in memory for a reader that is slow or never reads.
	maxViewers = 64

	// viewTimeout bounds one write to a viewer. A viewer that stops reading would
	// otherwise keep its slot, and its stream would delay a reload.
	viewTimeout = 10 * time.Second

	// listShown and streamShown bound the part of a body in the JSON of a callback. A
	// body of 16 MiB takes up to 96 MiB as JSON, and a page with hundreds of them would
	// be unusable. ?body= returns the whole body that is kept.
	listShown   = 1 << 20
	streamShown = 64 << 10
)

// InboxConfig configures an inbox. The zero value is a working configuration.
type InboxConfig struct {
	// Keep is how many callbacks are remembered. Zero means 500. Together they take at
	// most 64 MiB; if they are large, fewer are remembered.
	Keep int

	// Keys verify signatures. Without keys, signatures are not checked.
	Keys []webhook.Key

	// Respond is the status code of the response to senders, from 200 to 599. Zero
	// means 200.
	Respond int

	// MaxBody is how many bytes of a body are kept. Zero means 16 MiB.
	MaxBody int64

	// TaskHeader and StatusHeader name the headers with the task's ID and status. Empty
	// means beam-task-id and x-beam-task-status.
	TaskHeader, StatusHeader string

	// ForwardTo are the origins that callbacks may be forwarded to, as returned by
	// [ParseForwardOrigin]. If it is empty, forwarding is disabled.
	ForwardTo []string
}

// An Inbox records the requests that are sent to it, in memory, and shows them. It
// records every request as a callback and answers with the configured status, except
// these:
//
//	GET, Accept: text/html            the page, which shows callbacks as they come
//	GET, Accept: application/json     {"callbacks":[…]}, newest first; ?limit=n
//	GET, Accept: text/event-stream    the stream that the page reads (stream.go)
//	GET ?body=n                       the body of callback n, as it was sent
//	POST ?forward=n                   sends callback n on, see InboxConfig.ForwardTo
//	DELETE                            removes the callbacks; refused for other sites
//
// A plain `curl <URL>` is therefore recorded, as on webhook.site: some senders call
// back with GET.
//
// Every path is an inbox of its own. It has the callbacks that were sent to that path
// and below it.
//
// Every client that can reach the inbox can read and clear it. If that matters, put
// authentication in front of GET and DELETE. It may be used from several goroutines at
// once.
type Inbox struct {
	config  InboxConfig
	page    page
	foreign *http.CrossOriginProtection
	memory  *memory

	receiving atomic.Int64  // bytes of bodies not yet recorded, see maxReceiving
	viewers   chan struct{} // one slot for each, see maxViewers
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

// Close ends the streams and refuses new ones. Call it when the server begins to shut
// down (http.Server.RegisterOnShutdown), not later: a graceful shutdown waits for the
// streams, and they wait for Close. All other requests are still served. Close does not
// wait and may be called again. A stream whose reader is stuck ends within 10 s.
func (in *Inbox) Close() { in.close.Do(func() { close(in.closed) }) }

// ServeHTTP serves a request as described at Inbox.
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

// bodyWanted returns the number in the query ?body=n. A sender's query may look the
// same by accident; such a request is not recorded.
func bodyWanted(r *http.Request) (number uint64, ok bool) {
	digits, ok := strings.CutPrefix(r.URL.RawQuery, "body=")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// accepts reports whether the client names the media type. */* does not count: senders,
// and curl, accept anything.
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

// record records a request and answers its sender.
func (in *Inbox) record(w http.ResponseWriter, r *http.Request) {
	body := in.receive(r)
	c := in.newCallback(r, body)
	in.memory.add(c)
	in.receiving.Add(-int64(len(body.kept)))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(in.config.Respond)
	_, _ = fmt.Fprintf(w, "recorded as %d\n", c.Number) // an error means that the sender disconnected
}

// received is the part of a callback's body that was received and kept.
type received struct {
	kept []byte
	size int64 // of all that was received
	err  error // why the rest is missing
}

// receive reads a body. It counts the bytes that it keeps in in.receiving.
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
			cut = keep < int64(n) // nothing more is kept, so that there are no holes
		}
		if errors.Is(err, io.EOF) {
			return b
		}
		if err != nil {
			b.err = err
			return b
		}
	}
	b.err = fmt.Errorf("only the first %d bytes were read", b.size)
	return b
}

// view calls show if there is a free slot for a viewer.
func (in *Inbox) view(w http.ResponseWriter, show func(http.ResponseWriter)) {
	select {
	case in.viewers <- struct{}{}:
		defer func() { <-in.viewers }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many open streams of the inbox", http.StatusServiceUnavailable)
		return
	}
	show(deadlineWriter{w, http.NewResponseController(w)})
}

// deadlineWriter sets the deadline viewTimeout for each write, if the server supports
// it. The server clears the deadline for the next request on the connection.
type deadlineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w deadlineWriter) Write(b []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(viewTimeout)) // if unsupported, the server's own timeouts apply
	return w.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController access to the server's writer.
func (w deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// clear removes the callbacks of a path.
func (in *Inbox) clear(w http.ResponseWriter, r *http.Request) {
	// Without this check, any page that the viewer has open could empty the inbox: the
	// browser would send the request with the viewer's credentials.
	if err := in.foreign.Check(r); err != nil {
		http.Error(w, "requests from other sites cannot clear the inbox", http.StatusForbidden)
		return
	}
	in.memory.clear(scopeOf(r))
	w.WriteHeader(http.StatusNoContent)
}

// list writes the callbacks of a path, newest first, one per line. It gets one at a
// time, so that a slow reader holds only one callback in memory.
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
			return // the client disconnected
		}
		// The encoder escapes <, > and &, so that a careless reader does not find a
		// tag. It also ends the line.
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

// download sends a body as a file, as it was received. Its type is one that browsers do
// not display: the bytes of strangers must not run as a page of this site.
func (in *Inbox) download(w http.ResponseWriter, r *http.Request, number uint64) {
	c := in.memory.get(scopeOf(r), number)
	if c == nil {
		http.Error(w, "no such callback: it was not received, or was removed", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment",
		map[string]string{"filename": fmt.Sprintf("callback-%d", number)}))
	w.Header().Set("Content-Length", strconv.Itoa(len(c.body)))
	// The bytes.Reader is hidden because it would write everything at once. In pieces,
	// a slow reader makes progress within the deadline of each write.
	_, _ = io.Copy(w, struct{ io.Reader }{bytes.NewReader(c.body)}) // an error means that the client disconnected
}
