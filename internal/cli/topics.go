package cli

import (
	"context"
	"strings"

	"github.com/leatbus/leat/internal/admin"
)

type topics struct {
	connect `embed:""`
	output  `embed:""`
}

// Run shows the topics; with --json a line is an admin.Topic.
func (c *topics) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		inspector, err := s.inspector()
		if err != nil {
			return err
		}
		soon, cancel := s.soon(ctx)
		defer cancel()
		all, err := inspector.Topics(soon)
		if err != nil {
			return err
		}
		if c.JSON {
			for _, t := range all {
				if err := s.line(admin.Topic(t)); err != nil {
					return err
				}
			}
			return nil
		}
		table := newTable(s.Stdout, column{"TOPIC", phrase}, column{"GROUPS", prose})
		for _, t := range all {
			table.row(t.Topic, strings.Join(t.Groups, ", "))
		}
		return table.flush()
	})
}
