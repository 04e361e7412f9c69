package amqp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/waitcounter"
)

// Transport is a [driver.Transport] on RabbitMQ.
type Transport struct {
	cfg        Config
	topology   *topology
	publishing *link
	consuming  *link
	extra      []*link // of groups with a connection of their own; guarded by mu
	publisher  *publisher
	unroutable atomic.Int64
	poison     poisonLocks
	migration  sync.Once

	ctx    context.Context // what goes on in the background; ends when Close gives up waiting
	cancel context.CancelFunc
	active waitcounter.Counter // publishes, deliveries that are out, redeliveries on their way
	work   sync.WaitGroup      // goroutines: feeds, what goes on in the background

	mu       sync.Mutex
	open     []subscription
	closed   bool
	finished chan struct{} // closed at the end of Close
}

var _ driver.Transport = (*Transport)(nil)

// Open makes a transport from its URL; see the package documentation. It blocks until the broker has
// answered and everything is declared, for as long as ctx and connect_timeout allow.
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

// New makes a transport. It blocks as Open does.
func New(ctx context.Context, cfg Config) (*Transport, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	t := &Transport{cfg: cfg, finished: make(chan struct{})}
	t.topology = newTopology(&t.cfg)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	if t.publishing, err = openLink(ctx, t.cfg, "publish"); err != nil {
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if !t.cfg.Operator {
		err = t.declare(ctx, t.topology.declareShared)
	}
	if err != nil {
		t.publishing.close(ctx)
		return nil, fmt.Errorf("amqp: %w", err)
	}
	if t.consuming, err = openLink(ctx, t.cfg, "consume"); err != nil {
		t.publishing.close(ctx)
		return nil, fmt.Errorf("amqp: %w", err)
	}
	t.publisher = newPublisher(t.publishing, t.topology.repair)
	t.work.Go(t.assertDelays)
	return t, nil
}

// assertDelays makes the levels of the delays again where somebody has deleted a part of them: messages would come early.
func (t *Transport) assertDelays() {
	for sleep(t.ctx, delayAssertInterval) == nil {
		for _, way := range t.topology.ways() {
			err := withChannel(t.ctx, t.consuming, func(ch *amqp.Channel) error { return way.declare(t.ctx, t.topology.declarer(ch)) })
			if err != nil && t.ctx.Err() == nil {
				t.cfg.Logger.Error("leat: amqp: the queues for delays can't be declared", "error", err)
			}
		}
	}
}

// declare runs do on a channel of its own, and again when the connection was lost meanwhile.
func (t *Transport) declare(ctx context.Context, do func(*amqp.Channel) error) error {
	return withChannel(ctx, t.publishing, do)
}

func withChannel(ctx context.Context, l *link, do func(*amqp.Channel) error) error {
	pause := newBackoff()
	for {
		conn, _, err := l.connection(ctx)
		if err != nil {
			return err
		}
		ch, err := conn.Channel()
		if err == nil {
			giveUp := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
			err = do(ch)
			giveUp()
			closeQuietly(ch)
		}
		if err == nil || !conn.IsClosed() {
			return err
		}
		if !pause.Wait(ctx) {
			return notConnected(ctx, err)
		}
	}
}

// Capabilities is everything; with topology=watermill there are no patterns, and the stock queues
// have no single active consumer to keep an order by.
func (t *Transport) Capabilities() driver.Capabilities {
	leat := !t.topology.watermill()
	return driver.Capabilities{Durable: true, Delay: true, Patterns: leat, ByKey: leat, Strict: leat, Park: leat, Poison: true}
}

// Publish returns when the broker has confirmed every message: they are in the queues of their
// groups, on disk. Calls share one channel and their confirmations are pipelined, so many callers, or
// one call with many messages, are as fast as the broker. It waits for a lost connection and for a
// broker that accepts no messages as long as ctx allows; what was under way when a connection broke is
// published again and may arrive twice.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.enter() {
		return driver.ErrClosed
	}
	defer t.active.Add(-1)
	out, err := t.outgoing(ctx, topic, msgs)
	if err != nil {
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	if err := t.publisher.send(ctx, out); err != nil {
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	return t.report(topic, out)
}

func (t *Transport) outgoing(ctx context.Context, topic string, msgs []*message.Message) ([]*outgoing, error) {
	if err := driver.ValidateTopic(topic); err != nil {
		return nil, err
	}
	declare := func(do func(*amqp.Channel) error) error { return t.declare(ctx, do) }
	if err := t.topology.publishTo(topic, declare); err != nil {
		return nil, err
	}
	exchange, key := t.topology.address(topic)
	all := make([]outgoing, len(msgs))
	out := make([]*outgoing, len(msgs))
	for i, msg := range msgs {
		p, err := marshal(msg, topic, &t.cfg, t.publishing.frame())
		if err != nil {
			return nil, err
		}
		all[i] = outgoing{exchange: exchange, key: key, msg: p}
		out[i] = &all[i]
		due, err := driver.ParseDeliverAt(msg)
		if err != nil {
			return nil, err
		}
		if wait := time.Until(due); wait > 0 {
			if wait > maxDelay {
				return nil, fmt.Errorf("message %s is to be delivered in %s; at most %s is possible", driver.MessageID(msg), wait, maxDelay)
			}
			if out[i], err = t.delayed(ctx, topic, wait, p); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// delayed makes a publishing that reaches the topic's groups after the wait.
func (t *Transport) delayed(ctx context.Context, topic string, wait time.Duration, msg amqp.Publishing) (*outgoing, error) {
	if err := t.prepareDelays(ctx); err != nil {
		return nil, err
	}
	l, n := t.topology.publishing(), units(wait)
	o := l.delayed(topic, n, msg)
	size, most := tableSize(msg.Headers), t.publishing.frame()-l.room(topic, n)
	if size > most {
		return nil, fmt.Errorf("message %s has %d bytes of headers; at most %d are possible with a delay; put large data into the payload",
			msg.MessageId, size, most)
	}
	return o, nil
}

// prepareDelays makes the levels of publishers before the first delay. It goes on when the caller gives up: the end of a
// declaration's context closes the connection.
func (t *Transport) prepareDelays(ctx context.Context) error {
	if t.topology.delaysKnown() {
		return nil
	}
	made := make(chan error, 1)
	prepare := func(ctx context.Context) error {
		return t.topology.publishDelayed(ctx, func(do func(*amqp.Channel) error) error { return t.declare(ctx, do) })
	}
	t.background(func(ctx context.Context) { made <- prepare(ctx) })
	select {
	case err := <-made:
		return err
	case <-ctx.Done():
		return notConnected(ctx, t.publishing.state())
	}
}

// report counts the messages that no group wanted.
func (t *Transport) report(topic string, out []*outgoing) error {
	var topics []string
	for _, o := range out {
		if o.unroutable {
			topics = append(topics, topic)
		}
	}
	if topics == nil {
		return nil
	}
	t.unroutable.Add(int64(len(topics)))
	return &driver.UnroutableError{Topics: topics, Strict: t.cfg.Unroutable == RefuseUnroutable}
}

// subscription is what the transport does with a [driver.Receiver] when it is closed.
type subscription interface {
	driver.Receiver
	shut()    // stops taking in
	abandon() // gives up waiting for what is out
}

// Subscribe declares the group's queues and binds them, or with declare=false checks that they are
// there. It waits for a lost connection as long as ctx allows.
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
		f = newFeed(t, s)
	} else {
		f = newOrderedFeed(t, s)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, driver.ErrClosed
	}
	t.open = append(t.open, f)
	return f, nil
}

// prepare makes the group's queues.
func (t *Transport) prepare(ctx context.Context, s driver.Subscription) error {
	if err := t.topology.check(s); err != nil {
		return err
	}
	if err := t.topology.adopt(s); err != nil {
		return err
	}
	err := withChannel(ctx, t.consuming, func(ch *amqp.Channel) error {
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

// enter counts something that Close waits for; false when the transport is closed.
func (t *Transport) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.active.Add(1)
	return true
}

// background runs what goes on after its caller went away; Close waits for it. It must be called
// while something else is counted as active.
func (t *Transport) background(do func(ctx context.Context)) {
	t.active.Add(1)
	t.work.Go(func() {
		defer t.active.Add(-1)
		do(t.ctx)
	})
}

// Close stops the feeds, waits within ctx until what is out is settled and what is on its way is
// confirmed, and closes the connections. What is still out then comes again.
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
	feeds := t.open
	t.mu.Unlock()
	defer close(t.finished)

	var err error
	for _, f := range feeds {
		f.shut()
	}
	for _, f := range feeds {
		err = errors.Join(err, f.Close(ctx))
	}
	if waitErr := t.active.Wait(ctx); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("amqp: close: not everything was settled and confirmed; it comes again: %w", waitErr))
	}
	t.cancel()
	for _, f := range feeds {
		f.abandon()
	}
	t.publisher.stop()
	for _, l := range t.links() {
		l.close(ctx)
	}
	<-t.publisher.done
	t.work.Wait()
	return err
}
