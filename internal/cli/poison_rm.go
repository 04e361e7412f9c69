package cli

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/internal/admin"
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
	remove := deed{does: "deleting", did: "deleted", would: "delete"}
	return c.with(ctx, e, func(s *session) error {
		queues, classes, n, err := c.choose(ctx, s)
		switch {
		case err != nil:
			return err
		case c.Count:
			return c.count(s, queues, classes, n, remove)
		case n > 0:
			if err := c.confirm(ctx, e)(fmt.Sprintf("This deletes %s.", messages(n))); err != nil {
				return err
			}
		}
		return c.run(ctx, s, queues, n, remove, func(q chosen) admin.Move { return admin.Move{Act: q.queue.Drop} })
	})
}
