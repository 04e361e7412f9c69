package queue

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.ConsumerLister = (*Transport)(nil)

// Consumers implements [driver.ConsumerLister]. Tables of a release before programs were recorded do not support it.
func (t *Transport) Consumers(ctx context.Context, group string) (all driver.GroupConsumers, err error) {
	if !t.core.Programs {
		return all, driver.ErrUnsupported
	}
	err = t.inspect(ctx, "list consumers", func(ctx context.Context) error {
		g, there, err := t.core.groups.find(ctx, group)
		if err != nil || !there {
			return err
		}
		if all.Topics, err = t.core.groups.topics(ctx, g); err != nil {
			return err
		}
		all.Consumers, err = t.core.groups.consumers.of(ctx, g)
		return err
	})
	return all, err
}
