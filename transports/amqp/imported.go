package amqp

import (
	"context"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// blocks gives names to messages that are added to the poison queue of an ordered group, and returns control messages by which the
// group parks later messages of their keys until they are replayed or dropped. A group that does not park ignores them.
func (q *poisonQueue) blocks(ctx context.Context, added []*outgoing, msgs []driver.PoisonedMessage) (blocks []*outgoing, err error) {
	order, err := q.order(ctx)
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

// order returns the group's order: that of this process's subscription, or else of the group's queue.
func (q *poisonQueue) order(ctx context.Context) (order driver.Order, err error) {
	if s, here := q.t.topology.subscription(q.group); here {
		return s.Order, nil
	}
	if q.t.topology.watermill() {
		return driver.Unordered, nil
	}
	err = q.t.inspector.inspect(ctx, "order", func(i *inspection) error {
		_, ordered, err := i.queue(keysName(q.group))
		if err != nil || !ordered {
			return err
		}
		order, err = i.orderOf(q.group)
		return err
	})
	return order, err
}

// orderOf finds the arguments of a group's queue. AMQP does not show them, but the broker refuses to declare a queue again with
// other arguments. It returns OrderedByKey for both orders, since only one message of a group that is ordered strictly can be
// poisoned at a time.
func (i *inspection) orderOf(group string) (driver.Order, error) {
	_, there, err := i.queue(group)
	if err != nil {
		return 0, err
	}
	for _, queueType := range []QueueType{Quorum, Classic} {
		topology := i.topology.forQueues(queueType)
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
				return 0, fmt.Errorf("can't determine whether group %q is ordered, since the user may not configure its queue; use a user who may: %w", group, err)
			case !isCode(err, amqp.PreconditionFailed):
				return 0, err
			}
		}
	}
	return 0, fmt.Errorf("can't determine whether group %q is still ordered: its queue does not exist, or leat has not declared it; "+
		"start its service once, which declares it", group)
}
