package amqp

import amqp "github.com/rabbitmq/amqp091-go"

// revisionOf is how often a poisoned message was changed in its queue.
func revisionOf(d *amqp.Delivery) int64 { return int64(fieldInt(d.Headers[headerPoisonRev])) }

// revisions are the latest of the messages of a poison queue, by their ids. A change whose process was
// killed leaves the message in two of them.
type revisions map[string]revision

type revision struct {
	tag uint64
	rev int64
}

// enter notes a message down. It returns the one that is void for it, or the message itself where that is.
func (r revisions) enter(id string, d *amqp.Delivery) (void *amqp.Delivery) {
	here := revision{d.DeliveryTag, revisionOf(d)}
	there, twice := r[id]
	if twice && there.rev > here.rev {
		here, there = there, here
	}
	r[id] = here
	if !twice {
		return nil
	}
	return &amqp.Delivery{DeliveryTag: there.tag} // without its id, which is not gone
}
