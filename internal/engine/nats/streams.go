package nats

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// The streams.
const (
	taskStream = "CALLBACK"        // one message a subject: the latest
	bodyStream = "CALLBACK_BODIES" // bodies that are too large for their task's message
)

// The subjects of the task stream. A [token] follows the prefix.
const (
	taskSubject     = "callback.task."     // a task in any state
	holderSubject   = "callback.holder."   // a gateway's heartbeats
	hostSubject     = "callback.host."     // the state of a host, as saved by the dispatcher
	pauseSubject    = "callback.pause."    // host.<token> or queue.<token>: whether it is paused
	scheduleSubject = "callback.schedule." // the run times of a schedule
	runSubject      = "callback.run."      // the latest run of a schedule
	keySubject      = "callback.key."      // an idempotency key
	secretSubject   = "callback.secret"    //nolint:gosec // the name of the subject
	bodySubject     = "callback.body."     // <task>.<body>.<number>: a chunk, in the stream of bodies
	description     = "tasks of caddy-callback, github.com/caddy-callback/caddy-callback"
)

// watchedSubjects are the subjects that gateways keep in memory. Keys are left out,
// because there may be one for each task of a day.
var watchedSubjects = []string{
	taskSubject + "*", holderSubject + "*", hostSubject + "*", pauseSubject + "*.*",
}

func taskConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               taskStream,
		Subjects:           append(slices.Clone(watchedSubjects), scheduleSubject+"*", runSubject+"*", keySubject+"*", secretSubject),
		MaxMsgsPerSubject:  1,
		AllowAtomicPublish: true,
	}
}

func bodyConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: bodyStream, Subjects: []string{bodySubject + "*.*.*"}, MaxMsgsPerSubject: 1}
}

// openStreams opens both streams, and creates those that are missing.
func (e *Engine) openStreams(ctx context.Context) (tasks, bodies jetstream.Stream, err error) {
	if tasks, err = e.openStream(ctx, taskConfig()); err == nil {
		bodies, err = e.openStream(ctx, bodyConfig())
	}
	return tasks, bodies, err
}

// openStream opens the stream, and creates it if it does not exist. An operator may
// have created it with other replicas or on chosen servers.
func (e *Engine) openStream(ctx context.Context, want jetstream.StreamConfig) (stream jetstream.Stream, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the stream %s: %w", want.Name, err)
		}
	}()
	want.Description, want.Storage, want.Discard = description, jetstream.FileStorage, jetstream.DiscardNew
	want.AllowMsgTTL = true
	stream, err = e.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		created := want
		created.Replicas = e.cfg.Replicas
		stream, err = e.js.CreateStream(ctx, created)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another gateway started at the same time
			stream, err = e.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	have := stream.CachedInfo().Config
	if err := compatible(want, have); err != nil {
		return nil, err
	}
	if adapted := adapt(have, want); !reflect.DeepEqual(adapted, have) {
		return e.js.UpdateStream(ctx, adapted)
	}
	return stream, nil
}

// 1/reserve of a limited stream is kept free for verdicts and attempts. New tasks are
// refused when only this part is left.
const reserve = 10

// measure reads how full the streams are, and when the task stream was created. If an
// operator has limited both streams, the fuller one counts.
func (e *Engine) measure(ctx context.Context) (created time.Time, err error) {
	var used, limit int64
	for _, name := range []string{bodyStream, taskStream} {
		stream, err := e.js.Stream(ctx, name)
		if err != nil {
			return created, err
		}
		info := stream.CachedInfo()
		created = info.Created
		bytes, most := int64(info.State.Bytes), info.Config.MaxBytes //nolint:gosec // far below 2^63
		switch {
		case most > 0 && (limit == 0 || float64(bytes)/float64(most) > float64(used)/float64(limit)):
			used, limit = bytes, most
		case limit == 0:
			used += bytes
		}
	}
	e.used.Store(used)
	e.limit.Store(limit)
	return created, nil
}

// compatible returns an error that names a field with which an existing stream would
// lose or refuse tasks. Such a field either cannot be changed or is the operator's
// decision.
func compatible(want, have jetstream.StreamConfig) error {
	for _, field := range []struct {
		name       string
		want, have any
	}{
		{"sealed", false, have.Sealed}, // first, because it changes other fields
		{"retention", want.Retention, have.Retention},
		{"storage", want.Storage, have.Storage},
		{"discard", want.Discard, have.Discard},
		{"max_msgs_per_subject", want.MaxMsgsPerSubject, have.MaxMsgsPerSubject},
		{"max_age", want.MaxAge, have.MaxAge},
		{"mirror", false, have.Mirror != nil},
		{"no_ack", false, have.NoAck},
		{"deny_delete", false, have.DenyDelete},
		{"deny_purge", false, have.DenyPurge},
		{"max_msg_size", int32(-1), have.MaxMsgSize},
	} {
		if field.want != field.have {
			return fmt.Errorf("it exists with %s %v, and %v is needed", field.name, field.have, field.want)
		}
	}
	return nil
}

// adapt returns the configuration of an existing stream with the changes that are needed.
func adapt(have, want jetstream.StreamConfig) jetstream.StreamConfig {
	have.Subjects = slices.Clone(have.Subjects)
	for _, subject := range want.Subjects {
		if !slices.Contains(have.Subjects, subject) {
			have.Subjects = append(have.Subjects, subject)
		}
	}
	// With direct gets any server may answer, and one that lags behind would return an
	// outdated step.
	have.AllowDirect = false
	have.AllowMsgTTL = true
	have.AllowAtomicPublish = have.AllowAtomicPublish || want.AllowAtomicPublish
	return have
}

// token returns a unique token of a subject for any string: the string itself, or a
// digest of it if it is long or has other characters.
func token(s string) string {
	if s == "" || len(s) > maxToken || strings.Trim(s, tokenCharacters) != "" {
		return "%" + engine.HashOf(s)
	}
	return s
}

const (
	maxToken        = 100
	tokenCharacters = "-_:0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
