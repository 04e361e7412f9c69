package amqp

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.GroupFinder = (*Transport)(nil)

// HasGroup implements [driver.GroupFinder]: a group is there if its queue is. With topology=watermill there is a queue for
// each topic, and the answer is false.
func (t *Transport) HasGroup(ctx context.Context, name string) (found bool, err error) {
	if t.topology.watermill() {
		return false, nil
	}
	err = t.inspect(ctx, "look for a group", func(i *inspection) error {
		_, found, err = i.queue(name)
		return err
	})
	return found, err
}
