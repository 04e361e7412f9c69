package amqp

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// A message that an operator adds to the poison queue of an ordered group gets a place and a stone there,
// like one that was poisoned. The group's leader gives places, and the operator's process is not that. So it
// takes places that lie so far ahead that no leader has come to them: two messages in one place would be
// revisions of each other. The leader goes on from there. It drops the stone where the group does not park.

// ahead is how far beyond the present time such a place is: longer than any two clocks differ.
const ahead = time.Hour

// stones gives messages that are added their places, and returns what holds these in the group.
func (q *poisonQueue) stones(ctx context.Context, added []*outgoing, msgs []driver.PoisonedMessage) (stones []*outgoing, err error) {
	order, err := q.t.orderOf(ctx, q.group)
	if err != nil || order == driver.Unordered {
		return nil, err
	}
	at := time.Now().Add(ahead).UnixMicro() + rand.N(time.Second.Microseconds()) // another process may add some, too
	for i, o := range added {
		key := strictKey
		if order == driver.OrderedByKey {
			key = shortKey(driver.PartitionKey(msgs[i].Message))
		}
		if key == "" {
			continue
		}
		p := place{key: key, at: at + int64(i)}
		p.set(o.msg.Headers)
		h := amqp.Table{headerHeldNote: noteStone}
		p.set(h)
		stones = append(stones, &outgoing{key: heldName(q.group), msg: amqp.Publishing{
			DeliveryMode: amqp.Persistent, MessageId: o.msg.MessageId, Headers: h,
		}})
	}
	return stones, nil
}

// orderOf returns a group's order, as this process or the group's service has noted it down.
func (t *Transport) orderOf(ctx context.Context, group string) (order driver.Order, err error) {
	if s, here := t.topology.subscription(group); here {
		return s.Order, nil
	}
	err = t.inspect(ctx, "order", func(i *inspection) error {
		_, ordered, err := i.queue(heldName(group))
		if err != nil || !ordered {
			return err
		}
		groups, unknown := i.groups()
		for _, k := range groups {
			if k.Group == group {
				order = k.subscription().Order
				return nil
			}
		}
		if unknown != nil {
			return unknown
		}
		return fmt.Errorf("group %q is or was ordered, and what it is now is not known; start its service once, which notes it down, "+
			"or correct the URL's exchange", group)
	})
	return order, err
}
