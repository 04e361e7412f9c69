package amqp

import (
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

// received is a message as the broker has delivered it, with leat's counts. It belongs to one goroutine at a time, or is guarded
// by the mutex of its receiver.
type received struct {
	t        *Transport
	group    string
	raw      *amqp.Delivery
	queue    string         // that it was delivered from
	attempts int            // earlier deliveries that count
	crashes  int            // those of them that were not settled
	unseen   int            // deliveries that the broker has counted although the message was only fetched
	history  driver.History // its failures, in earlier deliveries
	seen     bool           // it was delivered before, and waits for a redelivery in this process
	counted  bool           // it has an attempt that is only counted in this process
	read     bool           // msg is filled
	msg      message.Message
	delivery driver.Delivery

	bytes   int      // of its body
	spilled *spilled // the body, if it is not in memory
}

// receive fills in a message with the counts of its earlier deliveries.
func (r *received) receive(t *Transport, group, queue string, raw *amqp.Delivery) {
	r.t, r.group, r.raw, r.queue, r.bytes = t, group, raw, queue, len(raw.Body)
	r.attempts, r.crashes = handOvers(raw, queue)
}

// suspect reports whether the message was in enough crashes to be their possible cause.
func (r *received) suspect() bool { return r.crashes >= suspicion }

// unpack parses the message, once.
func (r *received) unpack() {
	if !r.read {
		unmarshal(&r.msg, r.raw, r.t.cfg.ownKey, r.t.cfg.stock)
		if recorded := driver.TakeHistory(r.msg.Metadata); r.history == (driver.History{}) {
			r.history = recorded
		}
		r.read = true
	}
}

// handOut returns the delivery for a handler.
func (r *received) handOut(settler driver.Settler) *driver.Delivery {
	r.unpack()
	d := &r.delivery
	d.Message = &r.msg
	d.Topic = topicOf(r.raw, r.queue, &r.t.cfg)
	d.Group = r.group
	d.Attempt = r.attempts + 1
	d.FirstSeen = r.raw.Timestamp
	d.History = r.history
	d.FixedDelays = true
	d.Unreadable = unreadable(r.raw)
	d.Settler = settler
	return d
}

// repeat fills in r for another delivery of the same message.
func (r *received) repeat(before *received, attempts int) {
	r.t, r.group, r.raw, r.queue, r.attempts, r.crashes = before.t, before.group, before.raw, before.queue, attempts, before.crashes
	r.bytes = before.bytes
	r.history, r.seen, r.counted = before.delivery.History, true, before.counted || attempts > before.attempts
}

// copy returns a copy of the message for publishing, with its attempts in a header.
func (r *received) copy(attempts int) amqp.Publishing {
	r.unpack()
	p := copyOf(r.raw, topicOf(r.raw, r.queue, &r.t.cfg))
	p.Headers[headerAttempt] = int32(min(attempts, 1<<30)) //nolint:gosec // bounded
	for _, name := range []string{
		headerCrashes, driver.HeaderFaultFailedAt, driver.HeaderFaultFailures, driver.HeaderFaultWaiting,
		headerHead, headerSeq, headerStamp, headerName, headerControl, headerRepeat,
	} {
		delete(p.Headers, name)
	}
	history := r.history
	if r.delivery.Message != nil { // it was delivered
		history = r.delivery.History
	}
	recorded := make(message.Metadata, 3)
	driver.SetHistory(recorded, history)
	setText(p.Headers, recorded)
	if r.crashes > 0 {
		p.Headers[headerCrashes] = int32(min(r.crashes, 1<<30))
	}
	if p.MessageId == "" && len(r.msg.UUID) <= maxNameBytes {
		p.MessageId = r.msg.UUID
	}
	return p
}

// poisoned returns a copy for the group's poison queue, with the fault in its headers. A replay publishes it to the given queue.
// If the headers do not fit in a frame, first the stack is left out, and then headers of others.
func (r *received) poisoned(fault driver.Fault, queue string, frame int) *outgoing {
	p := r.copy(r.attempts)
	recorded := make(message.Metadata)
	fault.Record(recorded)
	setText(p.Headers, recorded)
	if tableSize(p.Headers) > frame-min(8<<10, frame/4) {
		delete(p.Headers, driver.HeaderFaultStack)
	}
	p.Headers[headerPoisonID] = ids.New()
	p.Headers[headerQueue] = queue
	fit(&p, frame-brokersRoom)
	return &outgoing{key: poisonName(r.group), msg: p}
}

// unseen counts, by the ids of messages, deliveries that were lost with a connection before they reached a handler. If the broker
// delivers them to this process again, it counts them as crashes.
type unseen map[string]int

// add counts a message that was fetched and never delivered to a handler.
func (u unseen) add(r *received) {
	if r.seen || r.raw.MessageId == "" {
		return
	}
	if len(u) >= maxPrefetch {
		clear(u)
	}
	u[r.raw.MessageId] = r.unseen + 1
}

// correct subtracts such deliveries from the count of a message.
func (u unseen) correct(r *received) {
	n := min(u[r.raw.MessageId], r.crashes)
	r.unseen = n
	r.attempts -= n
	r.crashes -= n
	delete(u, r.raw.MessageId)
}
