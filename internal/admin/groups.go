package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
)

// An UnknownGroupError is returned if the message system has no such group.
type UnknownGroupError struct {
	Group   string
	Nearest string // "" if none is similar

	handlers bool // only groups of a process's handlers were looked for
}

// IsOutbox reports whether the group's name is that of an outbox, which is in another database, and not that of a similar group.
func (e *UnknownGroupError) IsOutbox() bool {
	return strings.HasSuffix(e.Group, outboxSuffix) && !strings.HasSuffix(e.Nearest, outboxSuffix)
}

func (e *UnknownGroupError) Error() string {
	switch {
	case e.handlers && strings.HasSuffix(e.Group, outboxSuffix):
		return fmt.Sprintf("%q is no group of a handler; an outbox can't be paused: its events wait in its database while the service is stopped", e.Group)
	case e.IsOutbox():
		return fmt.Sprintf("there is no group %q; an outbox is in its own database: give --url the value of LEAT_OUTBOX_URL", e.Group)
	case e.Nearest != "":
		return fmt.Sprintf("there is no group %q. Did you mean %s?", e.Group, e.Nearest)
	}
	return fmt.Sprintf("there is no group %q; leat groups shows those that there are", e.Group)
}

// FindGroups returns the groups with these names, or all of them if none is named.
func FindGroups(ctx context.Context, inspector driver.Inspector, names ...string) ([]driver.GroupInfo, error) {
	all, err := inspector.Groups(ctx)
	if err != nil || len(names) == 0 {
		return all, err
	}
	byName := make(map[string]driver.GroupInfo, len(all))
	for _, g := range all {
		byName[g.Name] = g
	}
	if err := checkGroups(each(all, func(g driver.GroupInfo) string { return g.Name }), names...); err != nil {
		return nil, err
	}
	return each(names, func(name string) driver.GroupInfo { return byName[name] }), nil
}

// CheckGroups returns an [UnknownGroupError] if the described service has no group of one of the names.
func (d Description) CheckGroups(names ...string) error {
	return checkHandlers(each(d.Groups, func(g GroupDescription) string { return g.Group }), names...)
}

// checkHandlers does the same as checkGroups for the groups of a process's handlers.
func checkHandlers(known []string, names ...string) error {
	err := checkGroups(known, names...)
	if unknown, ok := errors.AsType[*UnknownGroupError](err); ok {
		unknown.handlers = true
	}
	return err
}

func checkGroups(known []string, names ...string) error {
	for _, name := range names {
		if !slices.Contains(known, name) {
			return &UnknownGroupError{Group: name, Nearest: nearestGroup(name, known)}
		}
	}
	return nil
}

// nearestGroup returns the most similar group. The name may also be that of its handler.
func nearestGroup(name string, known []string) string {
	for _, k := range known {
		if strings.HasSuffix(k, "."+name) {
			return k
		}
	}
	return urlopt.Nearest(name, known)
}

// PausedBy returns who has paused a group, by the degraded parts of its health; "" if it is not paused. An operator comes first,
// because the breaker does not end an operator's pause.
func PausedBy(degraded map[string]string) string {
	for _, part := range []string{driver.PausedByOperator, driver.PausedByBreaker} {
		if degraded[part] != "" {
			return part
		}
	}
	return ""
}
