package amqp

import (
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// received is a message as the broker has delivered it, with what leat counts of it. It belongs to one goroutine at a
// time, or to the mutex of its feed.
type received struct {
	t        *Transport
	group    string
	raw      *amqp.Delivery
	queue    string         // where it came from
	attempts int            // hand-overs that counted, before this one
	crashes  int            // those of them that nobody settled
	unseen   int            // deliveries that the broker counted, and that were none
	history  driver.History // its failures, in earlier deliveries
	seen     bool           // it was handed out before, and waits for a redelivery in this process
	counted  bool           // with an attempt that the broker does not know of
	read     bool           // msg is filled
	msg      message.Message
	delivery driver.Delivery
}

// receive counts the earlier deliveries of a message.
func (r *received) receive(t *Transport, group, queue string, raw *amqp.Delivery) {
	r.t, r.group, r.raw, r.queue = t, group, raw, queue
	r.attempts, r.crashes = handOvers(raw, queue)
}

// suspect reports whether the message was in so many crashes that it may be the cause.
func (r *received) suspect() bool { return r.crashes >= suspicion }

// unpack reads the message, once.
func (r *received) unpack() {
	if !r.read {
		unmarshal(&r.msg, r.raw, r.t.cfg.ownKey)
		if noted := driver.TakeHistory(r.msg.Metadata); r.history == (driver.History{}) {
			r.history = noted
		}
		r.read = true
	}
}

// handOut makes the delivery.
func (r *received) handOut(settler driver.Settler) *driver.Delivery {
	r.unpack()
	d := &r.delivery
	d.Message = &r.msg
	d.Topic = topicOf(r.raw, r.queue, &r.t.cfg)
	d.Group = r.group
	d.Attempt = r.attempts + 1
	d.FirstSeen = firstSeen(r.raw)
	d.History = r.history
	d.FixedDelays = true
	d.Unreadable = unreadable(r.raw)
	d.Settler = settler
	return d
}

// repeat is for one more hand-over of the same delivery.
func (r *received) repeat(before *received, attempts int) {
	r.t, r.group, r.raw, r.queue, r.attempts, r.crashes = before.t, before.group, before.raw, before.queue, attempts, before.crashes
	r.history, r.seen, r.counted = before.delivery.History, true, before.counted || attempts > before.attempts
}

// copy is the message as one of its own, with its attempts in a header.
func (r *received) copy(attempts int) amqp.Publishing {
	r.unpack()
	p := copyOf(r.raw, topicOf(r.raw, r.queue, &r.t.cfg))
	p.Headers[headerAttempt] = int32(min(attempts, 1<<30)) //nolint:gosec // bounded
	for _, name := range []string{
		headerCrashes, driver.HeaderFaultFailedAt, driver.HeaderFaultFailures, driver.HeaderFaultWaiting,
		headerHead, headerSeq, headerStamp, headerName, headerNote, headerRepeat,
	} {
		delete(p.Headers, name)
	}
	history := r.history
	if r.delivery.Message != nil { // it was handed out
		history = r.delivery.History
	}
	noted := make(message.Metadata, 3)
	driver.SetHistory(noted, history)
	setText(p.Headers, noted)
	if r.crashes > 0 {
		p.Headers[headerCrashes] = int32(min(r.crashes, 1<<30))
	}
	if p.MessageId == "" && len(r.msg.UUID) <= maxNameBytes {
		p.MessageId = r.msg.UUID
	}
	return p
}

// unseen counts deliveries by the ids of their messages that a lost connection took back before anybody had seen them.
// The broker counts them as crashes if they come to this process again.
type unseen map[string]int

// add counts a message that goes back without having been handed out.
func (u unseen) add(r *received) {
	if r.seen || r.raw.MessageId == "" {
		return
	}
	if len(u) >= maxPrefetch {
		clear(u)
	}
	u[r.raw.MessageId] = r.unseen + 1
}

// correct takes off the count what nobody here has seen.
func (u unseen) correct(r *received) {
	n := min(u[r.raw.MessageId], r.crashes)
	r.unseen = n
	r.attempts -= n
	r.crashes -= n
	delete(u, r.raw.MessageId)
}
