package middleware

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Retry tries a failing message again as the policy says: short delays are waited for here, holding
// the worker, longer ones go back to the transport as a delayed redelivery. [bus.Permanent] and
// [bus.Discard] end it, [bus.RetryAfter] sets the next delay, [bus.Snooze] passes through. Errors that
// a rule matches have its policy, the first rule's; see [bus.RetryRule].
//
// When the bus stops while a message waits here, the message is given back at no cost. Under a stock
// Watermill router there are no delayed redeliveries: the tries end where the first long delay would
// begin.
func Retry(policy bus.RetryPolicy, rules ...bus.RetryRule) message.HandlerMiddleware {
	r := newRetrier(policy, rules)
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			d := bus.Attach(msg)
			if err := r.crashed(d); err != nil {
				return nil, err
			}
			d.Try = r.policy.FirstTry(d.Attempt)
			for here := 0; ; here++ {
				produced, err := next(msg)
				if err == nil {
					return produced, nil
				}
				if err := r.again(msg.Context(), d, here, err); err != nil {
					return nil, err
				}
				d.Try++
			}
		}
	}
}

type retrier struct {
	policy     bus.RetryPolicy
	rules      []bus.RetryRule
	deliveries int // of the policy that has the most
}

func newRetrier(policy bus.RetryPolicy, rules []bus.RetryRule) retrier {
	r := retrier{policy: policy.WithDefaults(), rules: slices.Clone(rules)}
	r.deliveries = r.policy.Deliveries()
	for i, rule := range r.rules {
		if rule.Policy != nil {
			r.rules[i].Policy = new(rule.Policy.WithDefaults())
			r.deliveries = max(r.deliveries, rule.Policy.Deliveries())
		}
	}
	return r
}

// policyFor is the policy for the error, nil where a rule calls it permanent.
func (r *retrier) policyFor(err error) *bus.RetryPolicy {
	for _, rule := range r.rules {
		if rule.Match(err) {
			return rule.Policy
		}
	}
	return &r.policy
}

// crashed refuses a message that came again and again without an outcome: it kills its process.
func (r *retrier) crashed(d *bus.Delivery) error {
	limit := r.deliveries + r.policy.CrashLimit
	if d.Attempt <= limit {
		return nil
	}
	return bus.Permanent(fmt.Errorf("delivery %d, where the retry policy has %d and %d more are allowed for crashes and lost connections: "+
		"the message seems to end its process, and is not tried again", d.Attempt, r.deliveries, r.policy.CrashLimit))
}

// again returns nil when the next try is due, and otherwise what the delivery ends with. here is how many
// tries this delivery had before.
func (r *retrier) again(ctx context.Context, d *bus.Delivery, here int, err error) error {
	if _, ok := bus.AsRedelivery(err); ok || bus.IsPermanent(err) || bus.IsDiscard(err) || d.Interrupted() {
		return err
	}
	if d.FailedSince.IsZero() {
		d.FailedSince = time.Now()
	}
	policy := r.policyFor(err)
	if policy == nil {
		return bus.Permanent(err)
	}
	d.Try = policy.FirstTry(d.Attempt) + here
	left := bus.MoreTries
	if d.Try > len(policy.Delays) {
		left = bus.LastTry
	}
	if paused := d.Failed(err, left); paused != nil {
		return paused
	}
	if left == bus.LastTry {
		return err
	}
	delay, inProcess := nextTry(*policy, d.Try, err)
	if !inProcess {
		if d.Settler == nil {
			return err
		}
		return &bus.Redelivery{After: delay, Err: err}
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-d.Stopping():
		return &bus.Redelivery{After: delay, Cost: bus.CostsNothing, Err: err}
	case <-ctx.Done(): // a step further out has set a limit, or the bus interrupts, which costs nothing anyway
		return &bus.Redelivery{After: delay, Err: err}
	}
}

// nextTry is the wait before the try after this one, and whether it is waited for in process.
func nextTry(policy bus.RetryPolicy, try int, err error) (delay time.Duration, inProcess bool) {
	if asked, ok := bus.RetryDelay(err); ok {
		return asked, asked <= policy.InProcess
	}
	base := policy.Delays[try-1]
	return policy.Spread(base), base <= policy.InProcess
}
