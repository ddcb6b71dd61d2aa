package engine

import (
	"context"
	"crypto/sha256"
	hexenc "encoding/hex"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// The streams. One message per subject: what stands on a task's subject is
// the latest.
const (
	liveStream  = "CALLBACK"       // what is under way; a message leaves when it is acknowledged
	endedStream = "CALLBACK_ENDED" // ended tasks, for as long and as many as retention says
	deadStream  = "CALLBACK_DEAD"  // callbacks given up, until redelivered or purged
	blobBucket  = "callback-blobs" // bodies that do not fit in a message
)

// Where a task stands. The last token is the task's ID.
const (
	queuedSubject = "callback.queued." // <queue>.<task>: waiting to run
	leaseSubject  = "callback.lease."
	dueSubject    = "callback.due."   // <host>.<task>
	heldSubject   = "callback.held."  // <host>.<task>: due, waiting for its host's turn
	retrySubject  = "callback.retry." // scheduled for its next attempt, or its next run
	doneSubject   = "callback.done."
	deadSubject   = "callback.dead."

	cronSubject    = "callback.cron."    // <queue>.<n>: a schedule
	keySubject     = "callback.key."     // <queue>.<hash>: the task that has an idempotency key
	doneKeySubject = "callback.donekey." // the same, of a task that has ended

	// Notes are not stored: who misses one finds out later.
	canceledNote = "callback.note.canceled." // its holder should stop
	endedNote    = "callback.note.ended."    // who waits for it should look

	probeSubject = "callback.probe" // one message, rewritten to see whether the engine can store
)

func (e *Engine) openStreams(ctx context.Context) (err error) {
	e.live, err = e.openStream(ctx, jetstream.StreamConfig{
		Name: liveStream,
		Subjects: []string{
			queuedSubject + "*.*", cronSubject + "*.*", keySubject + "*.*",
			leaseSubject + "*", dueSubject + "*.*", heldSubject + "*.*", retrySubject + "*",
			probeSubject,
		},
		Retention:         jetstream.WorkQueuePolicy,
		MaxMsgsPerSubject: 1,
		AllowMsgSchedules: true,
		AllowDirect:       true,
	})
	if err != nil {
		return err
	}
	if e.ended, err = e.openEnded(ctx); err != nil {
		return err
	}
	if e.dead, err = e.openStream(ctx, jetstream.StreamConfig{
		Name:              deadStream,
		Subjects:          []string{deadSubject + "*"},
		MaxMsgsPerSubject: 1,
		AllowDirect:       true,
	}); err != nil {
		return err
	}
	if e.blobs, err = e.openBlobs(ctx); err != nil {
		return err
	}
	return nil
}

func (e *Engine) openEnded(ctx context.Context) (jetstream.Stream, error) {
	return e.openStream(ctx, jetstream.StreamConfig{
		Name:              endedStream,
		Subjects:          []string{doneSubject + "*", doneKeySubject + "*.*"},
		MaxMsgsPerSubject: 1,
		MaxAge:            e.cfg.Retention,
		MaxMsgs:           e.cfg.RetentionCount,
		AllowDirect:       true,
	})
}

// openStream creates the stream, or brings the existing one's limits to what
// is configured. A stream of that name that is something else is refused by
// the server, which names the field.
func (e *Engine) openStream(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg.Storage = jetstream.FileStorage
	cfg.Replicas = e.replicas()
	cfg.Description = "github.com/caddy-callback/caddy-callback"
	stream, err := e.js.CreateOrUpdateStream(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the stream %s: %w", cfg.Name, err)
	}
	return stream, nil
}

// hostToken makes one subject token of a host and port. The escape keeps two
// hosts from sharing a token.
func hostToken(host string) string {
	if host == "" {
		return noHost
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(host) {
		switch c := host[i]; {
		case c == '.':
			b.WriteByte('_')
		case c == '-' || c == ':' || c == '[' || c == ']' ||
			'0' <= c && c <= '9' || 'a' <= c && c <= 'z':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	if b.Len() > maxToken {
		sum := sha256.Sum256([]byte(host))
		return "%" + hexenc.EncodeToString(sum[:])
	}
	return b.String()
}

// noHost stands in the place of the host for a task that owes no callback.
const noHost = "-"

// maxToken keeps a consumer that is named after a host below the 255
// characters the server allows. DNS names are no longer than this.
const maxToken = 240
