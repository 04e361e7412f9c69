package amqp

import (
	"context"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// blocks names messages that are added to the poison queue of an ordered group, and returns control messages that make the
// group hold back their keys until those are replayed or dropped. A group that does not park ignores them.
func (q *poisonQueue) blocks(ctx context.Context, added []*outgoing, msgs []driver.PoisonedMessage) (blocks []*outgoing, err error) {
	order, err := q.t.orderOf(ctx, q.group)
	if err != nil || order == driver.Unordered {
		return nil, err
	}
	for i, o := range added {
		partitionKey := driver.PartitionKey(msgs[i].Message)
		if orderKey(order, partitionKey) == "" {
			continue
		}
		head := "op-" + ids.New()
		o.msg.Headers[headerHead] = head
		blocks = append(blocks, controlMessage(q.group, ordered.ControlBlock, head, partitionKey, ordered.Name{}))
	}
	return blocks, nil
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
		_, ordered, err := i.queue(keysName(group))
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
