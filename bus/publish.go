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

// Publish encodes an event and publishes it on the transport. It returns nil when the event is safe there: queued in
// memory, confirmed by the broker, or committed in the database. It blocks while the transport is full or disconnected, until
// ctx is done or [Config.PublishTimeout] passes. Inside a handler, pass the handler's context: the event then continues the
// correlation and the trace of the message being handled.
//
// An event that no group has subscribed to is counted and logged. It is an error, an [*UnroutableError], only with
// [RequireRoute] or if the transport is configured so. After [Bus.Close], Publish returns [ErrClosed].
func (b *Bus) Publish(ctx context.Context, e Event, opts ...PublishOption) error {
	p := newPublication(opts)
	msg, err := b.encoder.encode(ctx, e, p)
	if err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.sender.publishRuns(ctx, p.requireRoute, []*message.Message{msg})
}

// PublishAll publishes events in their order, and none of them if one can't be encoded. Consecutive events of one type are
// published in one call of the transport, which is faster than one by one. It blocks as [Bus.Publish] does.
//
// If the error has a [*PublishError], that one names the messages that are not known to be safe; the others are safe. After
// an [*UnroutableError] all messages are safe, but no group has subscribed to them. After any other error none of the
// messages is known to be safe.
func (b *Bus) PublishAll(ctx context.Context, events []Event, opts ...PublishOption) error {
	msgs, p, err := b.encoder.encodeAll(ctx, events, opts)
	if err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.sender.publishRuns(ctx, p.requireRoute, msgs)
}

// PublishMessages publishes messages that are encoded already, such as those that [ParseCloudEvent] returns. The topic of
// each is its ce_type. Their headers are kept. The bus owns the messages from now on. It blocks, and returns errors, as
// [Bus.PublishAll] does.
func (b *Bus) PublishMessages(ctx context.Context, msgs ...*message.Message) error {
	if err := b.encoder.prepare(msgs); err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	return b.sender.publishRuns(ctx, false, msgs)
}

// A sender publishes the messages of a bus: through the checks, the in-flight tracking, the observers and the publish middleware
// to the transport, or in a transaction.
type sender struct {
	cfg       *Config
	transport Transport
	durable   bool // the transport is
	groups    *groups
	life      *lifecycle
	tracking  *tracking
	send      func(ctx context.Context, topic string, msgs []*message.Message) error // through the publish middleware
	unrouted  loggedNames
}

// publishRuns publishes all messages, or none if one of them must not be published.
func (s *sender) publishRuns(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	if err := s.checkPublish(ctx, msgs); err != nil {
		return fmt.Errorf("bus: publish: %w", err)
	}
	if captureDryRun(ctx, msgs) {
		return nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return eachRun(msgs, func(topic string, run []*message.Message) error {
		if err := s.groups.subscribe(ctx); err != nil {
			return fmt.Errorf("bus: publish %s: %w", topic, err)
		}
		return s.publishFor(ctx, s.groups.table.Match(topic), requireRoute, topic, run)
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
				return err // it covers the whole call
			}
			return runFailed(err, msgs[start:end], msgs[end:])
		}
		start = end
	}
	return nil
}

// runFailed adds the messages that were to be published after the run to the run's error.
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
func (s *sender) publishFor(ctx context.Context, groups []*group, requireRoute bool, topic string, msgs []*message.Message) error {
	return s.publishTracked(ctx, groups, requireRoute, topic, msgs, s.send)
}

// publishTracked calls send, counts the messages, and calls the observers. Everything that the bus publishes goes through it.
func (s *sender) publishTracked(ctx context.Context, groups []*group, requireRoute bool, topic string, msgs []*message.Message,
	send func(context.Context, string, []*message.Message) error,
) error {
	s.tracking.expect(groups, len(msgs))
	failed := len(msgs) // unless send returns; the publish middleware may panic
	defer func() {
		if failed > 0 {
			s.tracking.expect(groups, -failed)
		}
	}()
	var began time.Time
	if len(s.cfg.Observers) > 0 {
		began = time.Now()
	}
	err := send(ctx, topic, msgs)

	unrouted := 0
	if u, ok := asUnroutable(err); ok {
		unrouted = len(u.Topics)
		s.tracking.unrouted.Add(uint64(unrouted))
		s.warnUnrouted(topic)
		if !u.Strict && !requireRoute {
			err = nil
		}
	}
	failed = len(notSafe(err, msgs))
	s.tracking.published.Add(uint64(len(msgs) - failed)) //nolint:gosec // never more than there are
	if err != nil {
		err = fmt.Errorf("bus: publish %s: %w", topic, err)
	}
	if len(s.cfg.Observers) > 0 {
		p := Publication{Topic: topic, Messages: msgs, Took: time.Since(began), Err: err, Unrouted: unrouted}
		for _, o := range s.cfg.Observers {
			o.Published(ctx, p)
		}
	}
	return err
}

func (s *sender) checkPublish(ctx context.Context, msgs []*message.Message) error {
	if s.life.isClosed() && DeliveryFrom(ctx) == nil {
		return ErrClosed
	}
	if !s.durable && s.life.isStopping() && DeliveryFrom(ctx) == nil {
		return fmt.Errorf("the bus is stopping, and its transport would lose the message: %w", ErrClosed)
	}
	for _, msg := range msgs {
		if msg.Metadata[driver.HeaderDeliverAt] != "" && !s.transport.Capabilities().Delay {
			return fmt.Errorf("message %s asks for a delay: %w", driver.MessageID(msg), ErrUnsupported)
		}
	}
	return s.checkSizes(msgs)
}

func (s *sender) checkSizes(msgs []*message.Message) error {
	for _, msg := range msgs {
		if len(msg.Payload) > s.cfg.MaxPayload {
			return fmt.Errorf("message %s has a payload of %d bytes; at most %d are allowed "+
				"(raise Config.MaxPayload, or publish a reference to the data)", driver.MessageID(msg), len(msg.Payload), s.cfg.MaxPayload)
		}
	}
	return nil
}

// decorate wraps the transport in the publish middleware. Watermill's publishers take no context, so the messages carry it.
func (s *sender) decorate(decorators []message.PublisherDecorator) (func(context.Context, string, []*message.Message) error, error) {
	if len(decorators) == 0 {
		return func(ctx context.Context, topic string, msgs []*message.Message) error {
			return transportPublisher{s}.Publish(ctx, topic, msgs...)
		}, nil
	}
	var publisher message.Publisher = publisher{transportPublisher{s}}
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

// notSafe returns the messages that are not known to be safe: all of them, unless the error names some.
func notSafe(err error, msgs []*message.Message) []*message.Message {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*PublishError](err); ok {
		return p.Failed
	}
	if errors.Is(err, ErrUnroutable) { // safe, but no group has subscribed to them
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

// maxLoggedNames bounds the memory of loggedNames: foreign producers choose the names.
const maxLoggedNames = 4096

// loggedNames remembers which names were logged, at most maxLoggedNames of them.
type loggedNames struct {
	mu   sync.Mutex
	seen map[string]bool
}

// first reports whether to log the name: it was not logged before, and there is room to remember it. last is true for the name
// that takes the last room: the caller then logs that it logs no others.
func (l *loggedNames) first(name string) (first, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[name] || len(l.seen) >= maxLoggedNames {
		return false, false
	}
	if l.seen == nil {
		l.seen = make(map[string]bool)
	}
	l.seen[name] = true
	return true, len(l.seen) == maxLoggedNames
}

func (s *sender) warnUnrouted(topic string) {
	first, last := s.unrouted.first(topic)
	if first {
		s.cfg.Logger.Warn("leat: no group subscribes to this topic; its messages are counted as unrouted (logged once per topic)", "topic", driver.OneLine(topic, driver.MaxClassBytes))
	}
	if last {
		s.cfg.Logger.Warn("leat: no group subscribes to many topics; more of them are counted only, and not logged")
	}
}
