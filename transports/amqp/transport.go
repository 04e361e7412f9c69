package amqp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/waitcounter"
)

// A Transport is a [driver.Transport] on RabbitMQ. Its methods may be called concurrently.
type Transport struct {
	spillFailed sync.Once // logs that no temporary file can be written
	createSpill func() (spillStore, error)
	cfg         Config
	topology    *declaredTopology
	publishing  *link
	consuming   *link
	extra       []*link // of groups with a connection of their own; guarded by mu
	publisher   *publisher
	unroutable  atomic.Int64
	poison      sync.Map // *poisonQueue by group
	migration   sync.Once

	ctx    context.Context // of work in the background; ends when Close stops waiting
	cancel context.CancelFunc
	active waitcounter.Counter // publishings, deliveries that are not settled, redeliveries that are being published
	work   sync.WaitGroup      // goroutines: receivers and work in the background
	counts counter

	mu       sync.Mutex
	open     []subscription
	closed   bool
	finished chan struct{} // closed at the end of Close
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

// assertDelays declares the levels of the delays again and again: if a part of them is deleted, messages are delivered too early.
func (t *Transport) assertDelays() {
	for sleep(t.ctx, delayAssertInterval) == nil {
		for _, set := range t.topology.allLevels() {
			err := withChannel(t.ctx, t.consuming, func(ch *amqp.Channel) error { return set.declare(t.ctx, t.topology.declarer(ch)) })
			if err != nil && t.ctx.Err() == nil {
				t.cfg.Logger.Error("leat: amqp: the queues for delays can't be declared", "error", err)
			}
		}
	}
}

// declare calls do with its own channel, and again if the connection was lost.
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
	out, err := t.outgoing(ctx, topic, msgs)
	if err != nil {
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	if err := t.publisher.send(ctx, out); err != nil {
		if errors.Is(err, driver.ErrClosed) {
			err = closedMeanwhile(msgs, out)
		}
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	return t.report(topic, out)
}

// closedMeanwhile returns [driver.ErrClosed] if the broker was sent none of the messages, else an error that names those that it
// has not confirmed.
func closedMeanwhile(msgs []*message.Message, out []*outgoing) error {
	if !slices.ContainsFunc(out, func(o *outgoing) bool { return o.sent }) {
		return driver.ErrClosed
	}
	var unknown []*message.Message
	for i, o := range out {
		if !o.confirmed {
			unknown = append(unknown, msgs[i])
		}
	}
	return driver.ClosedMeanwhile(unknown)
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
				return nil, fmt.Errorf("message %s has a delay of %s; at most %s is possible", driver.MessageID(msg), wait, maxDelay)
			}
			if out[i], err = t.delayed(ctx, topic, wait, p); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// delayed returns a publishing that reaches the topic's groups after the delay.
func (t *Transport) delayed(ctx context.Context, topic string, wait time.Duration, msg amqp.Publishing) (*outgoing, error) {
	if err := t.prepareDelays(ctx); err != nil {
		return nil, err
	}
	key, err := t.topology.delayKey(topic)
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", msg.MessageId, err)
	}
	l, n := t.topology.publishing(), units(wait)
	o := l.delayed(key, n, msg)
	size, most := tableSize(msg.Headers), t.publishing.frame()-l.room(key, n)
	if size > most {
		return nil, fmt.Errorf("message %s has %d bytes of headers; at most %d are possible with a delay; put large data into the payload",
			msg.MessageId, size, most)
	}
	return o, nil
}

// prepareDelays declares the levels for publishers before the first delay. It goes on in the background when ctx is done, because
// the end of a declaration's context closes the connection.
func (t *Transport) prepareDelays(ctx context.Context) error {
	if t.topology.delaysKnown() {
		return nil
	}
	made := make(chan error, 1)
	t.background(func(ctx context.Context) {
		made <- t.topology.publishDelayed(ctx, func(do func(*amqp.Channel) error) error { return t.declare(ctx, do) })
	})
	select {
	case err := <-made:
		return err
	case <-ctx.Done():
		return notConnected(ctx, t.publishing.state())
	}
}

// report counts the messages that were unroutable.
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
	return &driver.UnroutableError{Topics: topics, Strict: t.cfg.StrictRoutes}
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

// enter adds something that Close waits for. It returns false if the transport is closed.
func (t *Transport) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.active.Add(1)
	return true
}

// background runs a function that may outlive its caller; Close waits for it. It must be called while something else is counted as
// active.
func (t *Transport) background(do func(ctx context.Context)) {
	t.active.Add(1)
	t.work.Go(func() {
		defer t.active.Add(-1)
		do(t.ctx)
	})
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
