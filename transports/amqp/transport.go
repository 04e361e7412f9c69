package amqp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
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
	publisher   *publisher
	inspector   *inspector
	counts      counter
	poison      sync.Map // *poisonQueue by group
	migration   sync.Once
	finished    chan struct{} // closed at the end of Close

	// Guarded by mu:
	open  []subscription
	extra []*link // of groups with a connection of their own
}

var (
	_ driver.Transport     = (*Transport)(nil)
	_ driver.Inspector     = (*Transport)(nil)
	_ driver.GroupFinder   = (*Transport)(nil)
	_ driver.HealthChecker = (*Transport)(nil)
)

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
	t.inspector = &inspector{topology: t.topology, life: &t.lifetime, countLed: t.countLed}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if t.publishing, err = openLink(ctx, t.cfg, "publish"); err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if !t.cfg.Operator {
		err = t.publishing.withChannel(ctx, t.topology.declareShared)
	}
	if err == nil {
		t.consuming, err = openLink(ctx, t.cfg, "consume")
	}
	if err != nil {
		t.publishing.close(ctx)
		return nil, fmt.Errorf("amqp: %w", err)
	}
	t.publisher = newPublisher(t.publishing, t.topology, &t.lifetime)
	t.work.Go(func() { t.topology.assertDelays(t.ctx, t.consuming) })
	return t, nil
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

// Groups returns the groups of this exchange, or with topology=watermill those of leat processes with that topology; queues of
// plain Watermill services can't be found. In a process that has subscribed to groups it returns these, and reads their counts
// over AMQP, which does not show how many messages are delayed and in flight: these counts are [driver.Unknown], except for
// ordered groups that the process leads. In any other process Groups uses the management API, whose counts are some seconds
// old. If the API can't be read, the error is a [*ManagementError] with the fix.
func (t *Transport) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	var all []driver.GroupInfo
	if !t.topology.serves() {
		s, err := t.inspector.survey(ctx)
		if err != nil {
			return nil, fmt.Errorf("amqp: groups: %w", err)
		}
		for _, g := range s.groups() {
			all = append(all, s.info(g))
		}
		return all, nil
	}
	err := t.inspector.inspect(ctx, "groups", func(i *inspection) error {
		for _, s := range t.topology.subscriptions() {
			info, there, err := i.count(s)
			if err != nil {
				return err
			}
			if there {
				all = append(all, info)
			}
		}
		return nil
	})
	return all, err
}

// Topics returns the bindings of the groups that [Transport.Groups] returns; for groups of this process, their topics.
func (t *Transport) Topics(ctx context.Context) ([]driver.TopicInfo, error) {
	byTopic := make(map[string][]string)
	if t.topology.serves() {
		for _, s := range t.topology.subscriptions() {
			for _, topic := range t.topology.topics(s) {
				byTopic[topic] = append(byTopic[topic], s.Group)
			}
		}
	} else {
		s, err := t.inspector.survey(ctx)
		if err != nil {
			return nil, fmt.Errorf("amqp: topics: %w", err)
		}
		for _, g := range s.groups() {
			for _, topic := range g.topics {
				byTopic[topic] = append(byTopic[topic], g.name)
			}
		}
	}
	all := make([]driver.TopicInfo, 0, len(byTopic))
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		all = append(all, driver.TopicInfo{Topic: topic, Groups: byTopic[topic]})
	}
	return all, nil
}

// countLed corrects the counts of an ordered group that this process leads, because its leader has all of them.
func (t *Transport) countLed(info *driver.GroupInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, open := range t.open {
		if f, ok := open.(*orderedReceiver); ok && f.sub.Group == info.Name {
			f.count(info)
		}
	}
}

// FindGroup implements [driver.GroupFinder]: a group exists if its queue does. With topology=watermill, where each topic has a
// queue, it finds none.
func (t *Transport) FindGroup(ctx context.Context, names ...string) (found string, err error) {
	if t.topology.watermill() {
		return "", nil
	}
	for _, name := range names {
		_, there, err := t.counts.queue(ctx, t.consuming, name)
		if err != nil {
			return "", fmt.Errorf("amqp: find groups: %w", err)
		}
		if there {
			return name, nil
		}
	}
	return "", nil
}

// Health returns the state of the connections: connected if all are, blocked if one is. It does not block.
func (t *Transport) Health() driver.TransportHealth {
	h := driver.TransportHealth{Transport: Scheme, Connected: true, Unroutable: t.publisher.unroutable.Load()}
	for _, l := range t.links() {
		l.mu.Lock()
		h.Reconnects += l.reconnects
		if l.conn == nil {
			h.Connected, h.Err = false, l.lastErr
		}
		if l.blocked != "" {
			h.Blocked = l.blocked
		}
		l.mu.Unlock()
	}
	return h
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
	t.migration.Do(func() { migrate(&t.lifetime, t.consuming, t.publisher) })
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
