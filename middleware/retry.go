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

// Retry returns the step that retries failing messages by a policy. For short delays it waits in process, holding the worker;
// for longer ones it gives the message back to the transport with a delay. [bus.Permanent] and [bus.Discard] end the tries,
// [bus.RetryAfter] makes the next delay longer, and [bus.Snooze] passes through. The first rule that matches an error replaces
// the policy; see [bus.RetryRule].
//
// It counts failures, not deliveries: a redelivery because the process was killed or stopped does not count. The count travels
// with the message.
//
// If the bus stops while the step waits, it gives the message back, which does not count. Under a stock Watermill router there
// are no delayed redeliveries: the tries end before the first long delay.
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

// policyFor returns the policy for the error, nil if a rule makes it permanent.
func (r *retrier) policyFor(err error) *bus.RetryPolicy {
	for _, rule := range r.rules {
		if rule.Match(err) {
			return rule.Policy
		}
	}
	return &r.policy
}

// crashed returns an error if a message was redelivered too often without an outcome: its handler probably kills the process.
// Each redelivery with an outcome has at least one failure, so the difference never counts too many.
func (r *retrier) crashed(d *bus.Delivery) error {
	crashes := d.Attempt - 1 - d.Failures
	if crashes <= r.policy.CrashLimit {
		return nil
	}
	return bus.Permanent(fmt.Errorf("delivery %d after %d failures, and the limit is %d crashes and lost connections: %w",
		d.Attempt, d.Failures, r.policy.CrashLimit, errCrashes))
}

var errCrashes = errors.New("handling the message probably kills the process, so it is not tried again")

// again waits for the next try and returns nil, or returns the error with which the delivery ends.
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
	case <-ctx.Done(): // an outer step's deadline, or an interruption by the bus, which does not count
		return &bus.Redelivery{After: after, Err: err}
	}
}
