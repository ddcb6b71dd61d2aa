package capture

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// client is a response writer that records events in order.
type client struct {
	header http.Header
	events []string
	fails  bool
}

func (c *client) Header() http.Header    { return c.header }
func (c *client) WriteHeader(status int) { c.events = append(c.events, http.StatusText(status)) }
func (c *client) Write(p []byte) (int, error) {
	if c.fails {
		return 0, errors.New("the client is gone")
	}
	c.events = append(c.events, string(p))
	return len(p), nil
}

func newResponse(to http.ResponseWriter, o ResponseOptions) *Response {
	c := new(Response)
	c.Init(to, o)
	return c
}

// onWhole is an owner that calls a function.
type onWhole func()

func (f onWhole) ResponseWhole() { f() }

// capturing returns a response that adds an event when it is complete.
func capturing(o ResponseOptions) (*Response, *client) {
	to := &client{header: make(http.Header)}
	c := newResponse(to, o)
	c.NameTask("beam-task-id", "the-task")
	c.Owner = onWhole(func() {
		c.Close(false)
		to.events = append(to.events, "recorded")
	})
	return c, to
}

func TestResponseIsRecordedBeforeItsLastByte(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		length string
		writes []string
		want   string
	}{
		"of a known length":     {200, "6", []string{"abc", "def"}, "OK abc recorded def"},
		"at once":               {404, "3", []string{"abc"}, "Not Found recorded abc"},
		"an empty body":         {200, "0", nil, "OK recorded"},
		"no content":            {204, "", nil, "No Content recorded"},
		"not modified":          {304, "1234", nil, "Not Modified recorded"},
		"early hints before it": {103, "3", []string{"abc"}, "Early Hints OK recorded abc"},
		"invalid length":        {200, "-3", []string{"abc"}, "OK abc"},
		"length in words":       {200, "three", []string{"abc"}, "OK abc"},
		"no length":             {200, "", []string{"abc"}, "OK abc"},
		"less than the length":  {200, "9", []string{"abc"}, "OK abc"},
		"more than the length":  {200, "2", []string{"abc", "def"}, "OK recorded abc def"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cap, to := capturing(ResponseOptions{Limit: 100})
			if c.length != "" {
				cap.Header().Set("Content-Length", c.length)
			}
			cap.WriteHeader(c.status)
			for _, text := range c.writes {
				if n, err := io.WriteString(cap, text); n != len(text) || err != nil {
					t.Errorf("%d %v", n, err)
				}
			}
			if got := strings.Join(to.events, " "); got != c.want {
				t.Errorf("the client got %q, want %q", got, c.want)
			}
			if name == "less than the length" && !cap.Short() {
				t.Error("Short is false for a short response")
			}
		})
	}
}

func TestResponseToHEADIsCompleteWithoutBody(t *testing.T) {
	t.Parallel()
	c, to := capturing(ResponseOptions{ToHEAD: true})
	c.Header().Set("Content-Length", "1234")
	c.WriteHeader(http.StatusOK)
	if got := strings.Join(to.events, " "); got != "OK recorded" || c.Short() {
		t.Errorf("the client saw %q; short: %v", got, c.Short())
	}
}

// The kept header must fit in the task's record; otherwise the callback could not be
// stored.
func TestKeptHeaderIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header http.Header
		kept   string
	}{
		"a small one":             {http.Header{"Content-Type": {"text/x"}, "X-A": {"1"}}, "Content-Type X-A"},
		"a large one":             {http.Header{"Content-Type": {"text/x"}, "X-A": {strings.Repeat("1", maxKeptHeader)}}, "Content-Type"},
		"many of a name":          {http.Header{"Content-Encoding": {"gzip"}, "X-A": slices.Repeat([]string{"123"}, maxKeptHeader/4)}, "Content-Encoding"},
		"large types and codings": {http.Header{"Content-Type": {strings.Repeat("x", 1<<20)}, "Content-Encoding": {strings.Repeat("y", 1<<20)}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			capture, to := capturing(ResponseOptions{Limit: 10, KeepHeader: true})
			maps.Copy(to.header, c.header)
			capture.WriteHeader(http.StatusOK)
			capture.Close(false)
			capture.NameTask("", "")
			_, result, _ := capture.Result()
			if got := strings.Join(slices.Sorted(maps.Keys(result.Header)), " "); got != c.kept {
				t.Errorf("kept %q, want %q", got, c.kept)
			}
			if n := len(result.ContentType) + len(result.ContentEncoding); n > 2*maxKeptField {
				t.Errorf("%d bytes of type and coding are kept", n)
			}
		})
	}
}

func TestMutedResponseSendsNothing(t *testing.T) {
	t.Parallel()
	c, to := capturing(ResponseOptions{Limit: 100})
	c.Owner = onWhole(func() {
		if c.Close(false) {
			t.Error("Close succeeded twice")
		}
	})
	if !c.Close(true) {
		t.Fatal("Close failed the first time")
	}
	c.Header().Set("Content-Length", "4")
	c.WriteHeader(http.StatusEarlyHints)
	c.WriteHeader(http.StatusOK)
	_, err := io.WriteString(c, "late")
	if err := errors.Join(err, c.FlushError()); err != nil {
		t.Errorf("the handler got an error: %v", err)
	}
	if len(to.events) != 0 || c.HasWritten() {
		t.Errorf("the client got %q", to.events)
	}
}

func TestGatewayErrorKeepsOuterHeader(t *testing.T) {
	t.Parallel()
	to := &client{header: http.Header{"X-Before": {"1", "2"}, "X-Changed": {"before"}}}
	c := newResponse(to, ResponseOptions{Limit: 100})
	c.NameTask("beam-task-id", "the-task")
	c.Header().Set("X-Changed", "after")
	c.Header().Set("Content-Length", "4")
	c.Header().Del("X-Before")
	c.DiscardHeader()
	want := http.Header{"X-Before": {"1", "2"}, "X-Changed": {"before"}, "Beam-Task-Id": {"the-task"}}
	if !reflect.DeepEqual(to.header, want) {
		t.Errorf("the client's header is %v, want %v", to.header, want)
	}
}

func TestDeadlineStopsLastByte(t *testing.T) {
	t.Parallel()
	c, to := capturing(ResponseOptions{Limit: 100})
	c.Owner = onWhole(func() { c.Close(true) }) // the deadline is reached just before
	c.Header().Set("Content-Length", "6")
	_, err := io.WriteString(c, "abc")
	_, err2 := io.WriteString(c, "def")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(to.events, " "); got != "OK abc" {
		t.Errorf("the client got %q", got)
	}
}

func TestHandlerDoesNotNoticeGoneClient(t *testing.T) {
	t.Parallel()
	c, to := capturing(ResponseOptions{Limit: 100})
	to.fails = true
	for range 3 {
		if n, err := io.WriteString(c, "abc"); n != 3 || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	if n, err := io.Copy(c, strings.NewReader("def")); n != 3 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	c.Close(false)
	if status, result, body := c.Result(); status != 200 || string(body.bytes) != "abcabcabcdef" || result.Size != 12 {
		t.Errorf("the result is %d, %d bytes, %q", status, result.Size, body.bytes)
	}
}

func TestClientWithoutFlusher(t *testing.T) {
	t.Parallel()
	c, to := capturing(ResponseOptions{Limit: 100})
	if err := c.FlushError(); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("flushing: %v", err)
	}
	c.Flush()
	if _, err := io.WriteString(c, "abc"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(to.events, " "); got != "OK abc" {
		t.Errorf("the client got %q", got)
	}
}

func TestDiscardEndsDecoder(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(make([]byte, 10<<20))
	_ = w.Close()
	encoded := b.Bytes()
	// synctest.Test panics if a goroutine is left waiting.
	synctest.Test(t, func(t *testing.T) {
		c, _ := capturing(ResponseOptions{Limit: 1000})
		c.Header().Set("Content-Encoding", "gzip")
		if _, err := c.Write(encoded[:len(encoded)/2]); err != nil {
			t.Fatal(err)
		}
		c.Close(true)
		if status := c.Discard(); status != 200 {
			t.Errorf("the endpoint's status was %d", status)
		}
		_, _ = c.Write(encoded[len(encoded)/2:]) // the handler still writes
	})
}

// idle is a client that reads nothing until its connection is cut off.
type idle struct {
	client
	cut chan struct{}
}

func (c *idle) Write([]byte) (int, error) {
	<-c.cut
	return 0, os.ErrDeadlineExceeded
}

func (c *idle) SetWriteDeadline(time.Time) error {
	close(c.cut)
	return nil
}

func TestStalledClientIsDropped(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", unsent+1)
	for _, tt := range []struct {
		name string
		// drop is called after one second.
		drop  func(t *testing.T, c *Response)
		after time.Duration
	}{
		{"without a deadline", func(*testing.T, *Response) {}, ClientStallTimeout},
		{"with a deadline", func(t *testing.T, c *Response) {
			if !c.DropStalled() {
				t.Error("the client is not treated as stalled")
			}
		}, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				to := &idle{client{header: make(http.Header)}, make(chan struct{})}
				c := newResponse(to, ResponseOptions{Limit: 2 * unsent})
				if c.DropStalled() {
					t.Error("the client is treated as stalled before anything was sent")
				}
				time.AfterFunc(time.Second, func() { tt.drop(t, c) })
				begin := time.Now()
				for _, text := range []string{long, "def"} {
					if n, err := io.WriteString(c, text); n != len(text) || err != nil {
						t.Errorf("%d %v", n, err)
					}
				}
				if err := c.FlushError(); err != nil {
					t.Errorf("flushing: %v", err)
				}
				if took := time.Since(begin); took != tt.after {
					t.Errorf("the handler waited %v, want %v", took, tt.after)
				}
				c.Close(false)
				if _, result, body := c.Result(); string(body.bytes) != long+"def" || result.Size != int64(len(long)+3) {
					t.Errorf("%d bytes are kept: %q", result.Size, body.bytes)
				}
			})
		})
	}
}

func TestResponseWithoutClientIsKept(t *testing.T) {
	t.Parallel()
	c := newResponse(nil, ResponseOptions{Limit: 100, KeepHeader: true})
	c.NameTask("beam-task-id", "the-task")
	c.WriteHeader(http.StatusEarlyHints)
	c.Header().Set("X-Own", "1")
	c.WriteHeader(http.StatusTeapot)
	_, _ = io.WriteString(c, "abc")
	if err := errors.Join(c.FlushError(), http.NewResponseController(c).Flush()); err != nil {
		t.Errorf("flushing: %v", err)
	}
	if err := http.NewResponseController(c).SetWriteDeadline(time.Now()); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("setting a deadline: %v", err)
	}
	c.Close(false)
	status, result, body := c.Result()
	if status != http.StatusTeapot || string(body.bytes) != "abc" || result.Header.Get("X-Own") != "1" || c.HasWritten() {
		t.Errorf("the result is %d %v %q", status, result, body.bytes)
	}
}

// An outer handler encodes the body and changes the header accordingly.
func TestKeptHeaderDescribesHandlersBody(t *testing.T) {
	t.Parallel()
	to := &encoding{client{header: make(http.Header)}}
	c := newResponse(to, ResponseOptions{Limit: 100, KeepHeader: true})
	c.Header().Set("Etag", `"1"`)
	c.Header().Set("Vary", "Origin")
	_, _ = io.WriteString(c, "abc")
	c.Close(false)
	_, result, _ := c.Result()
	want := http.Header{"Etag": {`"1"`}, "Vary": {"Origin"}, "X-Added": {"yes"}}
	if !reflect.DeepEqual(result.Header, want) || result.ContentEncoding != "" {
		t.Errorf("the header is %v, the coding %q", result.Header, result.ContentEncoding)
	}
}

type encoding struct{ client }

func (e *encoding) WriteHeader(status int) {
	e.header["Etag"], e.header["Vary"] = []string{`"1-gzip"`}, []string{"Origin", "Accept-Encoding"}
	e.header.Set("Content-Encoding", "gzip")
	e.header.Set("X-Added", "yes")
	e.client.WriteHeader(status)
}
