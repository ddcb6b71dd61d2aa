package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Key is what is kept of an idempotency key: the task that was started with it.
// It stands beside the live tasks until its task has ended, and then beside the
// ended ones, for as long as they are retained. It is stored before its task: if
// the gateway dies in between, the next request with the key stores the task.
type Key struct {
	TaskID string `json:"task_id"`
	// Body is a hash of the request's body: the same key with another body is a
	// mistake of the client's.
	Body string `json:"body"`
}

// ClaimKey gives the key of that hash on a queue to the task that k names,
// unless another has it; then it returns that one, and false.
func (e *Engine) ClaimKey(ctx context.Context, queue, hash string, k Key) (Key, bool, error) {
	data, err := json.Marshal(k)
	if err != nil {
		return Key{}, false, fmt.Errorf("encoding a key: %w", err)
	}
	live, ended := keySubject+queue+"."+hash, doneKeySubject+queue+"."+hash
	for {
		if first, err := getKey(ctx, e.link().ended, ended); err != nil || first != nil {
			return deref(first), false, err
		}
		msg := &nats.Msg{Subject: live, Data: data, Header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"0"}}}
		seq, err := e.send(ctx, msg)
		if err != nil && !errors.Is(err, ErrLost) {
			return Key{}, false, err
		}
		isMine := err == nil
		standing := &k
		if !isMine {
			if standing, err = getKey(ctx, e.link().live, live); err != nil {
				return Key{}, false, err
			}
		}
		// The first task may have ended between the two looks: its key is then with
		// the ended ones, and what stands among the live is another's who comes too
		// late, or ours.
		first, err := getKey(ctx, e.link().ended, ended)
		switch {
		case err == nil && first == nil && standing != nil:
			return *standing, isMine, nil
		case err == nil && first == nil:
			continue // it has just been retired, or given back
		case isMine:
			if err := e.link().live.DeleteMsg(ctx, seq); err != nil {
				return Key{}, false, fmt.Errorf("giving a key back: %w", err)
			}
		}
		return deref(first), false, err
	}
}

// ReviveKey puts a key back among the live ones, for its task is stored anew.
func (e *Engine) ReviveKey(ctx context.Context, queue, hash string, k Key) error {
	ended := doneKeySubject + queue + "." + hash
	if old, err := getKey(ctx, e.link().ended, ended); err != nil || old == nil {
		return err
	}
	data, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("encoding a key: %w", err)
	}
	// There is no moment at which it stands nowhere.
	if _, err := e.send(ctx, &nats.Msg{Subject: keySubject + queue + "." + hash, Data: data}); err != nil {
		return err
	}
	return e.link().ended.Purge(ctx, jetstream.WithPurgeSubject(ended))
}

// retireKey moves the key of a task that has ended to the ended ones.
func (e *Engine) retireKey(ctx context.Context, rec *task.Record) error {
	if rec.Key == "" {
		return nil
	}
	live := keySubject + rec.Queue + "." + rec.Key
	k, err := getKey(ctx, e.link().live, live)
	if err != nil || k == nil {
		return err
	}
	if k.TaskID != rec.ID {
		// It was retired before, and a gateway died that was about to find that out.
		return nil
	}
	data, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("encoding a key: %w", err)
	}
	if _, err := e.send(ctx, &nats.Msg{Subject: doneKeySubject + rec.Queue + "." + rec.Key, Data: data}); err != nil {
		return err
	}
	return e.link().live.Purge(ctx, jetstream.WithPurgeSubject(live))
}

func getKey(ctx context.Context, stream jetstream.Stream, subject string) (*Key, error) {
	msg, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("looking up an idempotency key: %w", err)
	}
	k := new(Key)
	if err := json.Unmarshal(msg.Data, k); err != nil {
		return nil, fmt.Errorf("decoding an idempotency key: %w", err)
	}
	return k, nil
}

func deref(k *Key) Key {
	if k == nil {
		return Key{}
	}
	return *k
}

// HasKey says whether the key of that hash on a queue stands for a task.
func (e *Engine) HasKey(ctx context.Context, queue, hash string) (bool, error) {
	k, err := getKey(ctx, e.link().live, keySubject+queue+"."+hash)
	if err == nil && k == nil {
		k, err = getKey(ctx, e.link().ended, doneKeySubject+queue+"."+hash)
	}
	return k != nil, err
}
