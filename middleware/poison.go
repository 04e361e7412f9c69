package middleware

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// PoisonConfig configures [Poison]. The zero value poisons messages on any error of the inner steps.
type PoisonConfig struct {
	// Retry is the policy for errors and panics of steps between poison and retry, which the retry step does not see. nil
	// means that a message with such an error is poisoned at once.
	Retry *bus.RetryPolicy
	// Publisher and Topic are where poisoned messages are published under a stock Watermill router, which has no poison
	// queues. They are not used under a leat bus.
	Publisher message.Publisher
	Topic     string
}

// Poison returns the step that moves a message that has failed permanently to its group's poison queue (Dead Letter Channel),
// with the reason in its headers, and acks it after the poison queue has confirmed its copy. If the poison queue can't be
// reached, the message is not acked but redelivered, and the group is degraded.
//
// Redeliveries, snoozes, discards and interrupted deliveries pass through.
func Poison(cfg PoisonConfig) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		next = Recover(next)
		return func(msg *message.Message) ([]*message.Message, error) {
			d := bus.Attach(msg)
			if d.Unreadable != nil {
				return nil, cfg.poison(d, msg, d.Unreadable)
			}
			produced, err := next(msg)
			if err == nil {
				return produced, nil
			}
			if _, redelivery := errors.AsType[*bus.Redelivery](err); redelivery || bus.IsDiscard(err) || d.Interrupted() {
				return nil, err
			}
			if cfg.Retry != nil && d.Settler != nil && !d.GivenUp() && !bus.IsPermanent(err) {
				after, _, end := d.Failed(err, *cfg.Retry)
				if end == nil {
					return nil, &bus.Redelivery{After: after, Err: err}
				}
				if !d.GivenUp() {
					return nil, end
				}
			}
			return nil, cfg.poison(d, msg, err)
		}
	}
}

// poison moves the message to the poison queue. Under a stock Watermill router it publishes the message to the configured
// topic.
func (cfg PoisonConfig) poison(d *bus.Delivery, msg *message.Message, cause error) error {
	if d.Settler != nil {
		return d.GiveUp(cause, nil)
	}
	return d.GiveUp(cause, func(ctx context.Context, fault driver.Fault) error {
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
	})
}
