package amqp

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/internal/ids"
)

// A quorum queue counts how often a message was delivered and not acked. A policy may have a delivery-limit, beyond which the
// broker deletes the message, and AMQP has no way to read policies. So messages that were delivered twice are rewritten before
// they are delivered again, which begins the count anew. This is not necessary if a test message, the pilot, was delivered
// more often and is still in the queue.

// renewAt is the number of deliveries after which a message of a poison queue is rewritten.
const renewAt = 2

const (
	// pilotRounds bounds how often a pilot is delivered. Messages that were delivered more often are always rewritten.
	pilotRounds = 64
	// pilotPatience is how long it may take until a pilot is in its queue again.
	pilotPatience = 500 * time.Millisecond
	// pilotTimeout bounds all deliveries of a pilot.
	pilotTimeout = 10 * time.Second
	// pilotLife is the time after which the broker deletes a pilot whose process was killed.
	pilotLife = time.Minute
)

// mustRenew reports whether the messages that were read must be rewritten. It is called before they are requeued.
func (b *browser) mustRenew() bool {
	if b.count < renewAt || b.removed >= b.visited {
		return false
	}
	b.cancel()
	// A pilot would come after messages that were not read.
	return b.visited < b.before || b.count > pilotRounds || !b.outlives(b.count+2)
}

// outlives reports whether a pilot was still in the queue after this number of deliveries. False may also mean that this could not
// be tested.
func (b *browser) outlives(deliveredTimes int) (outlived bool) {
	ctx, cancel := context.WithTimeout(b.ctx, pilotTimeout)
	defer cancel()
	sent := false
	err := b.onOwnConnection(ctx, "pilot", func(own *browser) error {
		id := ids.New()
		pilot := &outgoing{key: own.queue, msg: amqp.Publishing{
			MessageId: id, DeliveryMode: amqp.Persistent, Expiration: strconv.FormatInt(pilotLife.Milliseconds(), 10), Headers: amqp.Table{headerPilot: true},
		}}
		sent = true // possibly also if there is an error
		if err := own.send(pilot); err != nil {
			return err
		}
		for {
			before, done := own.deliverPilot(id, deliveredTimes)
			if outlived = done; done || before < 0 {
				return nil
			}
		}
	})
	if sent && !outlived { // it may still be in the queue
		b.before++
		b.gone++
	}
	return outlived && err == nil
}

// deliverPilot gets the pilot once more and returns how often it was delivered before, or -1 if it did not get it. It acks the
// pilot if that is often enough.
func (b *browser) deliverPilot(id string, enough int) (before int, done bool) {
	ch, err := b.conn.Channel()
	if err != nil {
		return -1, false
	}
	defer closeQuietly(ch) // requeues the pilot
	for began := time.Now(); time.Since(began) < pilotPatience; {
		d, there, err := ch.Get(b.queue, autoAck)
		switch {
		case err != nil || there && (d.MessageId != id || !isPilot(&d)):
			return -1, false // a message that was poisoned meanwhile
		case there && deliveries(&d) >= enough:
			return deliveries(&d), d.Ack(single) == nil
		case there:
			return deliveries(&d), false
		}
		if sleep(b.ctx, settlePause) != nil {
			break
		}
	}
	return -1, false
}

func isPilot(d *amqp.Delivery) bool {
	_, ok := d.Headers[headerPilot]
	return ok
}

// withoutPilots separates messages from pilots whose process was killed.
func withoutPilots(all []*amqp.Delivery) (messages, pilots []*amqp.Delivery) {
	for _, d := range all {
		if isPilot(d) {
			pilots = append(pilots, d)
		} else {
			messages = append(messages, d)
		}
	}
	return messages, pilots
}

// renew publishes copies of the messages that were visited, and then takes the old ones out.
func (b *browser) renew(ctx context.Context) error {
	return b.onOwnConnection(ctx, "renew", func(again *browser) error {
		// The consumers may have fetched more than was visited.
		err := again.rewrite(b.visited - b.removed + stride)
		longer, end := lingering(again.ctx, finishWithin)
		defer end()
		again.ctx, again.taken = longer, nil
		return errors.Join(err, again.requeue()) // also of copies that were delivered: the next reader must find them
	})
}

// onOwnConnection calls do with a browser of the same queue that has its own connection. It closes the connection when the broker
// accepts no messages, because it then does not read from connections that have published, and so does not answer; or finishWithin
// after ctx, because messages that have copies must be taken out.
func (b *browser) onOwnConnection(ctx context.Context, role string, do func(*browser) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, wire, err := b.link.cfg.dial(ctx, role)
	if err != nil {
		return err
	}
	hangUp := sync.OnceFunc(func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) })
	defer hangUp()
	longer, end := lingering(ctx, finishWithin)
	defer end()
	defer context.AfterFunc(longer, hangUp)()
	cancelWhenBlocked(conn, func(cause error) {
		cancel(cause)
		hangUp()
	})
	own := newBrowser(ctx, b.link, conn, wire, b.queue)
	if err := own.open(); err != nil {
		return err
	}
	defer own.close()
	return do(own)
}

// rewrite publishes copies of the first n messages of the queue, or a few more, to the queue, and then takes them out.
func (b *browser) rewrite(n int) error {
	seen := make(map[string]int)
	err := b.walkStrides(func(window []*amqp.Delivery) (bool, error) {
		out := make([]*outgoing, len(window))
		for i, d := range window {
			out[i] = &outgoing{key: b.queue, msg: renewed(d)}
			out[i].msg.Headers[headerPoisonID] = idOf(d, seen)
		}
		return b.visited < n, b.finish(func() error {
			if err := b.send(out...); err != nil {
				return err
			}
			err := b.take(window...)
			b.removed -= len(window) // there is a copy of each; pilots have none
			return err
		})
	})
	if err == nil {
		_, err = b.ready() // the acks have arrived
	}
	return err
}
