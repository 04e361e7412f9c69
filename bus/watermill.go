package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Watermill makes a [Transport] of a Watermill Pub/Sub. It supports no more than the Pub/Sub does:
//
//   - There are no patterns: a handler is subscribed to the event versions that it knows.
//   - There is no order by key.
//   - Attempts are counted in this process only, for the last few thousand messages that failed.
//   - A message with a delayed redelivery is not nacked before the delay has passed.
//   - The poison queue is a topic, <group>.poison.
type Watermill struct {
	Publisher message.Publisher
	// Subscriber returns the subscriber of a group. In Watermill, a subscriber is constructed for one consumer group. It is
	// called once for each subscription.
	Subscriber func(group string) (message.Subscriber, error)
	// Durable says that messages outlive the process.
	Durable bool
}

// Transport returns a transport over the Pub/Sub. Closing it closes the Publisher and the subscribers.
func (w Watermill) Transport() Transport {
	t := &watermillTransport{Watermill: w}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

type watermillTransport struct {
	Watermill
	ctx    context.Context
	cancel context.CancelFunc

	nacked nackedMessages

	mu        sync.Mutex // guards the fields below; it is held while receivers are closed
	receivers []*watermillReceiver
	closeErr  error
}

func (t *watermillTransport) Capabilities() driver.Capabilities {
	return driver.Capabilities{Durable: t.Durable}
}

func (t *watermillTransport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if t.ctx.Err() != nil {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, msg := range msgs {
		msg.SetContext(ctx)
	}
	return t.Publisher.Publish(topic, msgs...)
}

func (t *watermillTransport) Subscribe(_ context.Context, s driver.Subscription) (driver.Receiver, error) {
	if err := t.Capabilities().Check(s); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, ErrClosed
	}
	sub, err := t.Watermill.Subscriber(s.Group)
	if err != nil {
		return nil, fmt.Errorf("subscriber of group %q: %w", s.Group, err)
	}
	r := &watermillReceiver{transport: t, sub: sub, group: s.Group, out: make(chan *driver.Delivery)}
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	for _, topic := range s.Known {
		msgs, err := sub.Subscribe(r.ctx, topic)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe %s: %w", topic, err), r.Close(r.ctx))
		}
		r.wg.Go(func() { r.forward(topic, msgs) })
	}
	t.receivers = append(t.receivers, r)
	return r, nil
}

func (t *watermillTransport) PoisonQueue(string) driver.PoisonQueue { return unsupportedPoisonQueue{} }

func (t *watermillTransport) Close(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return t.closeErr
	}
	t.cancel()
	for _, r := range t.receivers {
		t.closeErr = errors.Join(t.closeErr, r.Close(ctx))
	}
	t.closeErr = errors.Join(t.closeErr, t.Publisher.Close())
	return t.closeErr
}

// maxNacked bounds the memory of nackedMessages: a message that was nacked here may be acked in another process.
const maxNacked = 8192

// nackedMessages remembers attempts and history of messages that were nacked and have not been acked since, at most maxNacked.
// The zero value is ready to use. It has two generations: when the young one has maxNacked/2 messages, it becomes the old
// one, and the former old one is dropped. A message that is nacked again moves to the young one.
type nackedMessages struct {
	mu         sync.Mutex
	young, old map[nackedKey]nacked
}

type nackedKey struct{ group, id string }

// nacked has what the next delivery of a nacked message needs.
type nacked struct {
	attempts int // attempts so far that count
	history  driver.History
}

func (h *nackedMessages) of(group, id string) nacked {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := nackedKey{group, id}
	if last, ok := h.young[key]; ok {
		return last
	}
	return h.old[key]
}

// set remembers a message, or forgets it if there is nothing to remember.
func (h *nackedMessages) set(group, id string, last nacked) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := nackedKey{group, id}
	delete(h.old, key)
	if last == (nacked{}) {
		delete(h.young, key)
		return
	}
	if h.young == nil || len(h.young) >= maxNacked/2 {
		h.young, h.old = make(map[nackedKey]nacked), h.young
	}
	h.young[key] = last
}

type watermillReceiver struct {
	transport *watermillTransport
	sub       message.Subscriber
	group     string
	out       chan *driver.Delivery
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

func (r *watermillReceiver) forward(topic string, msgs <-chan *message.Message) {
	for msg := range msgs {
		if msg.Metadata == nil {
			msg.Metadata = message.Metadata{}
		}
		if !strings.HasSuffix(topic, poisonSuffix) { // Poison writes them to that topic
			driver.DropPrivate(msg.Metadata)
		}
		id := driver.MessageID(msg)
		last := r.transport.nacked.of(r.group, id)
		d := &driver.Delivery{
			Message: msg, Topic: topic, Group: r.group,
			Attempt: last.attempts + 1, History: last.history,
		}
		d.Settler = &watermillSettler{receiver: r, delivery: d, id: id}
		select {
		case r.out <- d:
		case <-r.ctx.Done():
			msg.Nack()
		}
	}
}

func (r *watermillReceiver) Next(ctx context.Context) (*driver.Delivery, error) {
	select {
	case d := <-r.out:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ctx.Done():
		return nil, ErrClosed
	}
}

func (r *watermillReceiver) Close(context.Context) error {
	r.closeOnce.Do(func() {
		r.cancel()
		r.closeErr = r.sub.Close()
		r.wg.Wait()
	})
	return r.closeErr
}

type watermillSettler struct {
	receiver *watermillReceiver
	delivery *driver.Delivery
	id       string // the message's id at its delivery: steps may change its headers
}

// remember stores what the next delivery of the message needs.
func (s *watermillSettler) remember(attempts int) {
	s.receiver.transport.nacked.set(s.receiver.group, s.id, nacked{attempts, s.delivery.History})
}

func (s *watermillSettler) Ack() error {
	s.receiver.transport.nacked.set(s.receiver.group, s.id, nacked{})
	s.delivery.Message.Ack()
	return nil
}

func (s *watermillSettler) Redeliver(after time.Duration) error {
	s.remember(s.delivery.Attempt)
	s.nack(after)
	return nil
}

func (s *watermillSettler) GiveBack(after time.Duration) error {
	s.remember(s.delivery.Attempt - 1)
	s.nack(after)
	return nil
}

func (s *watermillSettler) nack(after time.Duration) {
	if after <= 0 {
		s.delivery.Message.Nack()
		return
	}
	time.AfterFunc(after, func() { s.delivery.Message.Nack() })
}

func (s *watermillSettler) Poison(ctx context.Context, fault driver.Fault) error {
	dead := s.delivery.Message.Copy()
	fault.Set(dead.Metadata)
	dead.SetContext(ctx)
	if err := s.receiver.transport.Publisher.Publish(s.receiver.group+poisonSuffix, dead); err != nil {
		return err
	}
	return s.Ack()
}

// poisonSuffix ends the topic to which a group's messages are poisoned.
const poisonSuffix = ".poison"

// unsupportedPoisonQueue is the poison queue of a transport whose poison queues can't be read.
type unsupportedPoisonQueue struct{}

func (unsupportedPoisonQueue) List(context.Context, string, int) ([]PoisonedMessage, error) {
	return nil, ErrUnsupported
}

func (unsupportedPoisonQueue) Get(context.Context, string) (PoisonedMessage, error) {
	return PoisonedMessage{}, ErrUnsupported
}

func (unsupportedPoisonQueue) Put(context.Context, ...PoisonedMessage) error {
	return ErrUnsupported
}

func (unsupportedPoisonQueue) Replay(context.Context, ...string) (int, error) {
	return 0, ErrUnsupported
}

func (unsupportedPoisonQueue) Drop(context.Context, ...string) (int, error) {
	return 0, ErrUnsupported
}

func (unsupportedPoisonQueue) Len(context.Context) (int, error) { return 0, ErrUnsupported }
