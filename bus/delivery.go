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

// A Delivery is one message that a group handles: what the transport has delivered, and the state of its handling. The bus
// creates and settles it. Steps of the stack get it by [DeliveryFrom] or [Attach]. It belongs to one goroutine at a time;
// other goroutines may call Stopping and Interrupted only.
type Delivery struct {
	driver.Delivery

	// DryRun is set in a dry run, nil otherwise.
	DryRun *DryRun

	// Try is the number of the current try over all deliveries, from 1. The retry step counts it.
	Try int

	group      *group                   // nil under a stock Watermill router
	received   *driver.Delivery         // as the transport returned it; settle copies the History back, which the transport reads
	ctx        deliveryContext          // the message's context, a field to save an allocation
	lastFailed atomic.Int64             // when its last try failed, in Unix nanoseconds; 0 for none
	breaker    breaker.Message          // the breaker's state of it; its ID is used in logs and Health, because steps may change the headers
	givenUp    bool                     // the retry policy has no try left
	retries    func(error) *RetryPolicy // set by the retry step: the policy for an error; nil before that
	waited     time.Duration            // between tries
	outcome    Outcome
	cause      error        // what a poisoned message failed with
	settled    atomic.Int32 // one of the states below
}

// The states of a delivery's settlement. The goroutine that moves it away from unsettled settles it, so it is settled once.
//
//	unsettled ── settle ──────────────► settled
//	   │  ▲                                ▲
//	   │  └─ Poison failed ─┐              │
//	   └──── Poison ──► poisoning ─────────┘ the poison queue has confirmed its copy
const (
	unsettled = iota
	poisoning
	settled
)

// DeliveryFrom returns the delivery in ctx, nil outside of a handler. It may be called concurrently.
func DeliveryFrom(ctx context.Context) *Delivery {
	d, _ := ctx.Value(deliveryKey{}).(*Delivery)
	return d
}

// NewContext returns a copy of ctx that carries d. Events that are published with it continue d's correlation and trace. The
// contexts of handlers carry their delivery already.
func (d *Delivery) NewContext(ctx context.Context) context.Context {
	return &deliveryContext{ctx, d}
}

// Attach returns the delivery in a message's context. Under a stock Watermill router, which has no deliveries, it makes one
// and puts it into the message's context.
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

// deliveryContext is a context that carries a delivery. It has values for keys of this package and of package driver. It is a
// field of the delivery, so it needs no allocation.
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

// Type returns the event type of the message: its ce_type, or its topic if it has none. If neither ends in a version, as with
// foreign producers, the version is that of the field [Config].VersionField in a JSON payload, if that is a string like "v2".
// Otherwise the version is 1. Type returns an error if the message has neither a ce_type nor a topic.
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

// bodyVersion returns the version in a top-level field like "version": "v2", else 1. It ignores numbers: they may mean
// something else, such as the revision of an aggregate.
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

// Handler returns the handler of the delivery. Under a stock Watermill router it has a name only.
func (d *Delivery) Handler() Handler {
	if d.group == nil {
		return Handler{Name: d.Group}
	}
	return d.group.handler
}

// Started returns when the router received the delivery. Under a stock Watermill router it returns the current time.
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

// Observers returns the bus's observers, none under a stock Watermill router.
func (d *Delivery) Observers() []Observer {
	if d.group == nil {
		return nil
	}
	return d.group.bus.cfg.Observers
}

// Codec returns the bus's codec, [JSON] under a stock Watermill router.
func (d *Delivery) Codec() Codec {
	if d.group == nil {
		return JSON{}
	}
	return d.group.bus.cfg.Codec
}

// Stopping returns a channel that is closed when the bus begins to stop. The handler's context stays alive until the drain
// timeout. A step that only waits should give the delivery back. It may be called concurrently.
func (d *Delivery) Stopping() <-chan struct{} {
	if d.group == nil {
		return nil
	}
	return d.group.bus.life.stopping
}

// Interrupted reports whether the handler's context was cancelled because the drain timeout has passed. An error after that
// is not a failure of the handler. Under a stock Watermill router, it reports whether the message's context is cancelled,
// which the router does when it closes. It may be called concurrently.
func (d *Delivery) Interrupted() bool {
	if d.Settler == nil {
		return errors.Is(d.Message.Context().Err(), context.Canceled)
	}
	return d.group != nil && d.group.bus.life.interrupted()
}

// Degraded records that a part of the group, such as its poison queue, does not work, or that it works again if reason is
// nil. [Bus.Health] reports it, and changes are logged.
func (d *Delivery) Degraded(part string, reason error) {
	if d.group == nil || !d.group.health.set(part, reason) {
		return
	}
	logger := d.group.bus.cfg.Logger
	if reason == nil {
		logger.Info("leat: recovered", "group", d.Group, "part", part)
	} else {
		logger.Warn("leat: degraded", "group", d.Group, "part", part, "error", reason)
	}
}

// newerPart is the part that a group reports as degraded while a message waits for a newer version of the service.
const newerPart = "newer version"

const (
	// newerRedelivery is the delay before a message of a newer version is redelivered.
	newerRedelivery = 30 * time.Second
	// newerReported is how long the group reports such a message after it was last redelivered.
	newerReported = 2 * newerRedelivery
)

// AwaitNewer returns the error with which a delivery must end if its handler takes older versions of its event only. The
// message is redelivered every 30 s, for at most limit since the first such delivery, and is then poisoned. These redeliveries
// neither count against the retry policy nor open the circuit breaker. [Bus.Health] reports them.
func (d *Delivery) AwaitNewer(err *NewerVersionError, limit time.Duration) error {
	if d.Settler == nil { // a stock Watermill router would redeliver the message at once
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
		if d.group.health.setUntil(newerPart, reason, now.Add(newerReported)) {
			d.group.bus.cfg.Logger.Warn("leat: degraded", "group", d.Group, "part", newerPart, "error", reason)
		}
	}
	return &Redelivery{After: min(newerRedelivery, left), Uncounted: true, Err: err}
}

// Poison moves the message to the group's poison queue and acks it. It blocks until the poison queue has confirmed the
// message, as long as ctx allows. After an error the delivery is not settled. It returns [ErrUnsupported] under a stock
// Watermill router.
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
	// poisonTimeout bounds the move to the poison queue. The handler's context does not: it may be done, and that may be the
	// reason why the message is poisoned.
	poisonTimeout = 10 * time.Second
	// poisonRetryAfter is the delay before a message is redelivered if its poison queue could not be reached.
	poisonRetryAfter = 2 * time.Second
	// poisonPart is the part that a group reports as degraded while its poison queue can't be reached.
	poisonPart = "poison queue"
)

// GiveUp moves a message that has failed permanently to the group's poison queue, with put, or with Poison if put is nil. If
// the poison queue can't be reached, GiveUp acks nothing, reports the group as degraded, and returns the [*Redelivery] with
// which the delivery must end. It blocks for at most ten seconds.
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
	err = errors.Join(cause, fmt.Errorf("poison queue: %w", err))
	return &Redelivery{After: poisonRetryAfter, Uncounted: true, Err: err}
}

// fault describes why the delivery has failed permanently.
func (d *Delivery) fault(cause error) driver.Fault {
	f := driver.NewFault(&d.Delivery, cause)
	f.Tries, f.Handler = max(d.Try, 1), d.Handler().Name
	return f
}

// AddWaited adds to the time that the worker has waited between tries. The retry step calls it, and so may other steps that
// retry in process.
func (d *Delivery) AddWaited(waited time.Duration) { d.waited += waited }

// Waited returns how long the worker has waited between tries of this delivery.
func (d *Delivery) Waited() time.Duration { return d.waited }

// Retried counts a retry in process, without a new delivery.
func (d *Delivery) Retried() {
	if d.group != nil {
		d.group.counts.retries.Add(1)
	}
}

// Panicked counts a panic of the handler or of a step. The step that recovers it calls Panicked.
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

// RetriedBy sets the function that returns the retry policy for an error, nil if there is no further try. The retry step calls
// it, so that the router can apply the policy to a handler that ends its goroutine: then no step runs any more.
func (d *Delivery) RetriedBy(policyFor func(error) *RetryPolicy) { d.retries = policyFor }

// GivenUp reports whether the retry policy had no try left in the last call of [Delivery.Failed].
func (d *Delivery) GivenUp() bool { return d.givenUp }

// Failed counts a failed try and applies the policy to it. If end is nil, another try follows after the delay after: in
// process, holding the worker, if inProcess is true, else as a redelivery. Otherwise the delivery must end with end:
//
//   - err itself if the policy has no try left, or
//   - an uncounted [*Redelivery] while the group's circuit breaker protects the message. Such a try does not count.
//
// [RetryAfter] can make the delay longer, but not shorter. The retry step calls Failed, and so may other steps that retry.
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

// nextTry describes the next try of a message that has failed.
type nextTry struct {
	after     time.Duration
	inProcess bool // wait in the worker, instead of giving the message back
	last      bool // there is no next try: the message would be poisoned
	asked     bool // the handler or a step asked for the delay
}

// fail records a failed try. It returns nil if next follows, else the error with which the delivery must end. The circuit
// breaker may protect the message; then the try does not count.
func (d *Delivery) fail(err error, next nextTry) error {
	now := time.Now()
	if d.Failures < 0 {
		d.Failures = RetryPolicy{}.FirstTry(d.Attempt) - 1
	}
	d.WaitingSince = time.Time{} // this version of the service takes the event
	d.lastFailed.Store(now.UnixNano())
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

// MarkPoisoned records that a step has moved the message to a poison queue by other means than Poison.
func (d *Delivery) MarkPoisoned(cause error) { d.outcome, d.cause = Poisoned, cause }

// MarkDuplicate records that the message was handled before, and that it is acked without calling the handler.
func (d *Delivery) MarkDuplicate() { d.outcome = Duplicate }

// Outcome returns how the delivery ends if the stack returns err.
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

// Cause returns the error of a poisoned message, else nil.
func (d *Delivery) Cause() error { return d.cause }

// settle tells the transport the outcome. Only the first call does anything.
func (d *Delivery) settle(outcome Outcome, err error) error {
	if !d.settled.CompareAndSwap(unsettled, settled) {
		return nil
	}
	if r, ok := errors.AsType[*Redelivery](err); ok && outcome == Redelivered && r.Err == nil && d.FailedSince.IsZero() {
		d.DueAgain = time.Now().Add(max(r.After, minSnooze))
	}
	if d.received != nil {
		d.received.History = d.History
	}
	switch outcome {
	case Interrupted:
		return d.Settler.GiveBack(0)
	case Redelivered:
		r, _ := errors.AsType[*Redelivery](err) // never nil: see group.decide
		if r.Uncounted || r.Err == nil {        // without an error it is a snooze
			return d.Settler.GiveBack(max(r.After, minSnooze)) // only a shutdown gives back at once
		}
		return d.Settler.Redeliver(r.After)
	default:
		return d.Settler.Ack()
	}
}

// minSnooze is the shortest delay of a message that its handler gives back. Without a delay it would be delivered before all
// others again, and they would never be handled.
const minSnooze = 100 * time.Millisecond
