package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// publishWindow is how many messages of one call may wait for their confirmations.
	publishWindow = 1024
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
	repair         func(context.Context, *amqp.Connection) error // declares what is missing, before a new channel is opened
	findingRefused chan struct{}                                 // a mutex: holds a token while a caller finds its refused messages
	ctx            context.Context
	cancel         context.CancelFunc
	done           chan struct{}
	intact         bool // nothing needs to be declared again, as at the start

	mu      sync.Mutex
	channel *confirmChannel
	changed chan struct{} // closed when the confirm channel changes
	lastErr error
}

// confirmChannel is a channel in confirm mode.
type confirmChannel struct {
	ch   *amqp.Channel
	wire *writeBatcher
	gone chan struct{} // closed after err was set
	err  *amqp.Error   // the reason why it was closed; nil if the connection ended without one

	mu       sync.Mutex
	returned map[returnKey]int
}

// returnKey identifies a returned message, because basic.return has no delivery tag. If one of two messages in flight with the
// same key and id is returned, both are.
type returnKey struct{ exchange, key, id string }

// maxReturned bounds the memory for returned messages whose publishers no longer wait.
const maxReturned = 10_000

func newPublisher(l *link, repair func(context.Context, *amqp.Connection) error) *publisher {
	p := &publisher{
		link: l, repair: repair, findingRefused: make(chan struct{}, 1), intact: true, changed: make(chan struct{}), done: make(chan struct{}),
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
		if err := p.repair(p.ctx, conn); err != nil {
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

// newConfirmChannel puts a channel into confirm mode.
func newConfirmChannel(ch *amqp.Channel, wire *writeBatcher) (*confirmChannel, error) {
	cc := &confirmChannel{wire: wire, ch: ch, gone: make(chan struct{}), returned: make(map[returnKey]int)}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// The connection's reader passes a return to its listeners before it reads the confirmation that follows. One goroutine
	// receives both, so a return is recorded before its confirmation is seen.
	returns, barrier := ch.NotifyReturn(make(chan amqp.Return)), ch.NotifyReturn(make(chan amqp.Return))
	go cc.watch(closed, returns, barrier)
	return cc, ch.Confirm(noWait)
}

func (cc *confirmChannel) watch(closed <-chan *amqp.Error, returns, barrier <-chan amqp.Return) {
	for returns != nil || barrier != nil {
		select {
		case r, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			cc.record(r)
		case _, ok := <-barrier:
			if !ok {
				barrier = nil
			}
		}
	}
	cc.err = <-closed
	close(cc.gone)
}

func (cc *confirmChannel) record(r amqp.Return) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if len(cc.returned) >= maxReturned {
		clear(cc.returned)
	}
	cc.returned[returnKey{r.Exchange, r.RoutingKey, r.MessageId}]++
}

// cameBack reports whether the broker has returned the message as unroutable.
func (cc *confirmChannel) cameBack(o *outgoing) bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if len(cc.returned) == 0 {
		return false
	}
	k := returnKey{o.exchange, o.key, o.msg.MessageId}
	n := cc.returned[k]
	if n <= 1 {
		delete(cc.returned, k)
	} else {
		cc.returned[k] = n - 1
	}
	return n > 0
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

// refusal returns the error with which the broker closed the channel because of a message, of this caller or another, else nil.
func (cc *confirmChannel) refusal() error {
	<-cc.gone
	if cc.err == nil || !cc.err.Server { // the client has closed it
		return nil
	}
	switch cc.err.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.PreconditionFailed, amqp.ContentTooLarge, amqp.NotAllowed, amqp.NotImplemented,
		amqp.FrameError, amqp.SyntaxError, amqp.UnexpectedFrame:
		return fmt.Errorf("the broker refuses it: %w", cc.err)
	}
	return nil
}

// endsConnection reports whether the broker closes the whole connection for that reason, and not only the channel.
func endsConnection(refused error) bool {
	return isCode(refused, amqp.FrameError) || isCode(refused, amqp.SyntaxError) || isCode(refused, amqp.UnexpectedFrame) ||
		isCode(refused, amqp.NotAllowed) || isCode(refused, amqp.NotImplemented)
}

func unconfirmed(pending, all []*outgoing, err error) error {
	if len(all) == 1 {
		return fmt.Errorf("not confirmed by the broker: %w", err)
	}
	return fmt.Errorf("%d of %d messages not confirmed by the broker: %w", len(pending), len(all), err)
}

// send publishes over this channel and returns the messages that were not confirmed. If err is nil, the channel was closed.
func (cc *confirmChannel) send(ctx context.Context, l *link, out []*outgoing) (pending []*outgoing, err error) {
	waiting := 0 // index of the first message that waits for its confirmation
	var again []*outgoing
	for i, o := range out {
		if i-waiting >= publishWindow {
			if again, err = cc.await(ctx, l, out[waiting], again); err != nil {
				return append(again, out[waiting:]...), err
			}
			waiting++
		}
		if err := cc.publish(ctx, o); err != nil {
			if ctx.Err() != nil {
				return append(again, out[waiting:]...), notConnected(ctx, l.state())
			}
			<-cc.gone
			o.confirm = nil
			for _, rest := range out[i:] {
				rest.confirm = nil
			}
			break
		}
	}
	for i, o := range out[waiting:] {
		if again, err = cc.await(ctx, l, o, again); err != nil {
			return append(again, out[waiting+i:]...), err
		}
	}
	return again, nil
}

func (cc *confirmChannel) publish(ctx context.Context, o *outgoing) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cc.wire.room(ctx); err != nil {
		return err
	}
	o.sent = true
	o.confirm, err = cc.ch.PublishWithDeferredConfirm(o.exchange, o.key, mandatory, immediate, o.msg)
	return err
}

// await waits for one confirmation. It appends a message that must be published again to again.
func (cc *confirmChannel) await(ctx context.Context, l *link, o *outgoing, again []*outgoing) ([]*outgoing, error) {
	if o.confirm == nil {
		return append(again, o), nil
	}
	select {
	case <-o.confirm.Done():
	case <-ctx.Done():
		return again, notConnected(ctx, l.state())
	case <-cc.gone:
	}
	switch {
	case o.confirm.Acked():
		o.confirmed, o.unroutable = true, cc.cameBack(o)
		return again, nil
	case cc.ch.IsClosed():
		return append(again, o), nil
	}
	return again, errRefused
}

var errRefused = errors.New("the broker refused a message (basic.nack): the queue may be full (x-max-length, overflow) or have lost its leader")

// closeQuietly closes a channel that is not needed any more, and ignores errors.
func closeQuietly(ch *amqp.Channel) { _ = ch.Close() }
