package cli

import (
	"context"

	"github.com/leatbus/leat/internal/admin"
)

type groups struct {
	connect `embed:""`
	output  `embed:""`

	Names []string `arg:"" optional:"" name:"group" help:"Only these."`
}

// Run shows the groups; with --json a line is an admin.Group.
func (c *groups) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		all, err := s.groups(ctx, c.Names...)
		if err != nil {
			return err
		}
		if c.JSON {
			for _, g := range all {
				if err := s.line(admin.DescribeGroup(g)); err != nil {
					return err
				}
			}
			return nil
		}
		t := newTable(s.Stdout, groupColumns()...)
		for _, g := range all {
			t.row(groupCells(g)...)
		}
		return t.flush()
	})
}
