package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/breaker"
)

// A Delivery is one handling of a message by a group: what the transport has handed out, and the state of its way
// through the stack. The bus makes it and settles it, and the steps of the stack get it with [DeliveryFrom] or [Attach].
// It belongs to one goroutine at a time; Stopping and Interrupted may be called by others.
type Delivery struct {
	driver.Delivery

	// DryRun is set if the handler is only tried; nil otherwise.
	DryRun *DryRun

	// Try is the number of the current try over all deliveries, from 1. The retry step counts it.
	Try int

	group   *group                   // nil under a stock Watermill router
	handed  *driver.Delivery         // what the transport handed out; it reads the History there
	ctx     deliveryContext          // its message's, made with it: one allocation less for each
	moved   atomic.Int64             // when its last try failed, in Unix nanoseconds; 0 for none
	breaker breaker.Message          // what the breaker knows of it; its ID goes into logs and Health, as steps may change the headers
	givenUp bool                     // the retry policy has no try left
	retries func(error) *RetryPolicy // the retry step's; nil if none has begun
	waited  time.Duration            // between its tries
	outcome Outcome
	cause   error        // what a poisoned message failed with
	settled atomic.Int32 // one of the states below
}

// The states of a delivery's settlement. Whoever brings it from unsettled to another state settles it.
const (
	unsettled = iota
	poisoning // the poison queue has not confirmed its copy yet
	settled
)

// DeliveryFrom returns the delivery that ctx belongs to, nil outside a handler.
func DeliveryFrom(ctx context.Context) *Delivery {
	d, _ := ctx.Value(deliveryKey{}).(*Delivery)
	return d
}

// NewContext returns ctx inside the handling of d: what is published with it continues d's correlation and trace. The
// bus does this by itself.
func (d *Delivery) NewContext(ctx context.Context) context.Context {
	return &deliveryContext{ctx, d}
}

// Attach returns the delivery of a message on its way through a stack. Under a stock Watermill router,
// which knows no deliveries, it makes one and puts it into the message's context.
func Attach(msg *message.Message) *Delivery {
	if d := DeliveryFrom(msg.Context()); d != nil {
		return d
	}
	d := &Delivery{Delivery: driver.Delivery{
		Message: msg,
		Topic:   message.SubscribeTopicFromCtx(msg.Context()),
		Group:   message.HandlerNameFromCtx(msg.Context()),
		Attempt: 1,
	}}
	msg.SetContext(d.NewContext(msg.Context()))
	return d
}

type deliveryKey struct{}

// deliveryContext is context.WithValue for the one value every handler has; a delivery brings its own.
type deliveryContext struct {
	context.Context
	d *Delivery
}

func (c *deliveryContext) Value(key any) any {
	switch key.(type) {
	case deliveryKey:
		return c.d
	case driver.DeliveryKey:
		return &c.d.Delivery
	default:
		return c.Context.Value(key)
	}
}

// Type returns the event type of the message: its ce_type, else its topic. If that names no version, as with
// foreign producers, the payload may name it in the field [Config].VersionField of a JSON object, as a string like
// "v2". Anything else there is the domain's own, and the version is 1.
func (d *Delivery) Type() (Type, error) {
	name := d.Message.Metadata[driver.HeaderType]
	if name == "" {
		name = d.Topic
	}
	if t, ok := parseType(name); ok {
		return t, nil
	}
	if name == "" {
		return Type{}, fmt.Errorf("bus: message has no type: neither the header %s nor a topic names one", driver.HeaderType)
	}
	return Type{Name: name, Version: bodyVersion(d.Message.Payload, d.versionField())}, nil
}

func (d *Delivery) versionField() string {
	if d.group == nil {
		return defaultVersionField
	}
	return d.group.bus.cfg.VersionField
}

// bodyVersion reads a top-level field like "version": "v2". A number there may be anything of the domain's, such as
// the revision of an aggregate.
func bodyVersion(payload []byte, field string) int {
	var body map[string]json.RawMessage
	if field == noVersionField || json.Unmarshal(payload, &body) != nil {
		return 1
	}
	var text string
	if json.Unmarshal(body[field], &text) != nil {
		return 1
	}
	digits, found := strings.CutPrefix(text, "v")
	if v, ok := parseVersion(digits); ok && found {
		return v
	}
	return 1
}

// Handler returns the handler that the delivery goes to. Its zero value stands for a stock router's.
func (d *Delivery) Handler() Handler {
	if d.group == nil {
		return Handler{Name: d.Group}
	}
	return d.group.handler
}

// Started returns when the router took the delivery; now under a stock router.
func (d *Delivery) Started() time.Time {
	if d.breaker.Started.IsZero() {
		return time.Now()
	}
	return d.breaker.Started
}

// Own reports whether the bus that handles the message also published it; see [HeaderInstance].
func (d *Delivery) Own() bool {
	return d.group != nil && d.Message.Metadata[driver.HeaderInstance] == d.group.bus.encoder.Instance
}

// Observers returns the bus's observers; none under a stock router.
func (d *Delivery) Observers() []Observer {
	if d.group == nil {
		return nil
	}
	return d.group.bus.cfg.Observers
}

// Codec returns the bus's codec; [JSON] under a stock router.
func (d *Delivery) Codec() Codec {
	if d.group == nil {
		return JSON{}
	}
	return d.group.bus.cfg.Codec
}

// Stopping returns a channel that is closed when the bus stops taking in. A handler's context stays alive meanwhile; a step
// that only waits should give the delivery back.
func (d *Delivery) Stopping() <-chan struct{} {
	if d.group == nil {
		return nil
	}
	return d.group.bus.stopping
}

// Interrupted reports whether the drain timeout has passed and the handler's context was cancelled
// for it. What fails then has not failed. A stock Watermill router cancels the message's context when
// it closes; there that is what tells.
func (d *Delivery) Interrupted() bool {
	if d.Settler == nil {
		return errors.Is(d.Message.Context().Err(), context.Canceled)
	}
	return d.group != nil && d.group.bus.interrupted()
}

// Degraded reports a part of the group that does not work as it should, such as its poison queue;
// a nil reason says that it works again. It shows in [Bus.Health].
func (d *Delivery) Degraded(part string, reason error) {
	if d.group == nil || !d.group.health.set(part, reason) {
		return
	}
	logger := d.group.bus.cfg.Logger
	if reason == nil {
		logger.Info("leat: works again", "group", d.Group, "part", part)
	} else {
		logger.Warn("leat: degraded", "group", d.Group, "part", part, "error", reason)
	}
}

// newerPart is what a group reports as degraded while it waits for a newer version of its service.
const newerPart = "newer version"

const (
	// newerAgain is how soon a message of a newer version is redelivered.
	newerAgain = 30 * time.Second
	// newerShown is how long the group reports it.
	newerShown = 2 * newerAgain
)

// AwaitNewer returns what a delivery must end with whose handler takes only older versions of its event: it is
// redelivered every 30 s at no cost, until that has lasted for limit, and is then poisoned. The wait is shown in
// [Bus.Health]. It neither counts against the retry policy nor opens the circuit breaker.
func (d *Delivery) AwaitNewer(err *NewerVersionError, limit time.Duration) error {
	if d.Settler == nil { // a stock router would bring the message back at once
		return Permanent(err)
	}
	now := time.Now()
	if d.WaitingSince.IsZero() {
		d.WaitingSince = now
	}
	left := limit - now.Sub(d.WaitingSince)
	if left <= 0 {
		return Permanent(err)
	}
	if d.group != nil {
		reason := fmt.Errorf("message %s waits for a newer version of the service, until %s: %w", d.breaker.ID, d.WaitingSince.Add(limit).Format(time.RFC3339), err)
		if d.group.health.setUntil(newerPart, reason, now.Add(newerShown)) {
			d.group.bus.cfg.Logger.Warn("leat: degraded", "group", d.Group, "part", newerPart, "error", reason)
		}
	}
	return &Redelivery{After: min(newerAgain, left), Uncounted: true, Err: err}
}

// Poison moves the message to the group's poison queue and acks it. See [Settler].
func (d *Delivery) Poison(ctx context.Context, fault driver.Fault) error {
	if d.Settler == nil {
		return fmt.Errorf("bus: poison: %w", ErrUnsupported)
	}
	if !d.settled.CompareAndSwap(unsettled, poisoning) {
		return errors.New("bus: poison: the delivery is settled already")
	}
	defer d.settled.CompareAndSwap(poisoning, unsettled) // also if the transport panics
	if err := d.Settler.Poison(ctx, fault); err != nil {
		return err
	}
	d.settled.Store(settled)
	d.MarkPoisoned(fault.Err)
	return nil
}

const (
	// poisonTimeout bounds the move to the poison queue. It does not follow the handler's context, which
	// may be over: that may be why the message is poisoned.
	poisonTimeout = 10 * time.Second
	// poisonAgain is how soon a message is redelivered whose poison queue could not be reached.
	poisonAgain = 2 * time.Second
	// poisonPart is what a group reports as degraded.
	poisonPart = "poison queue"
)

// GiveUp moves a message that has failed for good to the group's poison queue by put, or by Poison if put is nil. If
// that can't be reached, nothing is acked: GiveUp reports the group as degraded and returns the redelivery
// that the delivery must end with. It blocks for at most ten seconds.
func (d *Delivery) GiveUp(cause error, put func(context.Context, driver.Fault) error) error {
	if put == nil {
		put = d.Poison
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.Message.Context()), poisonTimeout)
	defer cancel()
	err := put(ctx, d.fault(cause))
	d.Degraded(poisonPart, err)
	if err == nil {
		return nil
	}
	err = errors.Join(cause, fmt.Errorf("and the poison queue did not take it: %w", err))
	return &Redelivery{After: poisonAgain, Uncounted: true, Err: err}
}

// fault describes why the delivery has failed for good.
func (d *Delivery) fault(cause error) driver.Fault {
	f := driver.NewFault(&d.Delivery, cause)
	f.Tries, f.Handler = max(d.Try, 1), d.Handler().Name
	return f
}

// AddWaited adds to the time that the worker has waited between the tries of this delivery. The retry step calls it; a
// step that has tries of its own may do so, too.
func (d *Delivery) AddWaited(waited time.Duration) { d.waited += waited }

// Waited returns how long the worker has waited between the tries of this delivery.
func (d *Delivery) Waited() time.Duration { return d.waited }

// Retried counts a try that follows in process, without a new delivery.
func (d *Delivery) Retried() {
	if d.group != nil {
		d.group.counts.retries.Add(1)
	}
}

// Panicked counts a panic of the handler, or of a step. Whoever recovers from it calls it.
func (d *Delivery) Panicked() {
	if d.group != nil {
		d.group.counts.panics.Add(1)
	}
}

// DedupFailed counts a call of the dedup store that failed. It may be called concurrently.
func (d *Delivery) DedupFailed() {
	if d.group != nil {
		d.group.counts.dedupFaults.Add(1)
	}
}

// RetriedBy names the policies of the retry step that has begun, for a handler that ends its goroutine, which no step
// sees: policyFor returns the one for an error, nil if there is no further try. The retry step calls it.
func (d *Delivery) RetriedBy(policyFor func(error) *RetryPolicy) { d.retries = policyFor }

// GivenUp reports whether the retry policy has no try left for what [Delivery.Failed] was last told of.
func (d *Delivery) GivenUp() bool { return d.givenUp }

// Failed counts a failed try and returns what is next by the policy: the time until the next try, and whether to wait for
// it in process, holding the worker. If no try is next, it returns the error with which the delivery must end: err itself
// if the policy has no try left, and an uncounted [*Redelivery] while the group's circuit breaker spares the message; such
// a try does not count.
//
// [RetryAfter] makes the delay longer, and never shorter. The retry step calls Failed; a step that has tries of its
// own may do so, too.
func (d *Delivery) Failed(err error, policy RetryPolicy) (after time.Duration, inProcess bool, end error) {
	policy = policy.WithDefaults()
	if d.Failures < 0 {
		d.Failures = policy.FirstTry(d.Attempt) - 1
	}
	next := nextTry{last: d.Failures >= len(policy.Delays)}
	if !next.last {
		delay := policy.Delays[d.Failures]
		next.inProcess = delay <= policy.InProcess
		next.after = delay
		if next.inProcess || !d.FixedDelays {
			next.after = policy.Spread(delay)
		}
		if asked, ok := retryDelay(err); ok && asked > delay {
			next.after, next.asked, next.inProcess = asked, true, asked <= policy.InProcess
		}
	}
	return next.after, next.inProcess, d.fail(err, next)
}

// nextTry is what a retry policy has for a message that has failed.
type nextTry struct {
	after     time.Duration
	inProcess bool // wait in the worker, instead of giving the message back
	last      bool // there is none: the message would be poisoned
	asked     bool // the handler, or a step, asked for the delay
}

// fail counts a failed try, and returns the error with which the delivery must end, nil if next follows: the circuit
// breaker may spare the message.
func (d *Delivery) fail(err error, next nextTry) error {
	now := time.Now()
	if d.Failures < 0 {
		d.Failures = RetryPolicy{}.FirstTry(d.Attempt) - 1
	}
	d.WaitingSince = time.Time{} // this version of the service takes it
	d.moved.Store(now.UnixNano())
	if d.FailedSince.IsZero() {
		d.FailedSince = now
	}
	if d.group != nil {
		v := d.group.breaker.Failed(&d.breaker, breaker.Failure{
			Err: err, Since: d.FailedSince, Next: next.after, Last: next.last, Asked: next.asked, Bug: isBug(err),
		})
		if v.Paused {
			err = fmt.Errorf("the group is paused, because nearly everything fails: %w", err)
		}
		if v.Spared {
			return &Redelivery{After: v.After, Uncounted: true, Err: err}
		}
	}
	d.Failures++
	if next.last {
		d.givenUp = true
		return err
	}
	return nil
}

// MarkPoisoned records that the message went to a poison queue, where a step has put it there by
// other means than Poison.
func (d *Delivery) MarkPoisoned(cause error) { d.outcome, d.cause = Poisoned, cause }

// MarkDuplicate records that the message was handled before and is acked without its handler.
func (d *Delivery) MarkDuplicate() { d.outcome = Duplicate }

// Outcome returns how the delivery ends when err is what comes out of the stack.
func (d *Delivery) Outcome(err error) Outcome {
	switch {
	case d.outcome != "":
		return d.outcome
	case err == nil:
		return Handled
	case IsDiscard(err):
		return Discarded
	case d.Interrupted():
		return Interrupted
	default:
		return Redelivered
	}
}

// Cause returns what a poisoned message failed with, else nil.
func (d *Delivery) Cause() error { return d.cause }

// settle carries the outcome out. A delivery is settled once, whoever comes first.
func (d *Delivery) settle(outcome Outcome, err error) error {
	if !d.settled.CompareAndSwap(unsettled, settled) {
		return nil
	}
	if r, ok := errors.AsType[*Redelivery](err); ok && outcome == Redelivered && r.Err == nil && d.FailedSince.IsZero() {
		d.DueAgain = time.Now().Add(max(r.After, minSnooze))
	}
	if d.handed != nil {
		d.handed.History = d.History
	}
	switch outcome {
	case Interrupted:
		return d.Settler.GiveBack(0)
	case Redelivered:
		r, _ := errors.AsType[*Redelivery](err) // the router has made it one
		if r.Uncounted || r.Err == nil {        // without an error it is a snooze
			return d.Settler.GiveBack(max(r.After, minSnooze)) // only a shutdown gives back at once
		}
		return d.Settler.Redeliver(r.After)
	default:
		return d.Settler.Ack()
	}
}

// minSnooze is the shortest time before a message is redelivered that was given back by its handler. With none
// it would go before all others, and they would never be handled.
const minSnooze = 100 * time.Millisecond
