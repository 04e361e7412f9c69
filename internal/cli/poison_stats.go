package cli

import (
	"context"
)

type poisonStats struct {
	connect `embed:""`
	output  `embed:""`
	filter  `embed:""`
}

// Run counts the messages; with --json a line is an admin.Class.
func (c *poisonStats) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		_, classes, n, err := c.choose(ctx, s)
		if err != nil {
			return err
		}
		if c.JSON {
			for _, class := range classes.List() {
				if err := s.line(class); err != nil {
					return err
				}
			}
			return nil
		}
		if n == 0 {
			return nil
		}
		return s.writeClasses(classes.List())
	})
}
