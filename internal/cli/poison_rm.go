package cli

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/bus/driver"
)

type poisonRm struct {
	bulk    `embed:""`
	consent `embed:""`
}

// Run deletes the messages, after a confirmation.
func (c *poisonRm) Run(ctx context.Context, e *Env) error {
	if err := c.validate(); err != nil {
		return err
	}
	return c.run(ctx, e, deed{does: "deleting", did: "deleted", would: "delete"}, driver.PoisonQueue.Drop, func(n int) error {
		return c.confirm(ctx, e)(fmt.Sprintf("This deletes %s.", messages(n)))
	})
}
