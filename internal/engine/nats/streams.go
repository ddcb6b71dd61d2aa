package engine

import (
	"context"
	"crypto/sha256"
	hexenc "encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	tickSubject    = "callback.tick."    // <queue>.<n>: when that schedule ticks next
	keySubject     = "callback.key."     // <queue>.<hash>: the task that has an idempotency key
	doneKeySubject = "callback.donekey." // the same, of a task that has ended

	// Notes are not stored: who misses one finds out later.
	canceledNote = "callback.note.canceled." // its holder should stop
	endedNote    = "callback.note.ended."    // who waits for it should look

	// One message in each stream, rewritten to see whether the engine can store.
	probeSubject = "callback.probe"
	endedProbe   = "callback.probe.ended"
	deadProbe    = "callback.probe.dead"

	// One message that nobody takes, older than all that stand in the live
	// stream. While a consumer's next message is the oldest of all, the server
	// counts everything that waits behind it, for each message it hands out.
	anchorSubject = "callback.anchor"

	// One schedule that keeps the server's timer short.
	clockSubject = "callback.clock"
)

// allStreams are the streams in the order in which they are created.
var allStreams = []string{liveStream, endedStream, deadStream, "OBJ_" + blobBucket}

func (e *Engine) openStreams(ctx context.Context, k *link) (err error) {
	if k.live, err = e.openStream(ctx, k, liveConfig()); err != nil {
		return err
	}
	if err := anchor(ctx, k); err != nil {
		return err
	}
	e.mu.Lock()
	age, n := e.cfg.Retention, e.cfg.RetentionCount
	e.mu.Unlock()
	if k.ended, err = e.openStream(ctx, k, endedConfig(age, n)); err != nil {
		return err
	}
	if k.dead, err = e.openStream(ctx, k, deadConfig()); err != nil {
		return err
	}
	if k.blobs, err = e.openBlobs(ctx, k); err != nil {
		return err
	}
	return nil
}

// anchor stores the message that stays before all others, if it is not there.
func anchor(ctx context.Context, k *link) error {
	_, err := k.js.Publish(ctx, anchorSubject, nil, jetstream.WithExpectLastSequencePerSubject(0))
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return nil
	} else if err != nil {
		return fmt.Errorf("storing on %s: %w", anchorSubject, err)
	}
	return nil
}

func liveConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: liveStream,
		Subjects: []string{
			queuedSubject + "*.*", cronSubject + "*.*", tickSubject + "*.*", keySubject + "*.*",
			leaseSubject + "*", dueSubject + "*.*", heldSubject + "*.*", retrySubject + "*",
			probeSubject, anchorSubject, clockSubject,
		},
		Retention:         jetstream.WorkQueuePolicy,
		MaxMsgsPerSubject: 1,
		AllowMsgSchedules: true,
	}
}

func endedConfig(age time.Duration, n int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              endedStream,
		Subjects:          []string{doneSubject + "*", doneKeySubject + "*.*", endedProbe},
		MaxMsgsPerSubject: 1,
		MaxAge:            age,
		MaxMsgs:           n,
	}
}

func deadConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              deadStream,
		Subjects:          []string{deadSubject + "*", deadProbe},
		MaxMsgsPerSubject: 1,
	}
}

// openStream creates the stream, or uses the one there is: an operator may have
// made it, with other replicas or on chosen servers. It returns an error that
// names the field if that one cannot serve.
func (e *Engine) openStream(ctx context.Context, k *link, want jetstream.StreamConfig) (jetstream.Stream, error) {
	want.Storage = jetstream.FileStorage
	want.Description = "github.com/caddy-callback/caddy-callback"
	// In a cluster a direct get may be answered by a server that is behind.
	want.AllowDirect = !e.remote()
	stream, err := k.js.Stream(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		want.Replicas = e.replicas()
		stream, err = k.js.CreateStream(ctx, want)
	case err == nil:
		have := stream.CachedInfo().Config
		thawed := thaw(&have)
		if err = compatible(want, have); err == nil && (adapt(&have, want) || thawed) {
			stream, err = k.js.UpdateStream(ctx, have)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the stream %s: %w", want.Name, err)
	}
	return stream, nil
}

// compatible says what of an existing stream cannot serve and cannot be changed, or
// should not without its operator.
func compatible(want, have jetstream.StreamConfig) error {
	want.MaxMsgSize, want.MaxBytes = -1, -1
	if want.Name == endedStream {
		want.MaxBytes = have.MaxBytes // elsewhere, the task that is dropped for it has not ended
	}
	for _, field := range []struct {
		name       string
		want, have any
	}{
		{"sealed", false, have.Sealed}, // first, for it changes others
		{"retention", want.Retention, have.Retention},
		{"storage", want.Storage, have.Storage},
		{"discard", want.Discard, have.Discard},
		{"max_msgs_per_subject", want.MaxMsgsPerSubject, have.MaxMsgsPerSubject},
		{"allow_msg_schedules", want.AllowMsgSchedules, have.AllowMsgSchedules},
		{"mirror", false, have.Mirror != nil},
		{"no_ack", false, have.NoAck},
		{"deny_delete", false, have.DenyDelete},
		{"deny_purge", false, have.DenyPurge},
		{"max_msg_size", want.MaxMsgSize, have.MaxMsgSize},
		{"max_bytes", want.MaxBytes, have.MaxBytes},
	} {
		if field.want != field.have {
			return fmt.Errorf("it exists with %s %v, and %v is needed", field.name, field.have, field.want)
		}
	}
	return nil
}

// adapt brings the limits and subjects of an existing stream to what is wanted,
// and says whether they were other.
func adapt(have *jetstream.StreamConfig, want jetstream.StreamConfig) (changed bool) {
	for _, subject := range want.Subjects {
		if !slices.Contains(have.Subjects, subject) {
			have.Subjects, changed = append(have.Subjects, subject), true
		}
	}
	// Zero and -1 both stand for no limit.
	if max(have.MaxMsgs, 0) != max(want.MaxMsgs, 0) || have.MaxAge != want.MaxAge {
		have.MaxMsgs, have.MaxAge, changed = want.MaxMsgs, want.MaxAge, true
		if want.MaxAge > 0 {
			have.Duplicates = min(have.Duplicates, want.MaxAge) // the server wants it so
		}
	}
	if have.AllowDirect != want.AllowDirect {
		have.AllowDirect, changed = want.AllowDirect, true
	}
	return changed
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
