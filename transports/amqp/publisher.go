package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// outgoing is a message on its way to the broker.
type outgoing struct {
	exchange string
	key      string
	msg      amqp.Publishing

	confirm    *amqp.DeferredConfirmation
	sent       bool // the broker may have it
	confirmed  bool
	unroutable bool
	refused    error // the reason why the broker refuses it
}

// publisher publishes messages and waits for their confirmations. All callers share one long-lived channel, over which
// publishings are pipelined. A goroutine opens the channel and replaces it when it is closed.
//
// When the broker refuses a message, it closes the channel without saying which message it was, and so fails the messages of
// all callers. They are then published again over another channel, where one caller after the other finds its refused messages.
type publisher struct {
	link           *link
	topology       *declaredTopology
	life           *lifetime
	unroutable     atomic.Int64
	findingRefused chan struct{} // a mutex: holds a token while a caller finds its refused messages
	ctx            context.Context
	cancel         context.CancelFunc
	done           chan struct{}
	intact         bool // nothing needs to be declared again, as at the start

	mu      sync.Mutex
	channel *confirmChannel
	changed chan struct{} // closed when the confirm channel changes
	lastErr error
}

func newPublisher(l *link, topology *declaredTopology, life *lifetime) *publisher {
	p := &publisher{
		link: l, topology: topology, life: life, findingRefused: make(chan struct{}, 1), intact: true,
		changed: make(chan struct{}), done: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(l.ctx)
	go p.run()
	return p
}

// stop ends the publisher when its link is closed too.
func (p *publisher) stop() { p.cancel() }

// run opens a channel, and another one whenever it was closed.
func (p *publisher) run() {
	defer close(p.done)
	pause := newBackoff()
	for p.ctx.Err() == nil {
		cc, err := p.open()
		if err != nil {
			p.set(nil, err)
			pause.Wait(p.ctx)
			continue
		}
		pause.Reset()
		p.set(cc, nil)
		select {
		case <-cc.gone:
			p.set(nil, nil)
			p.intact = cc.refusal() != nil && !isCode(cc.err, amqp.NotFound) // nothing is missing
			if cc.err != nil {
				p.link.cfg.Logger.Warn("leat: amqp: publishing channel closed", "error", cc.err)
				pause.Wait(p.ctx) // no busy loop
			}
		case <-p.ctx.Done():
			p.set(nil, nil) // the channel ends with its connection
		}
	}
}

func (p *publisher) open() (*confirmChannel, error) {
	conn, wire, err := p.link.connection(p.ctx)
	if err != nil {
		return nil, err
	}
	if !p.intact {
		if err := p.topology.repair(p.ctx, conn); err != nil {
			return nil, err
		}
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	p.intact = false
	cc, err := newConfirmChannel(ch, wire)
	if err != nil {
		closeQuietly(ch)
	}
	return cc, err
}

func (p *publisher) set(cc *confirmChannel, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.channel, p.lastErr = cc, err
	close(p.changed)
	p.changed = make(chan struct{})
}

// current blocks until there is an open channel, and returns it.
func (p *publisher) current(ctx context.Context) (*confirmChannel, error) {
	for {
		p.mu.Lock()
		cc, changed, lastErr := p.channel, p.changed, p.lastErr
		p.mu.Unlock()
		if cc != nil && !cc.ch.IsClosed() {
			return cc, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, notConnected(ctx, errors.Join(lastErr, p.link.state()))
		case <-p.ctx.Done():
			return nil, driver.ErrClosed
		}
	}
}

// publish publishes the messages of a topic and blocks until all are confirmed.
func (p *publisher) publish(ctx context.Context, topic string, msgs []*message.Message) error {
	out, err := p.outgoing(ctx, topic, msgs)
	if err != nil {
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	if err := p.send(ctx, out); err != nil {
		if errors.Is(err, driver.ErrClosed) {
			err = closedMeanwhile(msgs, out)
		}
		return fmt.Errorf("amqp: publish %s: %w", topic, err)
	}
	var topics []string
	for _, o := range out {
		if o.unroutable {
			topics = append(topics, topic)
		}
	}
	if topics == nil {
		return nil
	}
	p.unroutable.Add(int64(len(topics)))
	return &driver.UnroutableError{Topics: topics, Strict: p.topology.cfg.StrictRoutes}
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

// outgoing returns the publishings of messages, and declares what they need.
func (p *publisher) outgoing(ctx context.Context, topic string, msgs []*message.Message) ([]*outgoing, error) {
	if err := driver.ValidateTopic(topic); err != nil {
		return nil, err
	}
	if err := p.topology.publishTo(ctx, p.link, topic); err != nil {
		return nil, err
	}
	exchange, key := p.topology.address(topic)
	all := make([]outgoing, len(msgs))
	out := make([]*outgoing, len(msgs))
	for i, msg := range msgs {
		m, err := marshal(msg, topic, p.topology.cfg, p.link.frame())
		if err != nil {
			return nil, err
		}
		all[i] = outgoing{exchange: exchange, key: key, msg: m}
		out[i] = &all[i]
		due, err := driver.ParseDeliverAt(msg)
		if err != nil {
			return nil, err
		}
		if wait := time.Until(due); wait > 0 {
			if wait > maxDelay {
				return nil, fmt.Errorf("message %s has a delay of %s; at most %s is possible", driver.MessageID(msg), wait, maxDelay)
			}
			if out[i], err = p.delayed(ctx, topic, wait, m); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// delayed returns a publishing that reaches the topic's groups after the delay.
func (p *publisher) delayed(ctx context.Context, topic string, wait time.Duration, msg amqp.Publishing) (*outgoing, error) {
	if err := p.prepareDelays(ctx); err != nil {
		return nil, err
	}
	key, err := p.topology.delayKey(topic)
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", msg.MessageId, err)
	}
	l, n := p.topology.publishing(), units(wait)
	o := l.delayed(key, n, msg)
	size, most := tableSize(msg.Headers), p.link.frame()-l.room(key, n)
	if size > most {
		return nil, fmt.Errorf("message %s has %d bytes of headers; at most %d are possible with a delay; put large data into the payload",
			msg.MessageId, size, most)
	}
	return o, nil
}

// prepareDelays declares the levels for publishers before the first delay. It goes on in the background when ctx is done, because
// the end of a declaration's context closes the connection.
func (p *publisher) prepareDelays(ctx context.Context) error {
	if p.topology.delaysKnown() {
		return nil
	}
	made := make(chan error, 1)
	p.life.background(func(ctx context.Context) { made <- p.topology.publishDelayed(ctx, p.link) })
	select {
	case err := <-made:
		return err
	case <-ctx.Done():
		return notConnected(ctx, p.link.state())
	}
}

// deliver publishes a copy of a message, which must reach a queue. If it reaches none, the topology is declared and the copy
// published again, once.
func (p *publisher) deliver(ctx context.Context, o *outgoing) error {
	for repaired := false; ; repaired = true {
		if err := p.send(ctx, []*outgoing{o}); err != nil || !o.unroutable {
			return err
		}
		if repaired {
			return fmt.Errorf("queue %q does not exist", o.key)
		}
		err := p.link.withConnection(ctx, func(conn *amqp.Connection) error { return p.topology.repair(ctx, conn) })
		if err != nil {
			return err
		}
		o.confirmed, o.unroutable = false, false
	}
}

// send publishes messages and blocks until all are confirmed. Messages that were not confirmed when the connection was lost are
// published again, because it is unknown whether the broker has them. The error says how many messages are not confirmed.
func (p *publisher) send(ctx context.Context, out []*outgoing) error {
	pending := out
	for len(pending) > 0 {
		cc, err := p.current(ctx)
		if err != nil {
			return unconfirmed(pending, out, err)
		}
		pending, err = cc.send(ctx, p.link, pending)
		if err != nil {
			return unconfirmed(pending, out, err)
		}
		if len(pending) == 0 {
			return nil
		}
		if refused := cc.refusal(); refused != nil {
			return p.findRefused(ctx, pending, out, endsConnection(refused))
		}
	}
	return nil
}

// findRefused publishes messages again after the broker has closed their channel because of one message, of this caller or
// another. It returns an error only for those that the broker refuses.
func (p *publisher) findRefused(ctx context.Context, pending, out []*outgoing, ownConnection bool) error {
	select {
	case p.findingRefused <- struct{}{}:
		defer func() { <-p.findingRefused }()
	case <-ctx.Done():
		return unconfirmed(pending, out, context.Cause(ctx))
	}
	s := &refusedFinder{p: p, ownConnection: ownConnection}
	defer s.close()
	for _, o := range pending {
		o.refused = nil
	}
	if err := s.pass(ctx, pending); err != nil {
		return unconfirmed(slices.DeleteFunc(slices.Clone(pending), func(o *outgoing) bool { return o.confirmed }), out, err)
	}
	refused := slices.DeleteFunc(slices.Clone(pending), func(o *outgoing) bool { return o.refused == nil })
	if len(refused) == 0 {
		return nil
	}
	return unconfirmed(refused, out, refused[0].refused)
}

// refusedFinder publishes over its own channel, so that other callers are not affected when the broker closes it.
type refusedFinder struct {
	p             *publisher
	ownConnection bool // uses its own connection, because the broker closes the whole connection
	conn          *amqp.Connection
	channel       *confirmChannel
}

// pass publishes a batch in order, and marks the messages that the broker refuses. It divides the batch until a refused message
// is alone.
func (s *refusedFinder) pass(ctx context.Context, batch []*outgoing) error {
	for len(batch) > 0 {
		cc, err := s.open(ctx)
		if err != nil {
			return err
		}
		if batch, err = cc.send(ctx, s.p.link, batch); err != nil || len(batch) == 0 {
			return err
		}
		refused := cc.refusal()
		switch {
		case refused == nil: // the connection was lost
		case len(batch) == 1:
			batch[0].refused = refused
			return nil
		default:
			if err := s.pass(ctx, batch[:len(batch)/2]); err != nil {
				return err
			}
			batch = batch[len(batch)/2:]
		}
	}
	return nil
}

// open waits until the publisher has a channel again, before which everything missing is declared, and then opens another one.
func (s *refusedFinder) open(ctx context.Context) (*confirmChannel, error) {
	if s.channel != nil && !s.channel.ch.IsClosed() {
		return s.channel, nil
	}
	if _, err := s.p.current(ctx); err != nil {
		return nil, err
	}
	conn, wire, err := s.p.link.connection(ctx)
	if err == nil && s.ownConnection {
		s.close()
		conn, wire, err = s.p.link.cfg.dial(ctx, s.p.link.role+", refused")
		s.conn = conn
	}
	if err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	s.channel, err = newConfirmChannel(ch, wire)
	return s.channel, err
}

func (s *refusedFinder) close() {
	if s.channel != nil {
		closeQuietly(s.channel.ch)
	}
	if s.conn != nil {
		_ = s.conn.CloseDeadline(time.Now().Add(lastWords))
	}
}

func unconfirmed(pending, all []*outgoing, err error) error {
	if len(all) == 1 {
		return fmt.Errorf("not confirmed by the broker: %w", err)
	}
	return fmt.Errorf("%d of %d messages not confirmed by the broker: %w", len(pending), len(all), err)
}
