package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
)

type groupsRm struct {
	connect `embed:""`
	consent `embed:""`

	Names []string `arg:"" name:"group" help:"The groups to delete."`
}

// errGroupsEnd is the error for a message system that can't remove groups.
var errGroupsEnd = errors.New("a group is deleted in the message system itself: give its --url, like amqp://… or postgres://…; " +
	"groups in memory end with the service's process")

// Run deletes the groups, after a confirmation that says which messages are lost.
func (c *groupsRm) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		remover, ok := s.Transport.(driver.GroupRemover)
		if !ok {
			return &UsageError{errGroupsEnd}
		}
		all, err := s.groups(ctx, slices.Compact(slices.Sorted(slices.Values(c.Names)))...)
		if err != nil {
			return err
		}
		lost := make([]string, len(all))
		for i, g := range all {
			if g.Consumers > 0 {
				return fmt.Errorf("%s: %w", g.Name, driver.ErrConsumed)
			}
			lost[i] = fmt.Sprintf("the group %s with its messages: %s waiting, %s delayed, %s parked, %s poisoned",
				g.Name, shown(g.Waiting), shown(g.Delayed), shown(g.Parked), shown(g.Poisoned))
		}
		if err := c.confirm(ctx, e)(fmt.Sprintf("This deletes %s.", strings.Join(lost, "; and "))); err != nil {
			return err
		}
		for _, g := range all {
			if err := remover.RemoveGroup(ctx, g.Name); err != nil {
				return err
			}
			fmt.Fprintf(s.Stdout, "deleted the group %s\n", g.Name)
		}
		return nil
	})
}
