package sql

import "github.com/leatbus/leat/bus/driver"

// group is a group's row.
type group struct {
	id    int64
	name  string
	order driver.Order
	park  bool // as this consumer asks; unknown to operators
}

// lockedGroup is a transaction that has locked a group: no other one claims from its key queues, joins it, or takes
// away its holds meanwhile.
type lockedGroup struct {
	executor
	group group
}

// place returns the columns of a message of the group that becomes ready.
func (g group) place() string {
	switch g.order {
	case driver.OrderedByKey:
		return "state = CASE WHEN lane = 0 THEN {ready} ELSE {keyed} END, pos = lane"
	case driver.OrderedStrictly:
		return "state = {keyed}, pos = 0"
	default:
		return "state = {ready}, pos = 0"
	}
}

// misplaced returns the conditions on messages that were inserted while the group had another order. The
// index finds each but the first one's: in a group that is ordered by key, all its ready messages are read.
func (g group) misplaced() []string {
	switch g.order {
	case driver.OrderedByKey:
		return []string{"state = {ready} AND lane <> 0", "state = {keyed} AND pos = 0"}
	case driver.OrderedStrictly:
		return []string{"state = {ready}", "state = {keyed} AND pos < 0", "state = {keyed} AND pos > 0"}
	default:
		return []string{"state = {keyed}"}
	}
}
