package amqp

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// blocks gives messages that are added to the poison queue of an ordered group names, and returns control messages by which
// the group holds back their keys until they come back. A group that does not park does not heed them.
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

// orderOf returns a group's order, as this process or the group's service has noted it down.
func (t *Transport) orderOf(ctx context.Context, group string) (order driver.Order, err error) {
	if s, here := t.topology.subscription(group); here {
		return s.Order, nil
	}
	err = t.inspect(ctx, "order", func(i *inspection) error {
		_, ordered, err := i.queue(keysName(group))
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
