package queue

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.GroupFinder = (*Transport)(nil)

// FindGroup implements [driver.GroupFinder].
func (t *Transport) FindGroup(ctx context.Context, names ...string) (found string, err error) {
	err = t.inspect(ctx, "look for groups", func(ctx context.Context) error {
		for _, name := range names {
			_, there, err := groups{DB: t.core.DB}.find(ctx, name)
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
