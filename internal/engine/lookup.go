package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// OpenLanes returns a source for every host whose deliveries wait for its turn,
// by subject token: after a start, nobody else may be serving them.
func (e *Engine) OpenLanes(ctx context.Context) (map[string]*Source, error) {
	info, err := e.link().live.Info(ctx, jetstream.WithSubjectFilter(heldSubject+">"))
	if err != nil {
		return nil, fmt.Errorf("listing what waits for its host's turn: %w", err)
	}
	lanes := make(map[string]*Source)
	for subject := range info.State.Subjects {
		token, _, _ := strings.Cut(strings.TrimPrefix(subject, heldSubject), ".")
		if lanes[token] == nil {
			if lanes[token], err = e.laneOf(ctx, token); err != nil {
				return nil, err
			}
		}
	}
	return lanes, nil
}

// WaitingLanes returns a source for every lane that is open and in which
// something waits, by subject token. It asks for the lanes, not for what is in
// them, and may be called often: a node that died may have left some.
func (e *Engine) WaitingLanes(ctx context.Context) (map[string]*Source, error) {
	consumers := e.link().live.ListConsumers(ctx)
	var tokens []string
	for info := range consumers.Info() {
		if token, ok := strings.CutPrefix(info.Name, lanePrefix); ok && info.NumPending > 0 {
			tokens = append(tokens, token)
		}
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("listing the lanes: %w", err)
	}
	lanes := make(map[string]*Source, len(tokens))
	for _, token := range tokens {
		source, err := e.laneOf(ctx, token)
		if err != nil {
			return nil, err
		}
		lanes[token] = source
	}
	return lanes, nil
}

// HostToken returns the name that the engine knows a host by; the key of
// [Engine.OpenLanes].
func HostToken(host string) string { return hostToken(host) }
