package bus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// NewPublisher returns a Watermill publisher that publishes to a transport. Publish uses the context of its first message. As
// in Watermill, it is no error if no group has subscribed to a message, unless the transport is configured so. The transport
// may keep the messages, so the caller must not change them afterwards. Close does nothing: close the transport instead.
func NewPublisher(t Transport) message.Publisher { return lenientPublisher{publisher{t}} }

type lenientPublisher struct{ publisher }

func (p lenientPublisher) Publish(topic string, msgs ...*message.Message) error {
	err := p.publisher.Publish(topic, msgs...)
	if u, ok := asUnroutable(err); ok && !u.Strict {
		return nil
	}
	return err
}

// publisher adapts the Publish method of a transport to message.Publisher. It returns all errors of the transport.
type publisher struct {
	transport interface {
		Publish(ctx context.Context, topic string, msgs ...*message.Message) error
	}
}

func (p publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	for _, msg := range msgs {
		if err := driver.RefusePrivate(msg); err != nil {
			return fmt.Errorf("bus: publish %s: %w", topic, err)
		}
	}
	return p.transport.Publish(msgs[0].Context(), topic, msgs...)
}

func (p publisher) Close() error { return nil }

// NewSubscriber returns a Watermill subscriber that subscribes to a transport. Each topic has its own group, <group>.<topic>.
// Each call of Subscribe consumes one message at a time; further calls and processes are competing consumers.
//
// A nack counts as an attempt. The message is redelivered before all later ones, after a delay that begins at 100 ms and
// doubles each time, up to 10 s; see [NackPause].
//
// When the subscriber is closed or the context of Subscribe ends, no further message is delivered. A message that is being
// handled may be acked or nacked for another 10 s. Then its context is cancelled, and a second later the message is given
// back. Close blocks until that is done. It does not close the transport.
func NewSubscriber(t Transport, group string, opts ...SubscriberOption) message.Subscriber {
	s := &subscriber{transport: t, group: group, longestPause: 10 * time.Second}
	for _, opt := range opts {
		opt(s)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// SubscriberOption changes what [NewSubscriber] makes.
type SubscriberOption func(*subscriber)

// NackPause sets the longest delay before a nacked message is redelivered, in place of 10 s.
func NackPause(longest time.Duration) SubscriberOption {
	return func(s *subscriber) { s.longestPause = longest }
}

type subscriber struct {
	transport    Transport
	group        string
	longestPause time.Duration
	ctx          context.Context
	cancel       context.CancelFunc
	wg           sync.WaitGroup
}

// SubscribeInitialize creates the group, so that messages published from now on wait in it.
func (s *subscriber) SubscribeInitialize(topic string) error {
	receiver, err := s.receiver(s.ctx, topic)
	if err != nil {
		return err
	}
	return receiver.Close(s.ctx)
}

func (s *subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("bus: subscribe %s: %w", topic, ErrClosed)
	}
	receiver, err := s.receiver(ctx, topic)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	out := make(chan *message.Message)
	s.wg.Go(func() {
		defer close(out)
		defer cancel()
		defer stop()
		defer func() { _ = receiver.Close(context.WithoutCancel(ctx)) }()
		for s.forward(ctx, receiver, out) {
		}
	})
	return out, nil
}

func (s *subscriber) receiver(ctx context.Context, topic string) (driver.Receiver, error) {
	sub := driver.Subscription{Group: s.group + "." + topic, Topics: []string{topic}, Known: []string{topic}, Concurrency: 1}
	if err := sub.Validate(); err != nil {
		return nil, fmt.Errorf("bus: subscribe %s: %w", topic, err)
	}
	return s.transport.Subscribe(ctx, sub)
}

// forward delivers one message, blocks until it is acked or nacked, and settles it. It reports whether to continue.
func (s *subscriber) forward(ctx context.Context, receiver driver.Receiver, out chan<- *message.Message) bool {
	d, err := receiver.Next(ctx)
	if err != nil {
		return false
	}
	msg := message.NewMessage(d.Message.UUID, d.Message.Payload)
	msg.Metadata = d.Message.Metadata
	driver.DropPrivate(msg.Metadata)
	settler := d.Settler
	d.Message, d.Settler = msg, nil                                  // only Ack and Nack of the message settle it
	msgCtx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // it outlives ctx; see finish
	defer cancel()
	msg.SetContext(&deliveryContext{msgCtx, &Delivery{Delivery: *d}})

	select {
	case out <- msg:
	case <-ctx.Done():
		_ = settler.GiveBack(0)
		return false
	}
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-ctx.Done():
		finish(msg, cancel)
	}
	select {
	case <-msg.Acked():
		_ = settler.Ack()
	case <-msg.Nacked():
		s.pauseAfterNack(ctx, d.Attempt)
		_ = settler.Redeliver(0)
	default:
		_ = settler.GiveBack(0)
	}
	return ctx.Err() == nil
}

// subscriberGrace is how long a message may still be handled after its subscriber was closed.
const subscriberGrace = 10 * time.Second

// finish gives a message subscriberGrace to be settled after its subscriber was closed. Then it cancels the message's context
// and waits for interruptGrace.
func finish(msg *message.Message, cancel context.CancelFunc) {
	if settledWithin(msg, subscriberGrace) {
		return
	}
	cancel()
	settledWithin(msg, interruptGrace)
}

func settledWithin(msg *message.Message, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-msg.Acked():
		return true
	case <-msg.Nacked():
		return true
	case <-timer.C:
		return false
	}
}

// pauseAfterNack waits before a nacked message is redelivered. A delayed redelivery would let later messages overtake it.
func (s *subscriber) pauseAfterNack(ctx context.Context, attempt int) {
	timer := time.NewTimer(min(100*time.Millisecond<<min(attempt-1, 20), s.longestPause))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *subscriber) Close() error {
	s.cancel()
	s.wg.Wait()
	return nil
}
