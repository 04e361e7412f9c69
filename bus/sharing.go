package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
)

// sharingTimeout bounds the look-up of a group's consumers, which must not keep a service from starting. The look-up takes at most
// a quarter of the time until the caller's deadline.
const sharingTimeout = 5 * time.Second

// checkSharing looks for a program that shares the group by mistake: a live consumer of the group with another main package
// and disjoint topics. It returns an error if there is one, because each of the two would take, and poison, the other's
// messages; if Config.ShareGroups is set, it logs a warning and returns true instead. If the group has only other topics but no
// such consumer, it logs a warning, too: this may be a new release that takes other events, or the group of a program that is not
// running. A failed look-up is logged and is not an error, and no group is looked up after it. Nothing is looked up in a caller's
// transaction, because the database may wait for the end of that.
func (gs *groups) checkSharing(ctx context.Context, s driver.Subscription) (warned bool, err error) {
	lister, ok := gs.transport.(driver.ConsumerLister)
	if !ok || gs.notListed || intx.Is(ctx) {
		return false, nil
	}
	limit := sharingTimeout
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/4)
	}
	lookup, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := lister.Consumers(lookup, s.Group)
	if err != nil {
		gs.notListed = ctx.Err() == nil
		if gs.notListed && !errors.Is(err, ErrUnsupported) {
			gs.logger.Warn("leat: consumers not listed, so programs that share a group by mistake are not found", "group", s.Group, "error", err)
		}
		return false, nil
	}
	for _, c := range found.Consumers {
		if c.Program == "" || s.Program == "" || c.Program == s.Program || !disjoint(c.Topics, s.Topics) {
			continue
		}
		if gs.shared {
			gs.logger.Warn("leat: the group is consumed by another program that takes none of the same events, so each takes messages of the other",
				"group", s.Group, "program", c.Program, "place", c.Place, "group_topics", someTopics(c.Topics), "topics", someTopics(s.Topics))
			return true, nil
		}
		return false, fmt.Errorf("group %q is consumed by another program, %s on %s, which takes %s, while this one, %s, takes %s: "+
			"each would take messages of the other; set LEAT_SERVICE or Config.Service of one of them to another name, "+
			"or stop the other one if this one replaces it; if they share the group on purpose, set LEAT_SHARE_GROUPS=on or Config.ShareGroups",
			s.Group, c.Program, c.Place, someTopics(c.Topics), s.Program, someTopics(s.Topics))
	}
	if disjoint(found.Topics, s.Topics) {
		gs.logger.Warn("leat: the group has only other topics than this program subscribes to; if they are another program's, give one of them another service name",
			"group", s.Group, "group_topics", someTopics(found.Topics), "topics", someTopics(s.Topics))
	}
	return false, nil
}

// disjoint reports whether no topic matches a pattern of both sets. Empty sets are not disjoint: they are unknown.
func disjoint(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	return !slices.ContainsFunc(a, func(one string) bool {
		return slices.ContainsFunc(b, func(other string) bool { return driver.PatternsOverlap(one, other) })
	})
}

// someTopics lists topics for a text of one line.
func someTopics(topics []string) string {
	const most = 3
	text := strings.Join(topics[:min(len(topics), most)], ", ")
	if more := len(topics) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
