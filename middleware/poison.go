package middleware

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// PoisonConfig configures [Poison]. Its zero value poisons whatever comes out of the steps inside.
type PoisonConfig struct {
	// Retry is the policy for errors and panics of steps between this one and retry, whose tries have not
	// been counted: they are redelivered by it, and poisoned at its end. nil means that such an error is poisoned at
	// once.
	Retry *bus.RetryPolicy
	// Publisher and Topic are for stock Watermill routers, which have no poison queues: where to publish. Under
	// a leat bus they stay empty.
	Publisher message.Publisher
	Topic     string
}

// Poison moves a message that failed for good to its group's poison queue (Dead Letter Channel), with
// the reason in its headers, and acks it when the poison queue has confirmed its copy. If that
// can't be reached, nothing is acked: the message is redelivered and the group is reported degraded.
//
// Redeliveries, snoozes, discards and what shutdown has interrupted pass through.
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
			if _, again := errors.AsType[*bus.Redelivery](err); again || bus.IsDiscard(err) || d.Interrupted() {
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

// poison puts the message into the poison queue. A stock router has none: then the message is published to
// the configured topic.
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
