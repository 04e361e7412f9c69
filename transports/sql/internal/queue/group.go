package queue

import (
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A group has the columns of a group's row.
type group struct {
	id    int64
	name  string
	order driver.Order
	park  bool // as this consumer is configured; not stored, so false in an operator's process
}

// A lockedGroup is a transaction that has locked a group: until it ends, no other transaction claims from the group's key queues, joins
// the group, or removes its holds.
type lockedGroup struct {
	database.Executor
	group group
	fence int64 // the group's fencing number; 0 if the tables have none
}

// readyColumns returns the assignments for a message of the group that becomes ready.
func (g group) readyColumns() string {
	switch g.order {
	case driver.OrderedByKey:
		return "state = CASE WHEN lane = 0 THEN {ready} ELSE {keyed} END, pos = lane"
	case driver.OrderedStrictly:
		return "state = {keyed}, pos = 0"
	default:
		return "state = {ready}, pos = 0"
	}
}

// misplacedConditions returns the conditions on messages that were inserted while the group had another order. An index supports all
// but the first one: in a group that is ordered by key, all ready messages are read.
func (g group) misplacedConditions() []string {
	switch g.order {
	case driver.OrderedByKey:
		return []string{"state = {ready} AND lane <> 0", "state = {keyed} AND pos = 0"}
	case driver.OrderedStrictly:
		return []string{"state = {ready}", "state = {keyed} AND pos < 0", "state = {keyed} AND pos > 0"}
	default:
		return []string{"state = {keyed}"}
	}
}
