package amqp

import (
	"context"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/internal/ids"
)

// A quorum queue counts how often a message was delivered and not acked, and a policy, which a client can't see, may
// delete what was delivered too often. So what was delivered twice is written anew before a third time, unless the
// queue is seen to spare a pilot that was delivered more often.

// renewAt is how many deliveries make a message of a poison queue, or a held one, be written anew, which begins the
// count again: a policy may have set a delivery-limit, beyond which the broker deletes it. Only policies can be
// lower than manyDeliveries, and AMQP can't read them.
const renewAt = 2

const (
	// pilotRounds bounds how often a pilot is delivered: what was delivered more often is written anew in any case.
	pilotRounds = 64
	// pilotPatience is how long a pilot may take to be back in its queue.
	pilotPatience = 500 * time.Millisecond
	// pilotTimeout bounds all deliveries of a pilot.
	pilotTimeout = 10 * time.Second
	// pilotLife is when the broker deletes a pilot by itself, after its process was killed.
	pilotLife = time.Minute
)

// mustRenew reports whether what was read is to be written anew. It is called while nothing of that is back.
func (b *browser) mustRenew() bool {
	if b.count < renewAt || b.removed >= b.visited {
		return false
	}
	// A pilot is behind what was not read, and goes to a consumer of the browser's own that may fetch it.
	return b.visited < b.before || b.credit > 0 || b.count > pilotRounds || !b.outlives(b.count+2)
}

// outlives reports whether a message of the queue was seen to outlive so many deliveries just now. False means that
// this is not known.
func (b *browser) outlives(deliveredTimes int) (outlived bool) {
	ctx, cancel := context.WithTimeout(b.ctx, pilotTimeout)
	defer cancel()
	sent := false
	err := b.onOwnConnection(ctx, "pilot", func(own *browser) error {
		if err := own.open(); err != nil {
			return err
		}
		defer func() { own.close() }()
		id := ids.New()
		pilot := &outgoing{key: own.queue, msg: amqp.Publishing{
			MessageId: id, DeliveryMode: amqp.Persistent, Expiration: strconv.FormatInt(pilotLife.Milliseconds(), 10), Headers: amqp.Table{headerPilot: true},
		}}
		sent = true // perhaps, also if there is an error
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
	if sent && !outlived { // it may be in the queue still
		b.before++
		b.gone++
	}
	return outlived && err == nil
}

// deliverPilot has the pilot delivered once more. It returns how often it was before, -1 when it does not come,
// and acks it when that is often enough.
func (b *browser) deliverPilot(id string, enough int) (before int, done bool) {
	const autoAck, multiple = false, false
	ch, err := b.conn.Channel()
	if err != nil {
		return -1, false
	}
	defer closeQuietly(ch) // which puts it back
	for began := time.Now(); time.Since(began) < pilotPatience; {
		d, there, err := ch.Get(b.queue, autoAck)
		switch {
		case err != nil || there && (d.MessageId != id || !isPilot(&d)):
			return -1, false // somebody's, poisoned meanwhile
		case there && deliveries(&d) >= enough:
			return deliveries(&d), d.Ack(multiple) == nil
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

// renew writes what was visited anew, behind the others, and takes the old ones then.
func (b *browser) renew(ctx context.Context) error {
	return b.onOwnConnection(ctx, "renew", func(again *browser) error {
		if err := again.open(); err != nil {
			return err
		}
		defer func() { again.close() }()
		// Behind what was visited, something may have been fetched.
		if err := again.rewrite(b.visited - b.removed + stride); err != nil {
			return err
		}
		again.removed, again.taken = 0, nil // for each there is another
		return again.requeue()              // some of the new ones have come, too: the next look must not miss them
	})
}

// onOwnConnection calls do with a browser of the same queue that has a connection of its own, and is not open yet. It
// closes that connection when the broker accepts no messages, or when ctx is done: a broker that accepts none stops
// reading from a connection that has published, and answers nothing there.
func (b *browser) onOwnConnection(ctx context.Context, role string, do func(*browser) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, wire, err := b.t.cfg.dial(ctx, role)
	if err != nil {
		return err
	}
	hangUp := sync.OnceFunc(func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) })
	defer hangUp()
	defer context.AfterFunc(ctx, hangUp)()
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() {
		for b := range blocked { // until the connection is closed
			if b.Active {
				cancel(errBlocked)
			}
		}
	}()
	return do(&browser{ctx: ctx, t: b.t, conn: conn, wire: wire, queue: b.queue, group: b.group})
}

// rewrite publishes the first n messages of the queue, or a few more, to it and takes them then.
func (b *browser) rewrite(n int) error {
	seen := make(map[string]int)
	err := b.walkStrides(func(window []*amqp.Delivery) (bool, error) {
		out := make([]*outgoing, len(window))
		for i, d := range window {
			out[i] = &outgoing{key: b.queue, msg: renewed(d)}
			if b.group != "" {
				out[i].msg.Headers[headerPoisonID] = idOf(d, seen)
			}
		}
		return b.visited < n, b.finish(func() error {
			if err := b.send(out...); err != nil {
				return err
			}
			return b.take(window...)
		})
	})
	if err == nil {
		_, err = b.ready() // the acks have arrived
	}
	return err
}
