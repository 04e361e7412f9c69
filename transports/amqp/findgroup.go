package amqp

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.GroupFinder = (*Transport)(nil)

// FindGroup implements [driver.GroupFinder]: a group is there if its queue is. With topology=watermill there is a queue
// for each topic, and it finds none.
func (t *Transport) FindGroup(ctx context.Context, names ...string) (found string, err error) {
	if t.topology.watermill() {
		return "", nil
	}
	err = t.inspect(ctx, "look for groups", func(i *inspection) error {
		for _, name := range names {
			_, there, err := i.queue(name)
			if err != nil {
				return err
			}
			if there {
				found = name
				return nil
			}
		}
		return nil
	})
	return found, err
}
