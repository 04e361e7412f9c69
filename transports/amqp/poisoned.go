package amqp

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// idOf returns the id that leat gave a message, or a digest of its content if the broker has dead-lettered it. Equal digests are
// numbered. Both begin with the time, so that the order of ids is that of arrival.
func idOf(d *amqp.Delivery, seen map[string]int) string {
	if id, ok := d.Headers[headerPoisonID].(string); ok {
		return id
	}
	at := d.Timestamp
	for _, death := range deaths(d.Headers["x-death"]) {
		if t, ok := death["time"].(time.Time); ok {
			at = t
			break
		}
	}
	ms := fmt.Sprintf("%012x", max(at.UnixMilli(), 0)) // as a UUIDv7 begins
	sum := sha256.Sum256(append([]byte(d.MessageId+"\x00"), d.Body...))
	id := ms[:8] + "-" + ms[8:12] + "-" + hex.EncodeToString(sum[:12])
	seen[id]++
	if n := seen[id]; n > 1 {
		return fmt.Sprintf("%s-%d", id, n)
	}
	return id
}

// shown returns a message as the poison queue's methods return it.
func shown(id string, d *amqp.Delivery, names *stockNames) driver.PoisonedMessage {
	msg := new(message.Message)
	unmarshal(msg, d, nil, names)
	shown := driver.PoisonedMessage{ID: id, Message: msg, Fault: driver.FaultOf(msg.Metadata)}
	if headOf(d) != "" {
		shown.Parked = driver.Unknown
	}
	return shown
}

// A page collects the messages with the lowest ids, up to the bounds of a list.
type page struct {
	messages []driver.PoisonedMessage
	bytes    int // of messages
}

// add adds a message. Now and then it removes those that are too many: up to a quarter more than the bounds is in memory.
func (p *page) add(m driver.PoisonedMessage) {
	p.messages = append(p.messages, m)
	p.bytes += len(m.Message.Payload)
	if len(p.messages) >= listMessages*5/4 || p.bytes >= listBytes*5/4 {
		p.trim()
	}
}

// trim sorts the messages and removes the last ones, if they are too many.
func (p *page) trim() {
	slices.SortFunc(p.messages, func(a, b driver.PoisonedMessage) int { return strings.Compare(a.ID, b.ID) })
	n, bytes := 0, 0
	for n < len(p.messages) && n < listMessages && (n == 0 || bytes+len(p.messages[n].Message.Payload) <= listBytes) {
		bytes += len(p.messages[n].Message.Payload)
		n++
	}
	p.messages, p.bytes = slices.Delete(p.messages, n, len(p.messages)), bytes
}

// revisionOf returns how often a poisoned message was changed in its queue.
func revisionOf(d *amqp.Delivery) int64 { return int64(fieldInt(d.Headers[headerPoisonRev])) }

// revisions has the latest revision of each message of a poison queue. There are two of a message if a process was killed while it
// changed or renewed the message.
type revisions map[revisionKey]revision

// A revisionKey is what two revisions of a message have in common. A digest is apart from the same id in a header: when one of several
// messages with the same content is changed or renewed, its copy has its digest as an id, which another one then has too.
type revisionKey struct {
	id     string
	digest bool
}

func keyOf(id string, d *amqp.Delivery) revisionKey {
	_, own := d.Headers[headerPoisonID].(string)
	return revisionKey{id, !own}
}

type revision struct {
	from amqp.Acknowledger
	tag  uint64
	rev  int64
}

// enter records a message, and reports whether it is the latest revision so far. If there are two, it returns the one that is void.
func (r revisions) enter(key revisionKey, d *amqp.Delivery) (void *amqp.Delivery, latest bool) {
	here := revision{d.Acknowledger, d.DeliveryTag, revisionOf(d)}
	there, twice := r[key]
	latest = !twice || there.rev <= here.rev
	if !latest {
		here, there = there, here
	}
	r[key] = here
	if twice {
		void = &amqp.Delivery{Acknowledger: there.from, DeliveryTag: there.tag} // without its id, which is that of the other revision too
	}
	return void, latest
}
