package amqp

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// publishWindow is how many messages of one call may wait for their confirmations.
const publishWindow = 1024

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

// closeQuietly closes a channel that is not needed any more, and ignores errors.
func closeQuietly(ch *amqp.Channel) { _ = ch.Close() }
