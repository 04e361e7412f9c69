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

// orderOf returns a group's order: that of this process's own group, else what the group's queue shows of it.
func (t *Transport) orderOf(ctx context.Context, group string) (order driver.Order, err error) {
	if s, here := t.topology.subscription(group); here {
		return s.Order, nil
	}
	if t.topology.watermill() {
		return driver.Unordered, nil
	}
	err = t.inspect(ctx, "order", func(i *inspection) error {
		_, ordered, err := i.queue(heldName(group))
		if err != nil || !ordered {
			return err
		}
		order, err = i.orderOf(group)
		return err
	})
	return order, err
}

// orderOf finds out which arguments a group's queue has: AMQP shows none, but refuses to declare a queue again that has
// others. It returns OrderedByKey for both orders, since only one message of a group that is ordered strictly can be
// poisoned at a time.
func (i *inspection) orderOf(group string) (driver.Order, error) {
	_, there, err := i.queue(group)
	if err != nil {
		return 0, err
	}
	for _, queueType := range []QueueType{Quorum, Classic} {
		topology := i.t.topology.forQueues(queueType)
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
			if !there {
				break
			}
			args := topology.queueArgs(driver.Subscription{Group: group, Order: order})
			err := i.do(func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclare(group, durable, autoDelete, exclusive, noWait, args)
				return err
			})
			switch {
			case err == nil:
				return order, nil
			case isCode(err, amqp.AccessRefused):
				return 0, fmt.Errorf("whether group %q is ordered is not known, since the user may not configure its queue; use a user who may: %w", group, err)
			case !isCode(err, amqp.PreconditionFailed):
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("group %q is or was ordered, and what it is now is not known: its queue is not there, or leat has not made it; "+
		"start its service once, which makes it", group)
}
