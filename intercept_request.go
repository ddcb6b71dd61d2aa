package callback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// mayBeTask says whether a request could be made a task at all.
func mayBeTask(r *http.Request) bool {
	switch r.Method {
	case http.MethodHead, http.MethodOptions, http.MethodConnect:
		return false
	}
	return true
}

// isUpgrade says whether a server may answer a request by going on in another
// protocol (RFC 9110, section 7.8). A client that only names one, without the
// option of Connection, or with a body to be answered, gets a response.
//
// An offer of HTTP/2 or TLS is not meant so: clients make it with requests like any
// other, Java's own and curl's --http2 with each, and a server that ignores it
// answers as always (RFC 9113, section 3.1; RFC 2817, section 3.1).
func isUpgrade(r *http.Request) bool {
	offers := r.Header["Upgrade"]
	if len(offers) == 0 || r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || !hasOption(r.Header, "upgrade") {
		return false
	}
	for _, line := range offers {
		for offer := range strings.SplitSeq(line, ",") {
			protocol, _, _ := strings.Cut(strings.TrimSpace(offer), "/")
			if protocol != "" && !strings.EqualFold(protocol, "h2c") && !strings.EqualFold(protocol, "TLS") {
				return true
			}
		}
	}
	return false
}

// passOver takes out of a task's request what its client offered to do with the
// connection: if the endpoint took it up, there would be no response.
func passOver(header http.Header) {
	if len(header["Upgrade"]) == 0 {
		return
	}
	header.Del("Upgrade")
	header.Del("Http2-Settings")
	header.Del("Connection")
}

// hasJSONBody says whether the request declares a JSON body. It allocates
// nothing: every request passes here.
func hasJSONBody(r *http.Request) bool {
	values := r.Header["Content-Type"]
	if len(values) == 0 || r.Body == nil || r.Body == http.NoBody {
		return false
	}
	mediaType, _, _ := strings.Cut(values[0], ";")
	mediaType = strings.TrimSpace(mediaType)
	const suffix = "+json"
	return strings.EqualFold(mediaType, "application/json") ||
		len(mediaType) > len(suffix) && strings.EqualFold(mediaType[len(mediaType)-len(suffix):], suffix)
}

// firstRead is how much room is made for a body at once, in bytes. More is made
// as it comes: a client that announces megabytes and sends nothing must not cost
// them.
const firstRead = 64 << 10

// findURL reads the request's body as far as maxRequest bytes and returns the
// value of its member field: "" if there is none, if it is null or empty, or if
// the body is not valid JSON. The body is put back byte for byte. The error is a
// *problem: the request must be refused.
func findURL(r *http.Request, field string, maxRequest int64) (string, error) {
	body := &replay{head: getBuffer(), rest: r.Body}
	r.Body = body
	body.head.Grow(int(min(max(r.ContentLength, 0), firstRead)) + bytes.MinRead)
	named, err := body.read(maxRequest+1, field)
	data := body.head.Bytes()
	cut := int64(len(data)) > maxRequest
	switch {
	case err != nil:
		// What breaks while we read would have broken in the handler's hands:
		// it gets the same bytes and the same error.
		body.err = err
		return "", nil
	case cut:
		data = data[:maxRequest]
	default:
		// It is whole; a client that leaves from here on takes nothing of it.
		body.err = io.EOF
	}
	if codings := strings.Join(r.Header["Content-Encoding"], ","); codings != "" {
		if data, cut, err = decoded(codings, data, cut, maxRequest); err != nil {
			return "", nil // not JSON to us; the app's to judge
		}
	} else if !named {
		return "", nil
	}
	value, err := member(data, field, cut)
	if err != nil || value == "" || !cut {
		return value, err
	}
	return "", &problem{http.StatusRequestEntityTooLarge,
		fmt.Sprintf("%s: a request with a callback can have %d bytes at most", field, maxRequest)}
}

// decoded returns the first limit bytes of data after decoding, and whether
// there are more. cut says that data is only the beginning of the body.
func decoded(codings string, data []byte, cut bool, limit int64) (_ []byte, more bool, _ error) {
	reader, err := form.NewReader(codings, bytes.NewReader(data))
	if err != nil {
		return nil, false, err
	}
	defer reader.Close()
	out, err := io.ReadAll(io.LimitReader(reader, limit+1))
	switch {
	case int64(len(out)) > limit:
		return out[:limit], true, nil
	case cut:
		// It had to end in an error; what came before may be of use.
		return out, true, nil
	default:
		return out, false, err
	}
}

// member returns the value of a JSON object's member. cut says that data is
// only the beginning of the object.
func member(data []byte, field string, cut bool) (string, error) {
	if !mayName(data, field) {
		return "", nil
	}
	var found []gjson.Result
	gjson.ParseBytes(data).ForEach(func(key, value gjson.Result) bool {
		if key.Type == gjson.String && key.Str == field {
			found = append(found, value)
		}
		return len(found) < 2
	})
	if len(found) == 0 {
		return "", nil
	}
	// Not gjson.Valid: it is recursive, and a body of brackets alone would
	// exhaust the stack and end the process.
	if !cut && !json.Valid(data) {
		return "", nil // the app's to judge
	}
	if len(found) > 1 {
		return "", &problem{http.StatusBadRequest, field + ": the member is there twice, and parsers disagree on which one counts"}
	}
	switch value := found[0]; value.Type {
	case gjson.Null:
		return "", nil
	case gjson.String:
		return stringOf(value.Raw, field)
	default:
		return "", &problem{http.StatusBadRequest, field + ": not a string"}
	}
}

// stringOf returns the value of a JSON string. It does not share memory with
// it, or the whole body would be kept for as long as the task runs.
func stringOf(raw, field string) (value string, _ error) {
	if !utf8.ValidString(raw) {
		return "", &problem{http.StatusBadRequest, field + ": has a control or invalid character"}
	}
	// Not by gjson: after half of a surrogate pair it drops a character.
	if err := json.Unmarshal([]byte(raw), &value); err != nil {
		return "", nil // the beginning of something that is no JSON
	}
	return value, nil
}

// mayName says whether data could have a member of that name. Searching for the
// bytes is many times faster than parsing; a name may also be spelled with
// escapes.
func mayName(data []byte, field string) bool {
	return !isToken(field) || contains(data, field) || spells(data, field)
}

// contains is [bytes.Contains] for a name in a text. That one looks for the first
// byte of what it searches; for a letter it finds one on each line.
func contains(data []byte, name string) bool {
	rare := max(strings.IndexAny(name, "_-."), 0)
	misses := 0
	for at := rare; at < len(data) && misses <= at/16+16; misses++ {
		i := bytes.IndexByte(data[at:], name[rare])
		if i < 0 {
			return false
		}
		at += i + 1
		if from := data[at-1-rare:]; len(from) >= len(name) && string(from[:len(name)]) == name {
			return true
		}
	}
	return bytes.Contains(data, []byte(name)) // the byte is not so rare here
}

// escape begins the spelling of an ASCII character in a JSON string by its code,
// two digits.
const escape = `\u00`

// spells says whether a character of an ASCII name is spelled by its code in data.
func spells(data []byte, name string) bool {
	for {
		i := bytes.Index(data, []byte(escape))
		if i < 0 || len(data) < i+len(escape)+2 {
			return false
		}
		data = data[i+len(escape):]
		code, err := strconv.ParseUint(string(data[:2]), 16, 8)
		if err == nil && strings.IndexByte(name, byte(code)) >= 0 {
			return true
		}
	}
}

// replay is a request body of which the beginning has been read already.
type replay struct {
	rest io.ReadCloser

	mu     sync.Mutex    // a transport may close while it reads
	head   *bytes.Buffer // nil once it has been read
	err    error         // what follows the head, in the place of rest
	closed bool
}

// searchEvery is how much is read, in bytes, before it is searched: what has just
// been read is in the processor's cache.
const searchEvery = 64 << 10

// read reads the body's first limit bytes into the head, and says whether they
// could have a member of that name. Its error is that of the body, and never
// io.EOF.
func (b *replay) read(limit int64, field string) (named bool, err error) {
	part := &io.LimitedReader{R: b.rest}
	for err == nil && part.N == 0 && limit > 0 {
		part.N = min(limit, searchEvery)
		var n int64
		n, err = b.head.ReadFrom(part)
		limit -= n
		if !named {
			overlap := max(len(field), len(escape)+2) - 1
			named = mayName(b.head.Bytes()[max(0, b.head.Len()-int(n)-overlap):], field)
		}
	}
	return named, err
}

func (b *replay) Read(p []byte) (int, error) {
	if n, err := b.readHead(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	// Without the lock: a transport that gives up closes the body to end a read
	// that waits for the client.
	return b.rest.Read(p)
}

func (b *replay) readHead(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.head != nil {
		n, _ = b.head.Read(p) // its end is not that of the body
		if b.head.Len() > 0 {
			return n, nil
		}
		b.giveBack()
	}
	return n, b.err
}

// giveBack returns the buffer to the pool; nothing reads from it afterwards.
// Caller holds the lock.
func (b *replay) giveBack() {
	if b.head != nil {
		putBuffer(b.head)
		b.head = nil
	}
}

// Close ends a read that waits, as far as the body below does.
func (b *replay) Close() error {
	b.mu.Lock()
	b.closed = true
	b.giveBack()
	b.mu.Unlock()
	return b.rest.Close()
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooled keeps one large upload from holding its memory in the pool.
const maxPooled = 4 << 20

func getBuffer() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) }

func putBuffer(b *bytes.Buffer) {
	if b.Cap() > maxPooled {
		return
	}
	b.Reset()
	buffers.Put(b)
}
