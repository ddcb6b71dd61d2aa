package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

// errNoConsumer says that the consumer asked is gone.
var errNoConsumer = errors.New("the consumer is gone")

// A pull is one request to a consumer for messages.
//
// [jetstream.Consumer.Fetch] would make it too, but stops listening a tenth of its
// wait, at most a second, after the server has ended it. What the server sent by
// then and comes later, over a long line or to a process that was held up, would be
// in nobody's hands until [Engine.handTime] is over.
type pull struct {
	engine *Engine
	link   *link
	inbox  string
	msgs   chan *nats.Msg // with room for all that may come
	sub    *nats.Subscription
	left   int // how many messages may still come
}

// answerTime is how long after its end the server's word of it is waited for.
const answerTime = time.Second

// pull asks a consumer of the live tasks for up to n messages.
func (e *Engine) pull(k *link, consumer string, n int, wait time.Duration) (*pull, error) {
	// No max_bytes: a cluster then says that the batch is complete before it sends
	// the last message.
	request, err := json.Marshal(server.JSApiConsumerGetNextRequest{Batch: n, Expires: wait})
	if err != nil {
		return nil, err
	}
	p := &pull{engine: e, link: k, inbox: k.nc.NewInbox(), msgs: make(chan *nats.Msg, n+1), left: n}
	if p.sub, err = k.nc.ChanSubscribe(p.inbox, p.msgs); err != nil {
		return nil, err
	}
	subject := fmt.Sprintf(server.JSApiRequestNextT, liveStream, consumer)
	if err := k.nc.PublishRequest(subject, p.inbox, request); err != nil {
		return nil, errors.Join(err, p.sub.Unsubscribe())
	}
	return p, nil
}

// messages yields what the server sends until it ends the request, and gives
// back what comes after ctx has ended.
func (p *pull) messages(ctx context.Context, wait time.Duration) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		end := time.NewTimer(wait + answerTime)
		defer end.Stop()
		for p.left > 0 {
			select {
			case msg := <-p.msgs:
				if msg.Subject == p.inbox {
					p.left = 0
					if err := refusal(msg); err != nil {
						yield(nil, err)
					}
				} else if p.left--; !yield(msg, nil) {
					go p.giveBack()
					return
				}
			case <-ctx.Done():
				go p.giveBack()
				return
			case <-end.C:
				go p.giveBack()
				return
			}
		}
		p.end()
	}
}

// refusal returns why the server ended a request, unless it is because its time was
// up.
func refusal(status *nats.Msg) error {
	switch code, why := status.Header.Get("Status"), status.Header.Get("Description"); {
	case code == "408":
		return nil
	case code == "503", why == "Consumer Deleted":
		return errNoConsumer
	default:
		return fmt.Errorf("the server says %s %s", code, why)
	}
}

// giveBack gives back what still comes. It goes on for as long as a message that
// was sent is nobody else's.
func (p *pull) giveBack() {
	defer p.end()
	end := time.NewTimer(p.engine.handTime())
	defer end.Stop()
	for p.left > 0 {
		select {
		case msg := <-p.msgs:
			if msg.Subject == p.inbox {
				return
			}
			p.left--
			if err := msg.Nak(); err != nil {
				p.engine.log.Warn("delivery that came late not given back", zap.Error(err))
			}
		case <-p.link.life.Done():
			return
		case <-end.C:
			return
		}
	}
}

func (p *pull) end() {
	if err := p.sub.Unsubscribe(); err != nil && p.link.life.Err() == nil {
		p.engine.log.Warn("consumer still listened to", zap.Error(err))
	}
}
