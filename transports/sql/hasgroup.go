package sql

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.GroupFinder = (*Transport)(nil)

// HasGroup implements [driver.GroupFinder].
func (t *Transport) HasGroup(ctx context.Context, name string) (found bool, err error) {
	err = t.inspect(ctx, "look for a group", func(ctx context.Context) error {
		_, found, err = groups{database: t.database}.find(ctx, name)
		return err
	})
	return found, err
}
