package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Publish encodes an event and hands it to the transport. It returns nil when the event is safe
// there: queued in memory, confirmed by the broker, committed in the database. It blocks while the transport is full or
// away, for as long as ctx and [Config.PublishTimeout] allow. Inside a handler, pass the handler's context: the
// correlation and the trace go on.
//
// An event that no group wants is counted and logged, and is no error unless [RequireRoute] or the
// transport's configuration says so.
func (b *Bus) Publish(ctx context.Context, e Event, opts ...PublishOption) error {
	p := newPublication(opts)
	msg, err := b.encoder.encode(ctx, e, p)
	if err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.publishRuns(ctx, p.requireRoute, []*message.Message{msg})
}

// PublishAll publishes events in their order, and none if one of them can't be encoded. Runs of
// events of one type go to the transport together, which is faster than one by one. A [*PublishError]
// in the error names the messages that are not known to be safe. After another error none is, unless it
// is an [*UnroutableError]: then all are, and no group wants them.
func (b *Bus) PublishAll(ctx context.Context, events []Event, opts ...PublishOption) error {
	msgs, p, err := b.encodeAll(ctx, events, opts)
	if err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.publishRuns(ctx, p.requireRoute, msgs)
}

// encodeAll encodes all events or none.
func (b *Bus) encodeAll(ctx context.Context, events []Event, opts []PublishOption) ([]*message.Message, publication, error) {
	p := newPublication(opts)
	if p.id != "" && len(events) > 1 {
		return nil, p, errors.New("the option ID is for one event; publish them one by one")
	}
	msgs := make([]*message.Message, len(events))
	for i, e := range events {
		msg, err := b.encoder.encode(ctx, e, p)
		switch {
		case err != nil && len(events) > 1:
			return nil, p, fmt.Errorf("event %d of %d: %w", i+1, len(events), err)
		case err != nil:
			return nil, p, err
		}
		msgs[i] = msg
	}
	return msgs, p, nil
}

// PublishMessages publishes messages that are encoded already, such as those [ParseCloudEvent] reads,
// each to its ce_type. Their headers are kept. The bus owns the messages from now on.
func (b *Bus) PublishMessages(ctx context.Context, msgs ...*message.Message) error {
	if err := b.adopt(msgs); err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.publishRuns(ctx, false, msgs)
}

// adopt makes messages the bus's own.
func (b *Bus) adopt(msgs []*message.Message) error {
	for i, msg := range msgs {
		if msg == nil {
			return fmt.Errorf("message %d of %d: message is nil", i+1, len(msgs))
		}
		if msg.Metadata == nil {
			msg.Metadata = message.Metadata{}
		}
		if err := driver.ValidateTopic(driver.TopicOf(msg)); err != nil {
			return fmt.Errorf("message %s: its %s: %w", driver.MessageID(msg), driver.HeaderType, err)
		}
		if err := driver.RefusePrivate(msg); err != nil {
			return err
		}
		msg.Metadata[driver.HeaderInstance] = b.encoder.Instance
	}
	return nil
}

// publishRuns publishes nothing where one of the messages may not be.
func (b *Bus) publishRuns(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	if err := b.mayPublish(ctx, msgs); err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	if keptInDryRun(ctx, msgs) {
		return nil
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	return eachRun(msgs, func(topic string, run []*message.Message) error {
		if err := b.subscribe(ctx); err != nil {
			return fmt.Errorf("bus: publish %s: %w", topic, err)
		}
		return b.publishFor(ctx, b.table.Match(topic), requireRoute, topic, run)
	})
}

// eachRun publishes each run of messages of one topic in one call, and stops at the first error. That
// error names all messages that are not known to be safe, those that were not tried included.
func eachRun(msgs []*message.Message, publish func(topic string, run []*message.Message) error) error {
	for start := 0; start < len(msgs); {
		topic, end := driver.TopicOf(msgs[start]), start+1
		for end < len(msgs) && driver.TopicOf(msgs[end]) == topic {
			end++
		}
		if err := publish(topic, msgs[start:end]); err != nil {
			if start == 0 && end == len(msgs) {
				return err // it speaks of the whole call
			}
			return runFailed(err, msgs[start:end], msgs[end:])
		}
		start = end
	}
	return nil
}

// runFailed adds to the error of a run what was to be published after it.
func runFailed(err error, run, rest []*message.Message) error {
	failed := slices.Concat(notSafe(err, run), rest)
	if len(failed) == 0 {
		return err
	}
	if len(rest) > 0 {
		err = fmt.Errorf("%w (and %d messages behind were not tried)", err, len(rest))
	}
	return &runError{err, &PublishError{Failed: failed, Err: err}}
}

// runError reads as the error of its run, and is a [PublishError] of the whole call.
type runError struct {
	error
	publish *PublishError
}

func (e *runError) Unwrap() error { return e.publish }

// publishFor publishes through the publish middleware, for the bus's own groups that expect
// the messages.
func (b *Bus) publishFor(ctx context.Context, groups []*group, requireRoute bool, topic string, msgs []*message.Message) error {
	return b.account(ctx, groups, requireRoute, topic, msgs, b.send)
}

// account sends, and keeps the account of it. It is the one way to the transport.
func (b *Bus) account(ctx context.Context, groups []*group, requireRoute bool, topic string, msgs []*message.Message,
	send func(context.Context, string, []*message.Message) error,
) error {
	b.ledger.expect(groups, len(msgs))
	failed := len(msgs) // if a step of the publish middleware panics, too
	defer func() {
		if failed > 0 {
			b.ledger.expect(groups, -failed)
		}
	}()
	var began time.Time
	if len(b.cfg.Observers) > 0 {
		began = time.Now()
	}
	err := send(ctx, topic, msgs)

	unrouted := 0
	if u, ok := asUnroutable(err); ok {
		unrouted = len(u.Topics)
		b.ledger.unrouted.Add(uint64(unrouted))
		b.warnUnrouted(topic)
		if !u.Strict && !requireRoute {
			err = nil
		}
	}
	failed = len(notSafe(err, msgs))
	b.ledger.published.Add(uint64(len(msgs) - failed)) //nolint:gosec // never more than there are
	if err != nil {
		err = fmt.Errorf("bus: publish %s: %w", topic, err)
	}
	if len(b.cfg.Observers) > 0 {
		p := Publication{Topic: topic, Messages: msgs, Took: time.Since(began), Err: err, Unrouted: unrouted}
		for _, o := range b.cfg.Observers {
			o.Published(ctx, p)
		}
	}
	return err
}

func (b *Bus) mayPublish(ctx context.Context, msgs []*message.Message) error {
	if b.isClosed() && DeliveryFrom(ctx) == nil {
		return ErrClosed
	}
	if !b.durable && b.isStopping() && DeliveryFrom(ctx) == nil {
		return fmt.Errorf("the bus is stopping, and its transport would lose the message: %w", ErrClosed)
	}
	for _, msg := range msgs {
		if msg.Metadata[driver.HeaderDeliverAt] != "" && !b.transport.Capabilities().Delay {
			return fmt.Errorf("message %s asks for a delay: %w", driver.MessageID(msg), ErrUnsupported)
		}
	}
	return b.checkSizes(msgs)
}

func (b *Bus) checkSizes(msgs []*message.Message) error {
	for _, msg := range msgs {
		if len(msg.Payload) > b.cfg.MaxPayload {
			return fmt.Errorf("message %s has a payload of %d bytes; at most %d are allowed "+
				"(raise Config.MaxPayload, or publish a reference to the data)", driver.MessageID(msg), len(msg.Payload), b.cfg.MaxPayload)
		}
	}
	return nil
}

// decorate puts the publish middleware around the transport. Watermill's publishers take no context,
// so it travels with the messages.
func (b *Bus) decorate(decorators []message.PublisherDecorator) (func(context.Context, string, []*message.Message) error, error) {
	if len(decorators) == 0 {
		return func(ctx context.Context, topic string, msgs []*message.Message) error {
			return handOver{b}.Publish(ctx, topic, msgs...)
		}, nil
	}
	var publisher message.Publisher = publisher{handOver{b}}
	for i, decorate := range slices.Backward(decorators) {
		if decorate == nil {
			return nil, fmt.Errorf("bus: publish middleware %d of %d is nil", i+1, len(decorators))
		}
		decorated, err := decorate(publisher)
		if err != nil {
			return nil, fmt.Errorf("bus: publish middleware %d: %w", i+1, err)
		}
		if decorated == nil {
			return nil, fmt.Errorf("bus: publish middleware %d returns no publisher", i+1)
		}
		publisher = decorated
	}
	return func(ctx context.Context, topic string, msgs []*message.Message) error {
		for _, msg := range msgs {
			msg.SetContext(ctx)
		}
		return publisher.Publish(topic, msgs...)
	}, nil
}

// notSafe returns the messages that are not known to be safe: all of them, unless the error says which.
func notSafe(err error, msgs []*message.Message) []*message.Message {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*PublishError](err); ok {
		return p.Failed
	}
	if errors.Is(err, ErrUnroutable) { // safe, though nobody wants them
		return nil
	}
	return msgs
}

func asUnroutable(err error) (*UnroutableError, bool) {
	if err == nil {
		return nil, false
	}
	var u *UnroutableError
	ok := errors.As(err, &u)
	return u, ok
}

// maxLoggedNames bounds what is remembered of names that foreign input chooses.
const maxLoggedNames = 4096

// loggedNames remembers names that were logged, up to a bound.
type loggedNames struct {
	mu   sync.Mutex
	seen map[string]bool
}

// first reports whether the name is to be logged: it was not before, and there is room to remember it.
func (l *loggedNames) first(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[name] || len(l.seen) >= maxLoggedNames {
		return false
	}
	if l.seen == nil {
		l.seen = make(map[string]bool)
	}
	l.seen[name] = true
	return true
}

func (b *Bus) warnUnrouted(topic string) {
	if b.unrouted.first(topic) {
		b.cfg.Logger.Warn("leat: no group wants this topic; its messages are counted as unrouted (said once a topic)", "topic", driver.OneLine(topic, driver.MaxClassBytes))
	}
}
