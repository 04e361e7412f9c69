package middleware

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

const (
	// poisonTimeout bounds the hand-over to the poison queue. It does not follow the handler's
	// context, which may be over: that may be why the message is poisoned.
	poisonTimeout = 10 * time.Second
	// poisonAgain is how soon a message comes again whose poison queue could not be reached.
	poisonAgain = 2 * time.Second
	// poisonPart is what a group reports as degraded.
	poisonPart = "poison queue"
)

// PoisonConfig is for stock Watermill routers, which have no poison queues: where to publish.
// Under a leat bus it stays empty.
type PoisonConfig struct {
	Publisher message.Publisher
	Topic     string
}

// Poison moves a message that failed for good to its group's poison queue (Dead Letter Channel), with
// the reason in its headers, and acks it when the poison queue has confirmed its copy. Where that
// can't be reached, nothing is acked: the message comes again and the group is reported degraded.
//
// Redeliveries, snoozes, discards and what shutdown has interrupted pass through.
func Poison(cfg PoisonConfig) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			produced, err := next(msg)
			if err == nil {
				return produced, nil
			}
			d := bus.Attach(msg)
			if !failedForGood(d, err) {
				return nil, err
			}
			return nil, poison(cfg, d, msg, err)
		}
	}
}

func failedForGood(d *bus.Delivery, err error) bool {
	_, again := bus.AsRedelivery(err)
	return !again && !bus.IsDiscard(err) && !d.Interrupted()
}

func poison(cfg PoisonConfig, d *bus.Delivery, msg *message.Message, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(msg.Context()), poisonTimeout)
	defer cancel()
	err := handOver(ctx, cfg, d, msg, bus.NewFault(d, cause))
	d.Degraded(poisonPart, err)
	if err == nil {
		return nil
	}
	err = errors.Join(cause, fmt.Errorf("and the poison queue did not take it: %w", err))
	return &bus.Redelivery{After: poisonAgain, Cost: bus.CostsNothing, Err: err}
}

// handOver puts the message into the poison queue. A stock router has none: then the message is
// published to the configured topic.
func handOver(ctx context.Context, cfg PoisonConfig, d *bus.Delivery, msg *message.Message, fault bus.Fault) error {
	if d.Settler != nil {
		return d.Poison(ctx, fault)
	}
	if cfg.Publisher == nil {
		return errors.New("no poison publisher is configured for this router")
	}
	dead := msg.Copy()
	fault.Set(dead.Metadata)
	dead.SetContext(ctx)
	if err := cfg.Publisher.Publish(cfg.Topic, dead); err != nil {
		return err
	}
	d.MarkPoisoned(fault.Err)
	return nil
}
