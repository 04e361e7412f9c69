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
	confirmed  bool
	unroutable bool
	refused    error // why the broker does not take it
}

// publisher publishes with confirmations, pipelined over one long-lived channel that all callers
// share. A goroutine opens the channel and replaces it when it was closed.
//
// The broker closes the channel, and with it fails everybody's messages, when one message is not to its liking, and
// does not say which. So whatever was under way is published again over another channel, where one caller after the
// other finds out which of its messages are refused.
type publisher struct {
	link   *link
	repair func(context.Context, *amqp.Connection) error // declares what is missing, for a new channel
	sifts  chan struct{}                                 // holds one while a caller finds out
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	sound  bool // nothing needs repair: only at the start

	mu      sync.Mutex
	lane    *lane
	changed chan struct{} // closed when the lane changes
	lastErr error
}

// lane is one channel in confirm mode.
type lane struct {
	ch   *amqp.Channel
	wire *coalescer
	gone chan struct{} // closed after err was set
	err  *amqp.Error   // why it was closed; nil when the connection just ended

	mu       sync.Mutex
	returned map[returnKey]int
}

// returnKey tells which message came back: basic.return has no delivery tag. Two messages in flight
// with the same key and id have the same fate.
type returnKey struct{ exchange, key, id string }

// maxReturned bounds the memory for returns whose publishers gave up waiting.
const maxReturned = 10_000

func newPublisher(l *link, repair func(context.Context, *amqp.Connection) error) *publisher {
	p := &publisher{
		link: l, repair: repair, sifts: make(chan struct{}, 1), sound: true, changed: make(chan struct{}), done: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(l.ctx)
	go p.run()
	return p
}

// stop ends the publisher when its link is closed too.
func (p *publisher) stop() { p.cancel() }

// run keeps a channel open.
func (p *publisher) run() {
	defer close(p.done)
	pause := newBackoff()
	for p.ctx.Err() == nil {
		ln, err := p.open()
		if err != nil {
			p.set(nil, err)
			pause.Wait(p.ctx)
			continue
		}
		pause.Reset()
		p.set(ln, nil)
		select {
		case <-ln.gone:
			p.set(nil, nil)
			p.sound = ln.refusal() != nil && !isCode(ln.err, amqp.NotFound) // nothing is missing
			if ln.err != nil {
				p.link.cfg.Logger.Warn("leat: amqp: publishing channel closed", "error", ln.err)
				pause.Wait(p.ctx) // never in a hot loop
			}
		case <-p.ctx.Done():
			p.set(nil, nil) // the channel ends with its connection
		}
	}
}

func (p *publisher) open() (*lane, error) {
	conn, wire, err := p.link.connection(p.ctx)
	if err != nil {
		return nil, err
	}
	if !p.sound {
		if err := p.repair(p.ctx, conn); err != nil {
			return nil, err
		}
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	p.sound = false
	ln, err := newLane(ch, wire)
	if err != nil {
		closeQuietly(ch)
	}
	return ln, err
}

// newLane puts a channel into confirm mode.
func newLane(ch *amqp.Channel, wire *coalescer) (*lane, error) {
	ln := &lane{wire: wire, ch: ch, gone: make(chan struct{}), returned: make(map[returnKey]int)}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	// The connection's reader hands a return to the first listener, then to the second, and only
	// then reads the confirmation that follows it. One goroutine serves both, so a return is on
	// record before anyone sees the confirmation.
	returns, barrier := ch.NotifyReturn(make(chan amqp.Return)), ch.NotifyReturn(make(chan amqp.Return))
	go ln.watch(closed, returns, barrier)
	return ln, ch.Confirm(noWait)
}

func (ln *lane) watch(closed <-chan *amqp.Error, returns, barrier <-chan amqp.Return) {
	for returns != nil || barrier != nil {
		select {
		case r, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			ln.record(r)
		case _, ok := <-barrier:
			if !ok {
				barrier = nil
			}
		}
	}
	ln.err = <-closed
	close(ln.gone)
}

func (ln *lane) record(r amqp.Return) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if len(ln.returned) >= maxReturned {
		clear(ln.returned)
	}
	ln.returned[returnKey{r.Exchange, r.RoutingKey, r.MessageId}]++
}

// cameBack reports whether the message was returned.
func (ln *lane) cameBack(o *outgoing) bool {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if len(ln.returned) == 0 {
		return false
	}
	k := returnKey{o.exchange, o.key, o.msg.MessageId}
	n := ln.returned[k]
	if n <= 1 {
		delete(ln.returned, k)
	} else {
		ln.returned[k] = n - 1
	}
	return n > 0
}

func (p *publisher) set(ln *lane, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lane, p.lastErr = ln, err
	close(p.changed)
	p.changed = make(chan struct{})
}

// current waits for an open channel.
func (p *publisher) current(ctx context.Context) (*lane, error) {
	for {
		p.mu.Lock()
		ln, changed, lastErr := p.lane, p.changed, p.lastErr
		p.mu.Unlock()
		if ln != nil && !ln.ch.IsClosed() {
			return ln, nil
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

// send publishes and waits until every message is confirmed. What was under way when the connection
// broke is published again, because nobody can know whether the broker has it. The error says how
// many messages are not confirmed.
func (p *publisher) send(ctx context.Context, out []*outgoing) error {
	pending := out
	for len(pending) > 0 {
		ln, err := p.current(ctx)
		if err != nil {
			return unconfirmed(pending, out, err)
		}
		pending, err = ln.send(ctx, p.link, pending)
		if err != nil {
			return unconfirmed(pending, out, err)
		}
		if len(pending) == 0 {
			return nil
		}
		if refused := ln.refusal(); refused != nil {
			return p.sift(ctx, pending, out, endsConnection(refused))
		}
	}
	return nil
}

// sift publishes what the broker has closed a channel over, of this caller or another, and returns an error for
// those messages only that the broker refuses.
func (p *publisher) sift(ctx context.Context, pending, out []*outgoing, alone bool) error {
	select {
	case p.sifts <- struct{}{}:
		defer func() { <-p.sifts }()
	case <-ctx.Done():
		return unconfirmed(pending, out, context.Cause(ctx))
	}
	s := &sieve{p: p, alone: alone}
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

// sieve is a channel that may be closed over a message without harm to others.
type sieve struct {
	p     *publisher
	alone bool // on a connection of its own: the broker closes the whole connection over the message
	conn  *amqp.Connection
	lane  *lane
}

// pass publishes a batch, in its order, and marks the messages that the broker refuses.
func (s *sieve) pass(ctx context.Context, batch []*outgoing) error {
	for len(batch) > 0 {
		ln, err := s.open(ctx)
		if err != nil {
			return err
		}
		if batch, err = ln.send(ctx, s.p.link, batch); err != nil || len(batch) == 0 {
			return err
		}
		refused := ln.refusal()
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

// open waits for the publisher's own channel, before which everything is repaired, and opens another one.
func (s *sieve) open(ctx context.Context) (*lane, error) {
	if s.lane != nil && !s.lane.ch.IsClosed() {
		return s.lane, nil
	}
	if _, err := s.p.current(ctx); err != nil {
		return nil, err
	}
	conn, wire, err := s.p.link.connection(ctx)
	if err == nil && s.alone {
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
	s.lane, err = newLane(ch, wire)
	return s.lane, err
}

func (s *sieve) close() {
	if s.lane != nil {
		closeQuietly(s.lane.ch)
	}
	if s.conn != nil {
		_ = s.conn.CloseDeadline(time.Now().Add(lastWords))
	}
}

// refusal is why the broker closed the channel, if it did so because of what was published over it,
// by this caller or another.
func (ln *lane) refusal() error {
	<-ln.gone
	if ln.err == nil || !ln.err.Server { // else the client gave up the connection
		return nil
	}
	switch ln.err.Code {
	case amqp.AccessRefused, amqp.NotFound, amqp.PreconditionFailed, amqp.ContentTooLarge, amqp.NotAllowed, amqp.NotImplemented,
		amqp.FrameError, amqp.SyntaxError, amqp.UnexpectedFrame:
		return fmt.Errorf("the broker refuses it: %w", ln.err)
	}
	return nil
}

// endsConnection reports whether the broker closes the connection for that reason, not the channel alone.
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

// send publishes over this channel and returns what it did not get confirmed. Without an error that
// is because the channel was closed.
func (ln *lane) send(ctx context.Context, l *link, out []*outgoing) (pending []*outgoing, err error) {
	waiting := 0 // index of the first message that waits for its confirmation
	var again []*outgoing
	for i, o := range out {
		if i-waiting >= publishWindow {
			if again, err = ln.await(ctx, l, out[waiting], again); err != nil {
				return append(again, out[waiting:]...), err
			}
			waiting++
		}
		if err := ln.publish(ctx, o); err != nil {
			if ctx.Err() != nil {
				return append(again, out[waiting:]...), notConnected(ctx, l.state())
			}
			<-ln.gone
			o.confirm = nil
			for _, rest := range out[i:] {
				rest.confirm = nil
			}
			break
		}
	}
	for i, o := range out[waiting:] {
		if again, err = ln.await(ctx, l, o, again); err != nil {
			return append(again, out[waiting+i:]...), err
		}
	}
	return again, nil
}

func (ln *lane) publish(ctx context.Context, o *outgoing) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := ln.wire.room(ctx); err != nil {
		return err
	}
	const mandatory, immediate = true, false
	o.confirm, err = ln.ch.PublishWithDeferredConfirm(o.exchange, o.key, mandatory, immediate, o.msg)
	return err
}

// await waits for one confirmation. A message that has to be published again is appended to again.
func (ln *lane) await(ctx context.Context, l *link, o *outgoing, again []*outgoing) ([]*outgoing, error) {
	if o.confirm == nil {
		return append(again, o), nil
	}
	select {
	case <-o.confirm.Done():
	case <-ctx.Done():
		return again, notConnected(ctx, l.state())
	case <-ln.gone:
	}
	switch {
	case o.confirm.Acked():
		o.confirmed, o.unroutable = true, ln.cameBack(o)
		return again, nil
	case ln.ch.IsClosed():
		return append(again, o), nil
	}
	return again, errRefused
}

var errRefused = errors.New("the broker refused a message (basic.nack): the queue may be full (x-max-length, overflow) or have lost its leader")

// closeQuietly closes a channel whose fate is of no interest any more.
func closeQuietly(ch *amqp.Channel) { _ = ch.Close() }
