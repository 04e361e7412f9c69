package cli

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type groupsPause struct {
	connect `embed:""`
	output  `embed:""`

	Names []string `arg:"" name:"group" help:"The groups to pause."`
}

// Run pauses the groups in one process; with --json a line is a groupResult.
func (c *groupsPause) Run(ctx context.Context, e *Env) error {
	return c.setPaused(ctx, e, c.output, true, "paused", c.Names...)
}

type groupsResume struct {
	connect `embed:""`
	output  `embed:""`

	Names []string `arg:"" name:"group" help:"The groups to resume."`
}

// Run resumes the groups in one process; with --json a line is a groupResult.
func (c *groupsResume) Run(ctx context.Context, e *Env) error {
	return c.setPaused(ctx, e, c.output, false, "resumed", c.Names...)
}

// groupResult is what was done with a group, in JSON.
type groupResult struct {
	Group  string `json:"group"`
	Result string `json:"result"` // paused, resumed or deleted
}

// pauser is a service's process, reached by its admin endpoint.
type pauser interface {
	admin.Describer
	SetPaused(ctx context.Context, group string, paused bool) error
}

var _ pauser = (*admin.Client)(nil)

// setPaused pauses or resumes groups, after it has checked that all of them exist.
func (c connect) setPaused(ctx context.Context, e *Env, out output, paused bool, did string, names ...string) error {
	if e.OpenProcess != nil {
		e.Open = e.OpenProcess
	}
	return c.with(ctx, e, func(s *session) error {
		process, ok := s.Transport.(pauser)
		if !ok {
			return usage("a process is paused and resumed at its admin endpoint: start it with LEAT_ADMIN=/run/shop/leat.sock and run the command leat with " +
				"--url unix:///run/shop/leat.sock, for each process of the group; or scale its deployment to zero")
		}
		if err := s.checkGroups(ctx, process, names...); err != nil {
			return err
		}
		for _, name := range names {
			if err := s.setPaused(ctx, process, name, paused); err != nil {
				return err
			}
			if out.JSON {
				if err := s.line(groupResult{name, did}); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(s.Stdout, "%s %s in this process; other processes of the group go on as before\n", did, name)
		}
		return nil
	})
}

// checkGroups asks the process for its groups, and not the message system, which may be away.
func (s *session) checkGroups(ctx context.Context, process admin.Describer, names ...string) error {
	ctx, cancel := s.soon(ctx)
	defer cancel()
	d, err := process.Describe(ctx)
	if err != nil {
		return err
	}
	return d.CheckGroups(names...)
}

func (s *session) setPaused(ctx context.Context, process pauser, name string, paused bool) error {
	ctx, cancel := s.soon(ctx)
	defer cancel()
	return process.SetPaused(ctx, name, paused)
}

// consumers returns the number of a group's consumers, and whether the process that was asked is paused.
func consumers(g driver.GroupInfo) string {
	if g.Paused != "" {
		return shown(g.Consumers) + ", paused"
	}
	return shown(g.Consumers)
}
