package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type groupsRm struct {
	connect `embed:""`
	consent `embed:""`
	output  `embed:""`

	Names []string `arg:"" name:"group" help:"The groups to delete."`
}

// errGroupsEnd is the error for a message system that can't remove groups.
var errGroupsEnd = errors.New("a group is deleted in the message system itself: give its --url, like amqp://… or postgres://…; " +
	"groups in memory end with the service's process")

// Run deletes the groups, after a confirmation that says which messages are lost; with --json a line is a removed.
func (c *groupsRm) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		all, remover, err := s.removable(ctx, slices.Compact(slices.Sorted(slices.Values(c.Names)))...)
		if err != nil {
			return err
		}
		lost := make([]string, len(all))
		for i, g := range all {
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
			if c.JSON {
				if err := s.line(describeRemoved(g)); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(s.Stdout, "deleted the group %s\n", g.Name)
		}
		return nil
	})
}

// removable returns the groups, and what removes them, or an error if one of them can't be removed.
func (s *session) removable(ctx context.Context, names ...string) ([]driver.GroupInfo, driver.GroupRemover, error) {
	remover, ok := s.Transport.(driver.GroupRemover)
	all, err := s.groups(ctx, names...)
	unknown, _ := errors.AsType[*admin.UnknownGroupError](err)
	switch {
	case unknown != nil && unknown.IsOutbox():
		return nil, nil, s.errOutboxStays(unknown.Group, ", with the --url of its database, the value of LEAT_OUTBOX_URL")
	case err != nil && ok:
		return nil, nil, err
	}
	for _, g := range all {
		if admin.IsOutbox(g) && (!ok || admin.HasOutboxes(s.Transport)) {
			return nil, nil, s.errOutboxStays(g.Name, ", with the same --url")
		}
	}
	if !ok {
		return nil, nil, &UsageError{errGroupsEnd}
	}
	for _, g := range all {
		if g.Consumers > 0 {
			return nil, nil, fmt.Errorf("%s: %w", g.Name, driver.ErrConsumed)
		}
	}
	return all, remover, nil
}

// errOutboxStays returns the error for an outbox, which no transport removes. at says where leat reaches it.
func (s *session) errOutboxStays(group, at string) error {
	if s.Version == "" { // a service's own binary, which has no --url
		at = ""
	}
	return usage("%s is an outbox and no group of a handler, so it can't be deleted; nothing was done. Any process of its service publishes the events that wait in it. "+
		"Those that were set aside are its poisoned messages: %s poison rm --group %s deletes them%s", group, s.Program, group, at)
}

// removed is a group that was deleted, with the messages that it had before, in JSON. null means unknown.
type removed struct {
	groupResult
	Waiting  *int `json:"waiting"`
	Delayed  *int `json:"delayed"`
	Parked   *int `json:"parked"`
	Poisoned *int `json:"poisoned"`
}

func describeRemoved(g driver.GroupInfo) removed {
	d := admin.DescribeGroup(g)
	return removed{groupResult{g.Name, "deleted"}, d.Waiting, d.Delayed, d.Parked, d.Poisoned}
}
