package engine

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A Migration carries the tasks of an embedded engine's store into a cluster.
// It may be killed at any moment and repeated: what is in the cluster already is
// left as it stands there. Gateways may work on the cluster meanwhile, but none on
// the store.
type Migration struct {
	From Config // its Store
	To   Config // its URLs
	// NameTick makes a task of a schedule's tick that waits: it gives it its ID,
	// which for the same sequence must be the same.
	NameTick func(rec *task.Record, sequence uint64)
}

// Migrated says what a migration did.
type Migrated struct {
	Tasks     map[task.State]int // carried over, by where they stood
	There     int                // tasks that were in the cluster before
	Keys      int                // idempotency keys
	Schedules int
	Bodies    int // that stand apart from their tasks
	// Damaged messages were carried to the dead, where an operator finds them.
	Damaged int
	// Bodyless are tasks whose body was missing in the store.
	Bodyless int
}

// Run carries everything over. If it returns an error, some tasks may be in the
// cluster and no gateway can be started on the store until Run has been repeated.
func (m Migration) Run(ctx context.Context) (*Migrated, error) {
	if m.From.Logger == nil {
		m.From.Logger = zap.NewNop()
	}
	switch homes, _, err := homesIn(m.From.Store); {
	case err != nil:
		return nil, fmt.Errorf("there is no store in %s: %w", m.From.Store, err)
	case len(homes) == 0:
		return nil, fmt.Errorf("there is no store in %s", m.From.Store)
	}
	// The cluster first: if it refuses us, nothing has happened to the store.
	to, err := Open(ctx, m.To)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	store := &Engine{cfg: m.From, log: m.From.Logger}
	defer store.leaveFolder()
	if err := store.openFolder(); err != nil {
		return nil, err
	}
	from := new(link)
	from.life, from.end = context.WithCancel(context.Background())
	defer from.shutDown()
	if err := store.startEmbedded(from); err != nil {
		return nil, err
	}
	c := &carrier{
		from: from, to: to, nameTick: m.NameTick,
		done: &Migrated{Tasks: make(map[task.State]int)}, log: m.From.Logger,
	}
	if err := c.open(ctx, store); err != nil {
		return nil, err
	}
	if err := markMoved(m.From.Store, m.To.URLs, "are being moved"); err != nil {
		return nil, err
	}
	if err := c.freeze(ctx); err != nil {
		return nil, err
	}
	if err := c.run(ctx); err != nil {
		return c.done, err
	}
	return c.done, markMoved(m.From.Store, m.To.URLs, "were moved")
}

// open opens what there is in the store. What describes a stream may be damaged, as by
// a kill in the middle of [carrier.freeze]: then it is made anew, with the messages that
// are there.
func (c *carrier) open(ctx context.Context, store *Engine) (err error) {
	if c.from.js, err = jetstream.New(c.from.nc, jetstream.WithDefaultTimeout(startTimeout)); err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	live := liveConfig()
	freeze(&live)
	for _, s := range []struct {
		config jetstream.StreamConfig
		stream *jetstream.Stream
	}{
		{live, &c.from.live},
		{endedConfig(store.cfg.Retention, store.cfg.RetentionCount), &c.from.ended},
		{deadConfig(), &c.from.dead},
	} {
		*s.stream, err = c.from.js.Stream(ctx, s.config.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			*s.stream, err = store.openStream(ctx, c.from, s.config)
		}
		if err != nil {
			return fmt.Errorf("opening the store's stream %s: %w", s.config.Name, err)
		}
	}
	if c.from.blobs, err = store.openBlobs(ctx, c.from); err != nil {
		return fmt.Errorf("opening the store's bodies: %w", err)
	}
	// Acknowledgements are waited for in batches.
	c.async, err = jetstream.New(c.to.link().nc,
		jetstream.WithDefaultTimeout(publishTimeout), jetstream.WithPublishAsyncTimeout(publishTimeout))
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	return nil
}

// frozenKey marks a stream into which nothing goes any more.
const frozenKey = "callback-frozen"

// freeze keeps the store's server from moving tasks on when their time comes:
// a task would be carried over twice. What comes due meanwhile does so in the
// cluster.
func (c *carrier) freeze(ctx context.Context) error {
	cfg := c.from.live.CachedInfo().Config
	freeze(&cfg)
	if _, err := c.from.js.UpdateStream(ctx, cfg); err != nil {
		return fmt.Errorf("stopping the store's clocks: %w", err)
	}
	return nil
}

func freeze(cfg *jetstream.StreamConfig) {
	cfg.MaxMsgSize = 1 // smaller than any
	cfg.Metadata = map[string]string{frozenKey: "true"}
}

// thaw undoes freeze, for an operator who has decided to use the store again, and
// says whether there was something to undo.
func thaw(have *jetstream.StreamConfig) bool {
	if have.Metadata[frozenKey] == "" {
		return false
	}
	delete(have.Metadata, frozenKey)
	have.MaxMsgSize = -1
	return true
}

// movedFile stands in a store whose tasks are elsewhere.
const movedFile = "MOVED"

// markMoved notes in the store where its tasks are.
func markMoved(store string, urls []string, what string) error {
	text := fmt.Sprintf("The tasks of this store %s to %s (%s).\n",
		what, strings.Join(withoutUsers(urls), " "), time.Now().UTC().Format(time.RFC3339))
	file, err := os.OpenFile(filepath.Join(store, movedFile+".new"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = file.WriteString(text)
		err = errors.Join(err, file.Sync(), file.Close())
	}
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(store, movedFile))
	}
	if err != nil {
		return fmt.Errorf("marking the store as moved: %w", err)
	}
	return nil
}

// checkMoved returns an error if the store's tasks are elsewhere: a gateway that
// was started on it by mistake would run and deliver them again.
func checkMoved(store string) error {
	name := filepath.Join(store, movedFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking whether the store was moved: %w", err)
	}
	return fmt.Errorf("%s Use the nats option, or remove %s to use the store again: what was moved is then run and delivered twice",
		strings.TrimSpace(string(text)), name)
}

// withoutUsers returns URLs without user, password or token.
func withoutUsers(urls []string) []string {
	shown := make([]string, 0, len(urls))
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			shown = append(shown, "a server")
			continue
		}
		shown = append(shown, u.Scheme+"://"+u.Host)
	}
	return shown
}
