package middleware

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Retry tries a failing message again as the policy says: short delays are waited for here, holding
// the worker, longer ones go back to the transport as a delayed redelivery. [bus.Permanent] and
// [bus.Discard] end it, [bus.RetryAfter] makes the next delay longer, [bus.Snooze] passes through. Errors that
// a rule matches have its policy, the first rule's; see [bus.RetryRule].
//
// Failures are counted, not deliveries: a redelivery because the process was killed or stopped costs no try. The count
// travels with the message.
//
// When the bus stops while a message waits here, the message is given back at no cost. Under a stock
// Watermill router there are no delayed redeliveries: the tries end where the first long delay would
// begin.
func Retry(policy bus.RetryPolicy, rules ...bus.RetryRule) message.HandlerMiddleware {
	r := newRetrier(policy, rules)
	policyFor := r.policyFor
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			d := bus.Attach(msg)
			if d.Failures < 0 {
				d.Failures = r.policy.FirstTry(d.Attempt) - 1
			}
			if err := r.crashed(d); err != nil {
				return nil, err
			}
			d.RetriedBy(policyFor)
			for {
				d.Try = d.Failures + 1
				produced, err := next(msg)
				if err == nil {
					return produced, nil
				}
				if err := r.again(msg.Context(), d, err); err != nil {
					return nil, err
				}
			}
		}
	}
}

type retrier struct {
	policy bus.RetryPolicy
	rules  []bus.RetryRule
}

func newRetrier(policy bus.RetryPolicy, rules []bus.RetryRule) retrier {
	r := retrier{policy: policy.WithDefaults(), rules: slices.Clone(rules)}
	for i, rule := range r.rules {
		if rule.Policy != nil {
			r.rules[i].Policy = new(rule.Policy.WithDefaults())
		}
	}
	return r
}

// policyFor returns the policy for the error, nil if a rule calls it permanent.
func (r *retrier) policyFor(err error) *bus.RetryPolicy {
	for _, rule := range r.rules {
		if rule.Match(err) {
			return rule.Policy
		}
	}
	return &r.policy
}

// crashed refuses a message that was redelivered again and again without an outcome: it kills its process.
// Each redelivery with an outcome has at least one failure, so this never counts too many.
func (r *retrier) crashed(d *bus.Delivery) error {
	crashes := d.Attempt - 1 - d.Failures
	if crashes <= r.policy.CrashLimit {
		return nil
	}
	return bus.Permanent(fmt.Errorf("delivery %d after %d failures, and the limit is %d crashes and lost connections: %w",
		d.Attempt, d.Failures, r.policy.CrashLimit, errCrashes))
}

var errCrashes = errors.New("the message seems to end its process, and is not tried again")

// again returns nil when the next try is due, and otherwise what the delivery ends with.
func (r *retrier) again(ctx context.Context, d *bus.Delivery, err error) error {
	if _, ok := errors.AsType[*bus.Redelivery](err); ok || bus.IsPermanent(err) || bus.IsDiscard(err) || d.Interrupted() {
		return err
	}
	policy := r.policyFor(err)
	if policy == nil {
		return bus.Permanent(err)
	}
	after, inProcess, end := d.Failed(err, *policy)
	switch {
	case end != nil:
		return end
	case !inProcess && d.Settler == nil: // a stock router
		return err
	case !inProcess:
		return &bus.Redelivery{After: after, Err: err}
	}
	began := time.Now()
	defer func() { d.AddWaited(time.Since(began)) }()
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
		d.Retried()
		return nil
	case <-d.Stopping():
		return &bus.Redelivery{After: after, Uncounted: true, Err: err}
	case <-ctx.Done(): // a step further out has set a limit, or the bus interrupts, which costs nothing anyway
		return &bus.Redelivery{After: after, Err: err}
	}
}
