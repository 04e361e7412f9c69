package cli

import (
	"context"

	"github.com/leatbus/leat/internal/admin"
)

// groups has the commands for groups. Without one of them, it shows the groups.
type groups struct {
	Ls     groupsLs     `cmd:"" default:"withargs" help:"Show the groups, and how many messages each has; the default."`
	Pause  groupsPause  `cmd:"" help:"Stop a process from taking messages of groups, through its admin endpoint."`
	Resume groupsResume `cmd:"" help:"Let a process take messages of paused groups again."`
	Rm     groupsRm     `cmd:"" help:"Delete groups that no process consumes, with their messages."`
}

type groupsLs struct {
	connect `embed:""`
	output  `embed:""`

	Names []string `arg:"" optional:"" name:"group" help:"Only these groups."`
}

// Run shows the groups; with --json a line is an admin.Group.
func (c *groupsLs) Run(ctx context.Context, e *Env) error {
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
