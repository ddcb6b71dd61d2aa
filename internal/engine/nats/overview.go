package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Held returns how many tasks run on this node, by queue; those that a client
// waits for are under "".
func (e *Engine) Held() map[string]int {
	held := make(map[string]int)
	e.leases.Range(func(_, l any) bool {
		held[l.(*Lease).rec.Queue]++
		return true
	})
	return held
}

// HostLoad is what waits for a host.
type HostLoad struct {
	// Due are deliveries whose turn has come, Held those that wait for the host's
	// turn in its lane.
	Due, Held uint64
}

// maxDueListed bounds the deliveries that are counted by host: the server has to
// list them all. More than that are due only while nobody takes them.
const maxDueListed = 20_000

// HostLoads returns what waits for each host, by the engine's name of it; of
// deliveries that are due, nothing if there are very many.
func (e *Engine) HostLoads(ctx context.Context) (map[string]HostLoad, error) {
	loads := make(map[string]HostLoad)
	var due uint64
	consumers := e.link().live.ListConsumers(ctx)
	for info := range consumers.Info() {
		waiting := info.NumPending + uint64(info.NumAckPending)
		if token, ok := strings.CutPrefix(info.Name, lanePrefix); ok && waiting > 0 {
			loads[token] = HostLoad{Held: waiting}
		} else if info.Config.FilterSubject == dueSubject+"*.*" {
			due = waiting
		}
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("counting what waits for hosts: %w", err)
	}
	if due == 0 || due > maxDueListed {
		return loads, nil
	}
	info, err := e.link().live.Info(ctx, jetstream.WithSubjectFilter(dueSubject+">"))
	if err != nil {
		return nil, fmt.Errorf("counting what is due: %w", err)
	}
	for subject := range info.State.Subjects {
		token, _, _ := strings.Cut(strings.TrimPrefix(subject, dueSubject), ".")
		load := loads[token]
		load.Due++
		loads[token] = load
	}
	return loads, nil
}

// HostOfToken returns the host and port that the engine knows by a name; the
// name itself of a host that is too long for one.
func HostOfToken(token string) string {
	if token == noHost {
		return ""
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case c == '_':
			b.WriteByte('.')
		case c == '%' && i+2 < len(token) && len(token) <= maxToken && !isHashed(token):
			b.WriteByte(unhex(token[i+1])<<4 | unhex(token[i+2]))
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// hashedToken is the length of the name of a host that is too long for one.
const hashedToken = 1 + 64

// isHashed says whether a token is a hash: no host begins with a byte that is
// escaped and goes on with lower case hex digits alone.
func isHashed(token string) bool {
	return len(token) == hashedToken && token[0] == '%' && strings.IndexFunc(token[1:], func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'f')
	}) < 0
}

func unhex(c byte) byte {
	if c >= 'A' {
		return c - 'A' + 10
	}
	return c - '0'
}

// Ticks returns when a schedule ticked last and when it does next, as far as that
// is known; zero if it is not.
func (e *Engine) Ticks(ctx context.Context, queue, name string) (last, next time.Time, err error) {
	msg, err := e.link().live.GetLastMsgForSubject(ctx, tickSubject+queue+"."+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, time.Time{}, nil
	} else if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("looking up the ticks of a schedule: %w", err)
	}
	if next, err = time.Parse(time.RFC3339Nano, string(msg.Data)); err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("reading the next tick of a schedule: %w", err)
	}
	return msg.Time.UTC(), next.UTC(), nil
}
