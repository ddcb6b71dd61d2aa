package engine

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

// OpenLanes returns a source for every host whose deliveries wait for its turn,
// by subject token: after a start, nobody else may be serving them.
func (e *Engine) OpenLanes(ctx context.Context) (map[string]*Source, error) {
	tokens, err := e.link().heldTokens(ctx)
	if err != nil {
		return nil, err
	}
	return e.lanesOf(ctx, maps.Keys(tokens), len(tokens))
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
	return e.lanesOf(ctx, slices.Values(tokens), len(tokens))
}

func (e *Engine) lanesOf(ctx context.Context, tokens iter.Seq[string], n int) (map[string]*Source, error) {
	lanes := make(map[string]*Source, n)
	for token := range tokens {
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
