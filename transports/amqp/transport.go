package amqp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// A Transport is a [driver.Transport] on RabbitMQ. Its methods may be called concurrently.
type Transport struct {
	lifetime

	spillFailed sync.Once // logs that no temporary file can be written
	createSpill func() (spillStore, error)
	cfg         Config
	topology    *declaredTopology
	publishing  *link
	consuming   *link
	extra       []*link // of groups with a connection of their own; guarded by mu
	publisher   *publisher
	poison      sync.Map // *poisonQueue by group
	migration   sync.Once

	counts   counter
	open     []subscription // guarded by mu
	finished chan struct{}  // closed at the end of Close
}

var _ driver.Transport = (*Transport)(nil)

// Open opens a transport for a URL; see the package documentation. It blocks until the broker has answered and everything is
// declared, as long as ctx and connect_timeout allow.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	cfg, err := ConfigFromURL(u)
	if err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	cfg.Logger = driver.LoggerFrom(ctx)
	t, err := New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// New returns a transport. It blocks as Open does.
func New(ctx context.Context, cfg Config) (*Transport, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if cfg.stock != nil {
		cfg.Logger.Info("leat: amqp: topology of a Watermill service", "limits", cfg.stock.limits())
	}
	t := &Transport{cfg: cfg, finished: make(chan struct{}), createSpill: newTemporaryFile, counts: counter{turn: make(chan struct{}, 1)}}
	t.topology = newTopology(&t.cfg)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if t.publishing, err = openLink(ctx, t.cfg, "publish"); err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if !t.cfg.Operator {
		err = t.publishing.withChannel(ctx, t.topology.declareShared)
	}
	if err != nil {
		t.publishing.close(ctx)
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if t.consuming, err = openLink(ctx, t.cfg, "consume"); err != nil {
		t.publishing.close(ctx)
		return nil, fmt.Errorf("amqp: %w", err)
	}
	t.publisher = newPublisher(t.publishing, t.topology, &t.lifetime)
	t.work.Go(t.assertDelays)
	return t, nil
}

// assertDelays declares the levels of the delays again and again: if a part of them is deleted, messages are delivered too early.
func (t *Transport) assertDelays() {
	for sleep(t.ctx, delayAssertInterval) == nil {
		for _, set := range t.topology.allLevels() {
			err := t.consuming.withChannel(t.ctx, func(ch *amqp.Channel) error { return set.declare(t.ctx, t.topology.declarer(ch)) })
			if err != nil && t.ctx.Err() == nil {
				t.cfg.Logger.Error("leat: amqp: the queues for delays can't be declared", "error", err)
			}
		}
	}
}

// Capabilities returns all capabilities. With topology=watermill there are no patterns, and no order, because the queues have no
// single active consumer.
func (t *Transport) Capabilities() driver.Capabilities {
	leat := !t.topology.watermill()
	return driver.Capabilities{Durable: true, Delay: true, Patterns: leat, ByKey: leat, Strict: leat, Park: leat, Poison: true}
}

// Publish returns when the broker has confirmed every message: they are in the queues of their groups, on disk. Calls share one
// channel, and confirmations are pipelined. While the connection is lost, or the broker accepts no messages, Publish waits as
// long as ctx allows. Messages that were not confirmed when the connection was lost are published again, and may arrive twice.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.enter() {
		return driver.ErrClosed
	}
	defer t.active.Add(-1)
	return t.publisher.publish(ctx, topic, msgs)
}

// A subscription is a [driver.Receiver] that can be closed in two steps.
type subscription interface {
	driver.Receiver
	shut() // closes it for further messages, without waiting
}

// Subscribe declares the group's queues and binds them, or with declare=false checks that they exist. While the connection is lost,
// it waits as long as ctx allows.
func (t *Transport) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if err := t.Capabilities().Check(s); err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if !t.enter() {
		return nil, driver.ErrClosed
	}
	defer t.active.Add(-1)
	if err := t.prepare(ctx, s); err != nil {
		return nil, fmt.Errorf("amqp: subscribe group %q: %w", s.Group, err)
	}
	var f subscription
	if s.Order == driver.Unordered {
		f = newReceiver(t, s)
	} else {
		f = newOrderedReceiver(t, s)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, driver.ErrClosed
	}
	t.open = append(t.open, f)
	return f, nil
}

// prepare declares the group's queues.
func (t *Transport) prepare(ctx context.Context, s driver.Subscription) error {
	if err := t.topology.check(s); err != nil {
		return err
	}
	if err := t.topology.adopt(s); err != nil {
		return err
	}
	err := t.consuming.withChannel(ctx, func(ch *amqp.Channel) error {
		if err := t.topology.declareDelays(ctx, ch); err != nil {
			return err
		}
		return t.topology.subscribe(ch, s)
	})
	if err != nil {
		return err
	}
	t.migrate()
	return nil
}

func (t *Transport) links() []*link {
	links := []*link{t.publishing, t.consuming}
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(links, t.extra...)
}

// Close stops the receivers, waits as long as ctx allows until deliveries are settled and publishings confirmed, and closes the
// connections. Deliveries that are not settled by then are redelivered.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		select {
		case <-t.finished:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	t.closed = true
	receivers := t.open
	t.mu.Unlock()
	defer close(t.finished)

	var err error
	for _, f := range receivers {
		f.shut()
	}
	for _, f := range receivers {
		err = errors.Join(err, f.Close(ctx))
	}
	if waitErr := t.active.Wait(ctx); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("amqp: close: not everything was settled and confirmed; the rest is redelivered: %w", waitErr))
	}
	t.cancel()
	t.publisher.stop()
	for _, l := range t.links() {
		l.close(ctx)
	}
	<-t.publisher.done
	t.work.Wait()
	return err
}
