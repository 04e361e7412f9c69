package admin

import (
	"context"
	"fmt"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
)

// UnknownGroupError says that the message system has no such group.
type UnknownGroupError struct {
	Group   string
	Nearest string // "" where none is near
}

func (e *UnknownGroupError) Error() string {
	switch {
	case strings.HasSuffix(e.Group, outboxSuffix) && !strings.HasSuffix(e.Nearest, outboxSuffix):
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
	known := make([]string, len(all))
	for i, g := range all {
		byName[g.Name], known[i] = g, g.Name
	}
	var found []driver.GroupInfo
	for _, name := range names {
		g, ok := byName[name]
		if !ok {
			return nil, &UnknownGroupError{Group: name, Nearest: nearestGroup(name, known)}
		}
		found = append(found, g)
	}
	return found, nil
}

// nearestGroup also knows a group by its handler's name alone.
func nearestGroup(name string, known []string) string {
	for _, k := range known {
		if strings.HasSuffix(k, "."+name) {
			return k
		}
	}
	return urlopt.Nearest(name, known)
}
