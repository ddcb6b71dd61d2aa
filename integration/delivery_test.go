package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What the tests of deliveries share.

// delivering are options that let callbacks go to the test's own receivers,
// with lines of the delivery block.
func delivering(lines ...string) string {
	return "delivery {\nallow 127.0.0.0/8\nports any\n" + strings.Join(lines, "\n") + "\n}"
}

// exampleSite is a site whose app answers the documented example.
func exampleSite(t *testing.T) string {
	return "callback\nreverse_proxy " + newApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
}

// task sends a request that names a callback and returns the task's ID.
func (g *gateway) task(callbackURL string, header ...string) string {
	g.t.Helper()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	resp, text := g.do(http.MethodPost, "/", body, append(header, "Content-Type", "application/json")...)
	if resp.StatusCode != http.StatusOK {
		g.t.Fatalf("the client got %s %s", resp.Status, text)
	}
	return resp.Header.Get("beam-task-id")
}

// attempt is a log line on an attempt.
type attempt struct {
	TaskID       string  `json:"task_id"`
	Attempt      int     `json:"attempt"`
	State        string  `json:"state"`
	CallbackHost string  `json:"callback_host"`
	StatusCode   int     `json:"status_code"`
	Duration     float64 `json:"duration"` // seconds
	RetryIn      float64 `json:"retry_in"` // seconds
	Error        string  `json:"error"`
}

// attempts returns what the log says of a task's attempts, or of all if id is
// empty.
func (g *gateway) attempts(id string) []attempt {
	g.t.Helper()
	var found []attempt
	lines := bufio.NewScanner(strings.NewReader(g.log.String()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Msg string `json:"msg"`
			attempt
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg != "delivery attempted" {
			continue
		}
		if id == "" || line.TaskID == id {
			found = append(found, line.attempt)
		}
	}
	if err := lines.Err(); err != nil {
		g.t.Fatal(err)
	}
	return found
}

// attempted waits until the log has n attempts of a task and returns them.
func (g *gateway) attempted(id string, n int) (found []attempt) {
	g.t.Helper()
	g.eventually(fmt.Sprintf("%d attempts", n), func() error {
		if found = g.attempts(id); len(found) < n {
			return fmt.Errorf("%d are logged", len(found))
		}
		return nil
	})
	return found
}

// dead returns the messages of callbacks that were given up, by task. The
// gateway must have stopped.
func (g *gateway) dead() map[string]string {
	g.t.Helper()
	srv, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: g.dir + "/store", NoSigs: true})
	if err != nil {
		g.t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		g.t.Fatal("the store does not open")
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		g.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		g.t.Fatal(err)
	}
	stream, err := js.Stream(g.t.Context(), "CALLBACK_DEAD")
	if err != nil {
		g.t.Fatal(err)
	}
	info, err := stream.Info(g.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		g.t.Fatal(err)
	}
	found := make(map[string]string)
	for subject := range info.State.Subjects {
		msg, err := stream.GetLastMsgForSubject(g.t.Context(), subject)
		if err != nil {
			g.t.Fatal(err)
		}
		found[strings.TrimPrefix(subject, "callback.dead.")] = string(msg.Data)
	}
	return found
}

// newPeer starts a receiver below HTTP: each connection is handed to serve and
// closed when it returns. It returns the receiver's URL.
func newPeer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return "http://" + ln.Addr().String() + "/hook"
}

// readCallback reads a callback off a connection.
func readCallback(conn net.Conn) (id string, err error) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return req.Header.Get("beam-task-id"), err
}

// hostOf returns the host and port of a URL.
func hostOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
