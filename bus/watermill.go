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

// Watermill puts a Watermill Pub/Sub under a bus. It promises no more than the Pub/Sub does: no
// patterns (a handler is subscribed to the versions it knows), no order by key, attempts counted in
// this process only and for the last few thousand messages that failed, a delayed redelivery that holds the message until its time, and a poison queue
// that is a topic, <group>.poison.
type Watermill struct {
	Publisher message.Publisher
	// Subscriber makes the subscriber of a group; in Watermill, the consumer group is part of the
	// construction. It is called once for each Subscribe.
	Subscriber func(group string) (message.Subscriber, error)
	// Durable says that messages outlive the process.
	Durable bool
}

// Transport returns the Pub/Sub as a transport.
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

	mu       sync.Mutex // guards what follows; feeds are closed under it, so they must not need it
	feeds    []*watermillReceiver
	closeErr error
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
	f := &watermillReceiver{transport: t, sub: sub, group: s.Group, out: make(chan *driver.Delivery)}
	f.ctx, f.cancel = context.WithCancel(t.ctx)
	for _, topic := range s.Known {
		msgs, err := sub.Subscribe(f.ctx, topic)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe %s: %w", topic, err), f.Close(f.ctx))
		}
		f.wg.Go(func() { f.forward(topic, msgs) })
	}
	t.feeds = append(t.feeds, f)
	return f, nil
}

func (t *watermillTransport) PoisonQueue(string) driver.PoisonQueue { return unsupportedPoisonQueue{} }

func (t *watermillTransport) Close(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return t.closeErr
	}
	t.cancel()
	for _, f := range t.feeds {
		t.closeErr = errors.Join(t.closeErr, f.Close(ctx))
	}
	t.closeErr = errors.Join(t.closeErr, t.Publisher.Close())
	return t.closeErr
}

// maxNacked bounds the memory of nackedMessages: another process may ack what was nacked in this one.
const maxNacked = 8192

// nackedMessages remembers what became of messages that were nacked and not acked since. The zero value is ready.
// It has two generations. When the young one is half full, it becomes the old one, and what was in the old
// one is forgotten; whatever is nacked again is young again.
type nackedMessages struct {
	mu         sync.Mutex
	young, old map[nackedKey]nacked
}

type nackedKey struct{ group, id string }

// nacked is what is known of a message that is handed out again.
type nacked struct {
	attempts int // that counted
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

func (f *watermillReceiver) forward(topic string, msgs <-chan *message.Message) {
	for msg := range msgs {
		if msg.Metadata == nil {
			msg.Metadata = message.Metadata{}
		}
		if !strings.HasSuffix(topic, poisonSuffix) { // where Poison writes them
			driver.DropPrivate(msg.Metadata)
		}
		id := driver.MessageID(msg)
		last := f.transport.nacked.of(f.group, id)
		d := &driver.Delivery{
			Message: msg, Topic: topic, Group: f.group,
			Attempt: last.attempts + 1, History: last.history,
		}
		d.Settler = &watermillSettler{receiver: f, delivery: d, id: id}
		select {
		case f.out <- d:
		case <-f.ctx.Done():
			msg.Nack()
		}
	}
}

func (f *watermillReceiver) Next(ctx context.Context) (*driver.Delivery, error) {
	select {
	case d := <-f.out:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.ctx.Done():
		return nil, ErrClosed
	}
}

func (f *watermillReceiver) Close(context.Context) error {
	f.closeOnce.Do(func() {
		f.cancel()
		f.closeErr = f.sub.Close()
		f.wg.Wait()
	})
	return f.closeErr
}

type watermillSettler struct {
	receiver *watermillReceiver
	delivery *driver.Delivery
	id       string // the message's: steps may change its headers
}

// remember keeps what the next hand-over must know.
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

// unsupportedPoisonQueue is the poison queue of a transport that has none to look into.
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
