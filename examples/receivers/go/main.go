// A receiver of callbacks. CALLBACK_KEY=whsec_… go run .
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	folder  = "callbacks" // <id> is a received callback; <id>.done marks it as handled
	maxBody = 32 << 20    // a result of 8 MiB becomes up to three times as long when encoded
	minKey  = 38          // whsec_ and 24 bytes; with an empty key anybody could sign
)

var (
	taskID = regexp.MustCompile(`^[0-9a-f-]{36}$`)
	verbs  = map[string]string{"COMPLETE": "is done", "FAILED": "has failed", "TIMEOUT": "took too long"}
)

// finish is where your own work goes. After a crash it can run again for the
// same task.
func finish(id, status string, pairs url.Values) {
	var out strings.Builder
	fmt.Fprintf(&out, "task %s %s\n", id, verbs[status])
	for name, values := range pairs {
		for _, value := range values {
			fmt.Fprintf(&out, "%s=%s\n", name, value)
		}
	}
	fmt.Print(out.String())
}

func main() {
	key := os.Getenv("CALLBACK_KEY")
	hook, err := standardwebhooks.NewWebhook(key)
	if err != nil || len(key) < minKey {
		log.Fatal("CALLBACK_KEY is not a whsec_ key")
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		log.Fatal(err)
	}
	kept, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, file := range kept { // stored before a crash
		if taskID.MatchString(filepath.Base(file)) {
			handle(filepath.Base(file))
		}
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "9000"
	}
	server := http.Server{Addr: "127.0.0.1:" + port, Handler: receive(hook), ReadTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

func receive(hook *standardwebhooks.Webhook) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		id, status := r.Header.Get("webhook-id"), r.Header.Get("x-beam-task-status")
		switch {
		case r.Method != http.MethodPost:
			http.Error(w, "POST only", http.StatusMethodNotAllowed)
		case err != nil:
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		case hook.Verify(body, r.Header) != nil: // the signature and its time
			http.Error(w, "not signed with our key, or too old", http.StatusUnauthorized)
		case !taskID.MatchString(id) || verbs[status] == "":
			http.Error(w, "not a callback", http.StatusBadRequest)
		default:
			first, err := keep(id, status+"\n"+string(body))
			if err != nil {
				log.Print(err)
				http.Error(w, "not stored", http.StatusInternalServerError) // the gateway retries
				return
			}
			w.WriteHeader(http.StatusNoContent) // also for a repeat, which is already stored
			if first {
				go handle(id)
			}
		}
	}
}

// keep stores a callback on disk before it returns, and reports whether it is the first
// with its ID.
func keep(id, record string) (bool, error) {
	tmp, err := os.CreateTemp(folder, ".tmp-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(record)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return false, err
	}
	err = os.Link(tmp.Name(), filepath.Join(folder, id)) // fails if it exists
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// handle finishes a stored task, unless it is already handled.
func handle(id string) {
	file := filepath.Join(folder, id)
	if _, err := os.Stat(file + ".done"); err == nil {
		return
	}
	record, err := os.ReadFile(file)
	if err != nil {
		log.Print(err)
		return
	}
	status, body, _ := strings.Cut(string(record), "\n")
	pairs, err := url.ParseQuery(body)
	if err != nil {
		log.Printf("task %s: %v", id, err) // pairs contains those that could be parsed
	}
	finish(id, status, pairs)
	if err := os.WriteFile(file+".done", nil, 0o600); err != nil {
		log.Print(err)
	}
}
