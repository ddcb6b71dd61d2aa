package receivers

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// A message is a callback that a test creates itself.
type message struct {
	method, id, status, body string
	at                       time.Time
	header                   http.Header // replaces the header made of the fields
}

// genuine returns a callback signed like the gateway's.
func genuine(change func(m *message)) message {
	m := message{method: http.MethodPost, id: uuid.NewString(), status: "COMPLETE", body: "response=x", at: time.Now()}
	if change != nil {
		change(&m)
	}
	return m
}

// signed returns the headers of a message, signed with the key.
func (m message) signed(key string) http.Header {
	hook, err := standardwebhooks.NewWebhook(key)
	if err != nil {
		panic(err)
	}
	signature, err := hook.Sign(m.id, m.at, []byte(m.body))
	if err != nil {
		panic(err)
	}
	return http.Header{
		"Content-Type":       {"application/x-www-form-urlencoded"},
		"Beam-Task-Id":       {m.id},
		"X-Beam-Task-Status": {m.status},
		"Webhook-Id":         {m.id},
		"Webhook-Timestamp":  {strconv.FormatInt(m.at.Unix(), 10)},
		"Webhook-Signature":  {signature},
	}
}

// send sends a message to the receiver and returns the status it answers with.
func (p *process) send(m message) (int, error) {
	req, err := http.NewRequest(m.method, "http://"+p.addr+"/hook", strings.NewReader(m.body))
	if err != nil {
		return 0, err
	}
	if req.Header = m.header; m.header == nil {
		req.Header = m.signed(key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// without returns the headers of a genuine message with some set, or removed if
// the value is empty.
func without(m message, pairs ...string) http.Header {
	h := m.signed(key)
	for i := 0; i < len(pairs); i += 2 {
		if h.Del(pairs[i]); pairs[i+1] != "" {
			h.Set(pairs[i], pairs[i+1])
		}
	}
	return h
}

// ed25519Signature returns a signature that receivers with a whsec_ key cannot check.
func ed25519Signature(m message) string {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(private, fmt.Appendf(nil, "%s.%d.%s", m.id, m.at.Unix(), m.body)))
}

var forgeries = []struct {
	name   string
	code   int
	change func(m *message)
}{
	{"changed body", 401, func(m *message) { m.header = m.signed(key); m.body += "&paid=yes" }},
	{"no body", 401, func(m *message) { m.header = m.signed(key); m.body = "" }},
	{"another task's ID", 401, func(m *message) { m.header = without(*m, "webhook-id", uuid.NewString()) }},
	{"wrong key", 401, func(m *message) { m.header = m.signed("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD") }},
	{"timestamp six minutes ago", 401, func(m *message) { m.at = m.at.Add(-6 * time.Minute) }},
	{"timestamp in six minutes", 401, func(m *message) { m.at = m.at.Add(6 * time.Minute) }},
	{"old callback with a new timestamp", 401, func(m *message) {
		m.at = m.at.Add(-time.Hour)
		m.header = without(*m, "webhook-timestamp", strconv.FormatInt(time.Now().Unix(), 10))
	}},
	{"no signature", 401, func(m *message) { m.header = without(*m, "webhook-signature", "") }},
	{"no timestamp", 401, func(m *message) { m.header = without(*m, "webhook-timestamp", "") }},
	{"no ID", 401, func(m *message) { m.header = without(*m, "webhook-id", "") }},
	{"no signature headers", 401, func(m *message) {
		m.header = without(*m, "webhook-id", "", "webhook-timestamp", "", "webhook-signature", "")
	}},
	{"timestamp is not a number", 401, func(m *message) { m.header = without(*m, "webhook-timestamp", "a[$(id >&2)]") }},
	{"timestamp out of range", 401, func(m *message) { m.header = without(*m, "webhook-timestamp", "99999999999999999999") }},
	{"signature without a value", 401, func(m *message) { m.header = without(*m, "webhook-signature", "v1") }},
	{"empty signature", 401, func(m *message) { m.header = without(*m, "webhook-signature", "v1,") }},
	{"signature is not base64", 401, func(m *message) { m.header = without(*m, "webhook-signature", "v1,%%%*") }},
	{"signature of another scheme", 401, func(m *message) { m.header = without(*m, "webhook-signature", ed25519Signature(*m)) }},
	{"ID with a path", 400, func(m *message) { m.id = "../../../../../../tmp/escaped-the-folder" }},
	{"ID is not a UUID", 400, func(m *message) { m.id = "msg_1" }},
	{"unknown status", 400, func(m *message) { m.status = "PAID" }},
	{"no status", 400, func(m *message) { m.header = without(*m, "x-beam-task-status", "") }},
	{"wrong method", 405, func(m *message) { m.method = http.MethodPut }},
}

func refusesForgedCallbacks(t *testing.T, p *process) {
	for _, test := range forgeries {
		m := genuine(test.change)
		code, err := p.send(m)
		if code == http.StatusNotImplemented {
			code = http.StatusMethodNotAllowed // Python's answer to a method without a handler
		}
		if err != nil || code != test.code {
			t.Errorf("%s: the receiver answered %d, want %d: %v", test.name, code, test.code, err)
		}
		if strings.Contains(p.out.String(), m.id+" is done") {
			t.Errorf("%s: the task is finished", test.name)
		}
	}
	// A receiver may clean up after its answer.
	gatewaytest.Eventually(t, "no file of a refused callback is left", func() error {
		left, err := os.ReadDir(filepath.Join(p.dir, "callbacks"))
		if err == nil && len(left) != 0 {
			err = fmt.Errorf("the folder contains %v", left)
		}
		return err
	})
	if _, err := os.Stat(os.TempDir() + "/escaped-the-folder"); err == nil {
		t.Error("a file was created outside the folder")
	}
}

func acceptsOneOfSeveralSignatures(t *testing.T, p *process) {
	m := genuine(nil)
	own := m.signed(key).Get("webhook-signature")
	m.header = without(m, "webhook-signature", ed25519Signature(m)+" v1,AAAA "+own)
	if code, err := p.send(m); err != nil || code != http.StatusNoContent {
		t.Errorf("the receiver answered %d: %v", code, err)
	}
	if head, _ := p.finished(m.id); head != "is done" {
		t.Errorf("the receiver printed that the task %s", head)
	}
	bytes := genuine(func(m *message) { m.body = "response=%ff%fe%00&a=1" })
	if code, err := p.send(bytes); err != nil || code != http.StatusNoContent {
		t.Errorf("body that is not text: the receiver answered %d: %v", code, err)
	}
	if head, _ := p.finished(bytes.id); head != "is done" {
		t.Errorf("body that is not text: the receiver printed that the task %s", head)
	}
}

func finishesConcurrentRepeatsOnce(t *testing.T, p *process) {
	m := genuine(nil)
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			if code, err := p.send(m); err != nil || code != http.StatusNoContent {
				t.Errorf("the receiver answered %d: %v", code, err)
			}
		})
	}
	senders.Wait()
	p.finished(m.id)
	last := genuine(nil)
	if code, err := p.send(last); err != nil || code != http.StatusNoContent {
		t.Fatalf("the receiver answered %d: %v", code, err)
	}
	p.finished(last.id)
	if n := strings.Count(p.out.String(), "task "+m.id); n != 1 {
		t.Errorf("the task was finished %d times", n)
	}
}

func finishesAfterCrash(t *testing.T, p *process) {
	done := genuine(nil)
	if code, err := p.send(done); err != nil || code != http.StatusNoContent {
		t.Fatalf("the receiver answered %d: %v", code, err)
	}
	p.finished(done.id)
	p.kill()
	// The receiver was killed after it stored the callback and before it handled it.
	left := uuid.NewString()
	write(t, p.stored(left), "TIMEOUT\nerror=the+app+took+too+long")
	p.addr = freeaddr.New(t)
	p.restart()
	if head, pairs := p.finished(left); head != "took too long" || len(pairs) != 1 || pairs[0] != "error=the app took too long" {
		t.Errorf("the receiver printed that the task %s: %q", head, pairs)
	}
	if code, err := p.send(done); err != nil || code != http.StatusNoContent {
		t.Errorf("repeat after the crash: the receiver answered %d: %v", code, err)
	}
	if n := strings.Count(p.out.String(), "task "+done.id); n != 1 {
		t.Errorf("the task from before the crash was finished %d times", n)
	}
}

func refusesEmptyKey(t *testing.T, p *process) {
	for _, key := range []string{"", "whsec_"} {
		p.kill()
		p.addr = freeaddr.New(t)
		select {
		case <-p.launch(key):
			if p.cmd.ProcessState.Success() {
				t.Errorf("with the key %q the receiver exits without an error", key)
			}
		case <-time.After(gatewaytest.Patience):
			t.Errorf("with the key %q the receiver runs", key)
		}
	}
}
